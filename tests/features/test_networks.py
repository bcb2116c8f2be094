"""The feature networks: their exact sizes, and what a metric may rely on."""

from __future__ import annotations

import pytest
import torch
from feature_files import random_network

from stylegan_dist.errors import InputError
from stylegan_dist.features.inputs import resized
from stylegan_dist.features.layers import same_padding
from stylegan_dist.features.registry import NETWORKS
from stylegan_dist.features.vit import ClipVision, DinoV2

# Parameters as published: EfficientNet-Lite0 and Inception with their classifiers; DINOv2 without the token for masks;
# the visual part of CLIP.
PARAMETERS = {"efficientnet-lite0": 4_652_008, "inception": 23_850_960, "dinov2-s": 22_056_192, "dinov2-l": 304_367_616,
              "clip": 304_293_888}
DIMENSIONS = {"efficientnet-lite0": 1280, "inception": 2048, "dinov2-s": 384, "dinov2-l": 1024, "clip": 768}
# Channels and side of the maps of the perceptual distance.
MAPS = {
    "efficientnet-lite0": [(16, 112), (24, 56), (40, 28), (112, 14), (320, 7)],
    "inception": [(64, 147), (192, 71), (288, 35), (768, 17), (2048, 8)],
    "dinov2-s": [(384, 16)] * 4,
    "dinov2-l": [(1024, 16)] * 4,
    "clip": [(768 + 256, 24)] * 4,
}


@pytest.fixture(scope="module")
def network():
    """The smallest network of the registry."""
    return random_network("efficientnet-lite0")


def images(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_shapes(name):
    """On the meta device, where nothing is computed."""
    entry = NETWORKS[name]
    with torch.device("meta"):
        trunk = entry.trunk(**entry.options)
        x = torch.zeros(2, 3, entry.samples.size, entry.samples.size)
        maps: list[torch.Tensor] = []
        features = trunk(x, maps)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == PARAMETERS[name]
    assert features.shape == (2, DIMENSIONS[name])
    assert trunk.dimensions == DIMENSIONS[name]
    assert [tuple(one.shape[1:]) for one in maps] == [(channels, side, side) for channels, side in MAPS[name]]
    if trunk.classes:
        assert trunk.classify(features).shape == (2, trunk.classes)


def test_names_of_scores():
    names = {name: entry.short for name, entry in NETWORKS.items()}
    assert len(set(names.values())) == len(names)
    fid = random_network("inception").score_name
    assert (fid("fd"), fid("kid")) == ("fid", "kid_inception")


def test_scores_are_named_after_the_network(network):
    assert (network.name, network.score_name("fd"), network.score_name("kid")) == ("efflite0", "fd_efflite0", "kid_efflite0")
    assert network.resize == "bicubic-antialias-224"


def test_features_do_not_depend_on_the_batch(network):
    """To the last bit."""
    some = images(5)
    together = network(some)
    assert together.shape == (5, 1280)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([network(one[None]) for one in some]))
    assert torch.equal(together.flip(0), network(some.flip(0)))
    assert torch.equal(network.logits(some), network.classify(together))
    assert network(some[:0]).shape == (0, 1280)


@pytest.mark.full
def test_parts_are_filled_up(network, monkeypatch):
    """As on a GPU, where several samples go through the network at a time."""
    monkeypatch.setattr(network, "_part", 4)
    some = images(5)
    together = network(some)
    assert torch.equal(together[:3], network(some[:3]))
    assert torch.equal(together[4:], network(some[4:]))
    assert network(some[:0]).shape == (0, 1280)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_do_not_depend_on_the_memory_format(network, channels):
    """Samples of shards lie in memory pixel by pixel, generated ones channel by channel."""
    some = images(2, channels)
    by_pixel = some.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(network(some), network(by_pixel))
    assert torch.equal(network.distance(some, some.flip(0)), network.distance(by_pixel, by_pixel.flip(0)))


def test_grey_is_rgb_with_equal_channels(network):
    grey = images(2, 1)
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(network, channels):
    for use in (network, network.logits, lambda x: network.distance(x, x)):
        with pytest.raises(InputError, match="train-features"):
            use(images(1, channels))
    with pytest.raises(InputError, match="train-features"):
        network.check(32, channels)
    network.check(32, 1)


def test_other_types_are_refused(network):
    with pytest.raises(InputError, match="uint8"):
        network(images(1).float())
    with pytest.raises(ValueError, match="dimensions"):
        network(images(1)[0])


def test_a_network_without_a_classifier_says_so():
    network = random_network("dinov2-s")
    assert network(images(1)).shape == (1, 384)
    with pytest.raises(InputError, match="classifier"):
        network.logits(images(1))


@pytest.mark.full
def test_distance(network):
    a, b = images(3), images(4)[:3]
    distances = network.distance(a, b)
    assert distances.shape == (3,)
    assert (distances > 0).all()
    assert torch.equal(distances, network.distance(b, a))
    assert torch.equal(network.distance(a, a), torch.zeros(3))
    assert torch.equal(distances[1:2], network.distance(a[1:2], b[1:2])), "of each pair alone"
    in_range = [x.float() / 127.5 - 1 for x in (a, b)]
    torch.testing.assert_close(network.distance(*in_range), distances, rtol=1e-3, atol=1e-5)


@pytest.mark.full
def test_distance_is_not_quantised_and_differentiable(network):
    """Twice a small step gives four times the distance, as path lengths assume."""
    a = images(1, 3, 64, 64).float() / 127.5 - 1
    step = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    one, two = (float(network.distance(a, a + size * step)) for size in (2e-3, 4e-3))
    assert two / one == pytest.approx(4, rel=0.1)
    b = (a + 0.1 * step).requires_grad_()
    distance = network.distance(a, b)
    distance.sum().backward()
    assert torch.allclose(distance.detach(), network.distance(a, b.detach()), rtol=1e-4)
    assert b.grad is not None
    assert b.grad.isfinite().all()
    assert b.grad.abs().max() > 0
    with torch.no_grad():
        assert network.distance(a, b - 0.1 * b.grad / b.grad.norm()) < distance


def test_distance_by_hand(network, monkeypatch):
    """Zhang et al. 2018, equation 1, on maps that are known."""
    x, y = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    x[0, :, 0, 0], y[0, :, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])  # at the other pixel both are zero
    maps = iter([[x, x], [y, x]])
    monkeypatch.setattr(network, "_maps", lambda values: next(maps))
    assert float(network.distance(images(1), images(1))) == pytest.approx((0.2**2 + 0.2**2) / 2)


def test_same_padding_of_tensorflow():
    assert [same_padding(224, 3, 2), same_padding(112, 5, 2), same_padding(225, 3, 2), same_padding(7, 5, 1)] == [
        (0, 1), (1, 2), (1, 1), (2, 2)]


def test_resize_of_the_fid():
    """TensorFlow 1: pixel i of n lies at i H / n, and the last pixels are repeated."""
    row = torch.tensor([0.0, 10.0, 30.0]).expand(1, 1, 3, 3)
    expected = torch.tensor([0.0, 5.0, 10.0, 20.0, 30.0, 30.0])
    assert torch.equal(resized(row, 6, "tf1")[0, 0, 0], expected)
    assert torch.equal(resized(row.mT, 6, "tf1")[0, 0, :, 0], expected)
    assert torch.equal(resized(row, 3, "tf1"), row)
    assert torch.equal(resized(torch.arange(8.0).expand(1, 1, 8, 8), 2, "tf1")[0, 0, 0], torch.tensor([0.0, 4.0])), "no filter"


def test_bicubic_resize_is_filtered_and_in_range():
    stripes = torch.tensor([0.0, 255.0]).repeat(32).expand(1, 1, 64, 64)
    small = resized(stripes, 16, "bicubic")
    assert (small[..., 2:-2] - 127.5).abs().max() < 10, "stripes become grey instead of an accident of phase"
    edge = (torch.arange(16) >= 8).float().expand(1, 1, 16, 16) * 255
    assert resized(edge, 224, "bicubic").aminmax() == (0, 255)
    assert resized(stripes, 64, "bicubic") is stripes


def test_positions_of_dinov2():
    """Exact at the size of the training; elsewhere interpolated with the class token's untouched."""
    trunk = DinoV2(384, 1)
    with torch.no_grad():
        ramp = torch.arange(37.0).repeat(37)
        trunk.positions.copy_(torch.cat([torch.tensor([7.0]), ramp])[:, None].expand(-1, 384))
        assert trunk.positions_for(37, 37) is trunk.positions
        found = trunk.positions_for(16, 16)[:, 0]
    assert found[0] == 7
    middle = found[1:].view(16, 16)[8, 3:13]
    centres = (torch.arange(3.0, 13.0) + 0.5) * (37 / 16.1) - 0.5
    assert (middle - centres).abs().max() < 0.06, "but for the error of the filter; 16 for 16.1 would give 0.18"


def test_clip_ignores_the_text_side():
    assert ClipVision.rename("transformer.resblocks.0.ln_1.weight") is None
    assert ClipVision.rename("visual.transformer.resblocks.3.attn.in_proj_bias") == "blocks.3.qkv.bias"
