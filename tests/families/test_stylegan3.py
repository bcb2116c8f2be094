"""StyleGAN3: its layers and filters against published numbers, its networks against formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from small_stylegan3 import CPU, networks, resolved, small
from torch import Tensor

from stylegan_dist.families.stylegan3.filters import attenuation, kaiser_beta, low_pass, radial_low_pass
from stylegan_dist.families.stylegan3.layout import layers_of
from stylegan_dist.families.stylegan3.networks import Generator
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.networks.layers import Precision
from stylegan_dist.training.build import build_discriminator, build_generator

# Published: size of the layers, where the up-sampling is by four, feature maps of T with 32768, first layer in low precision.
PUBLISHED = {
    256: ([36] * 3 + [52] * 2 + [84] * 2 + [148] * 3 + [276] * 3 + [256] * 2, [3, 5, 7, 10],
          [512] * 9 + [362, 256, 181, 128, 128], 3),
    512: ([36] * 2 + [52] * 2 + [84] * 2 + [148] * 2 + [276] * 2 + [532] * 3 + [512] * 2, [2, 4, 6, 8, 10],
          [512] * 7 + [483, 323, 215, 144, 96, 64, 64], 4),
    1024: ([36] * 2 + [52] * 2 + [84] + [148] * 2 + [276] * 2 + [532] + [1044] * 3 + [1024] * 2, [2, 4, 5, 7, 9, 10],
           [512] * 7 + [323, 203, 128, 81, 51, 32, 32], 5),
}


# Published numbers

@pytest.mark.parametrize(("resolution", "base", "of_t", "of_r", "of_d"), [
    (256, 16384, 23_320_443, 15_779_565, 24_001_089), (256, 32768, 28_472_133, 18_816_387, 28_864_129),
    (512, 32768, 24_873_519, 16_665_594, 28_982_849), (1024, 32768, 22_313_167, 15_093_151, 29_012_513),
])
def test_networks_have_the_published_sizes(resolution, base, of_t, of_r, of_d):
    shape, meta = SampleShape(resolution, 3), torch.device("meta")
    for variant, factor, of_g in (("t", 1, of_t), ("r", 2, of_r)):
        config = resolved(variant, f"generator.channel_base={factor * base}", resolution=resolution).config
        built = build_generator(config, shape, meta), build_discriminator(config, shape, meta)
        assert tuple(sum(p.numel() for p in network.parameters()) for network in built) == (of_g, of_d)
        assert built[0].num_ws == 16


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_layers_are_the_published_ones(resolution):
    sizes, fourfold, channels, low = PUBLISHED[resolution]
    layers = layers_of(resolution, 3, 32768, 512, 3, 14)
    assert [layer.after.size for layer in layers] == sizes
    assert [i for i, layer in enumerate(layers) if layer.up == 4] == fourfold
    assert {layer.up for layer in layers[:-1]} == {2, 4}
    assert {layer.down for layer in layers[:-1]} == {2}
    assert [layer.after.channels for layer in layers] == [*channels, 3]
    assert [i for i, layer in enumerate(layers) if layer.critical] == [12, 13, 14]
    policy = Precision(torch.bfloat16)
    dtypes = [policy.of_block(layer.after.rate, resolution, torch.float32) for layer in layers]
    assert dtypes == [torch.float32] * low + [torch.bfloat16] * (15 - low)
    assert (layers[0].before.size, layers[0].before.rate, layers[0].before.cutoff) == (36, 16, 2)
    pads = {(layer.up, layer.after.size == resolution): layer.padding for layer in layers[:-1]}
    assert pads == {(2, False): (9, 8), (4, False): (-6, -9), (2, True): (-11, -12)}
    of_r = layers_of(resolution, 3, 65536, 1024, 1, 14)
    pads = {(layer.up, layer.after.size == resolution): layer.padding for layer in of_r[:-1]}
    assert pads == {(2, False): (11, 10), (4, False): (-2, -5), (2, True): (-9, -10)}
    if resolution == 256:
        assert [layer.after.channels for layer in of_r] == [1024] * 9 + [724, 512, 362, 256, 256, 3]


def test_line_filters_have_the_published_taps():
    assert attenuation(12, 6, 32) == pytest.approx(67.173, abs=1e-3)
    assert kaiser_beta(attenuation(12, 6, 32)) == pytest.approx(6.4437, abs=1e-4)
    line = low_pass(12, 2.0, 6.0, 32, CPU)
    assert line[:6].tolist() == pytest.approx([.00079, .01002, .03895, .09241, .15653, .2013], abs=6e-6)
    for resolution in PUBLISHED:
        last = layers_of(resolution, 3, 32768, 512, 3, 14)[13].after
        assert attenuation(12, last.half_width, 2 * last.rate) == pytest.approx(26.202, abs=1e-3)
        assert kaiser_beta(attenuation(12, last.half_width, 2 * last.rate)) == pytest.approx(1.5401, abs=1e-4)
    assert kaiser_beta(20) == 0
    assert kaiser_beta(30) == pytest.approx(0.5842 * 9**0.4 + 0.07886 * 9)


@pytest.mark.parametrize("number", range(14))
def test_filters_are_windowed_sincs_and_jincs(number):
    """Against NumPy's window, and an integral for the Bessel function."""
    layer = layers_of(256, 3, 65536, 1024, 1, 14)[number]
    for taps, signal in zip(layer.taps, (layer.before, layer.after), strict=True):
        beta = kaiser_beta(attenuation(taps, signal.half_width, layer.rate))
        place, window = (np.arange(taps) - (taps - 1) / 2) / layer.rate, np.kaiser(taps, beta)
        expected = 2 * signal.cutoff * np.sinc(2 * signal.cutoff * place) * window
        line = low_pass(taps, signal.cutoff, signal.half_width, layer.rate, CPU).double().numpy()
        assert np.abs(line - expected / expected.sum()).max() < 1e-6
        assert line.sum() == pytest.approx(1, abs=1e-6)
    radius = np.hypot(place[:, None], place[None])
    angle = (np.arange(2000) + 0.5) * np.pi / 2000  # J1(x) is the mean of cos(angle - x sin(angle))
    bessel = np.cos(angle - 2 * np.pi * signal.cutoff * radius[..., None] * np.sin(angle)).mean(-1)
    expected = signal.cutoff * bessel / radius * np.outer(window, window)
    plane = radial_low_pass(taps, signal.cutoff, signal.half_width, layer.rate, CPU).double().numpy()
    assert np.abs(plane - expected / expected.sum()).max() < 1e-6
    assert np.array_equal(plane, np.rot90(plane))
    values = np.linalg.svd(plane, compute_uv=False)
    assert layer.critical or values[4] < 1e-6 * values[0], "it can be applied in a few separable parts"


# Networks

def test_initial_values():
    config = resolved("t", "generator.channel_max=256", "generator.channel_base=2048", "generator.w_dim=64").config
    g = build_generator(config, SampleShape(16, 3), CPU)
    waves = g.synthesis.input
    assert not waves.motion.weight.any()
    assert waves.motion.bias.tolist() == [1, 0, 0, 0]
    assert torch.equal(waves.transform, torch.eye(3))
    lengths, angles = waves.frequencies.norm(dim=1), torch.atan2(*waves.frequencies.unbind(1))
    for values in ((lengths / 2).square(), angles / (2 * math.pi) + 0.5, waves.phases + 0.5):  # all uniform in [0, 1]
        levels = (torch.arange(len(values)) + 0.5) / len(values)
        assert (values.sort().values - levels).abs().max() < 1.6 / len(values) ** 0.5, "Kolmogorov and Smirnov, 1 in 100"
    assert waves.weight.std().item() == pytest.approx(1, rel=0.02)
    for layer in g.synthesis.layers:
        assert layer.weight.std().item() == pytest.approx(1, rel=0.1)
        assert not layer.bias.any()
        assert torch.equal(layer.affine.bias, torch.ones_like(layer.affine.bias))
        assert layer.affine.weight.std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(g.synthesis.magnitudes, torch.ones(15))
    ws = g.styles(reference.normals(0, 2, 512).float(), None)
    _, energies = g.synthesis.measured(ws)
    assert energies[:, 0].mean().item() == pytest.approx(0.5, rel=0.1), "of a sine"
    assert ((energies > 0.01) & (energies < 3)).all(), "nothing grows; filters take away a part"


def expected_images(state: dict[str, Tensor], g: Generator, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images and mean squares by formulas: one sample at a time, explicit weights, zeros and filters."""
    embedded = [reference.normalized(z)]
    if labels is not None:
        one_hot = F.one_hot(labels, g.num_classes).double()
        embedded.append(reference.normalized(reference.dense(state, "mapping.embed", one_hot)))
    w = torch.cat(embedded, 1)
    for i in range(2):
        w = reference.lrelu(reference.dense(state, f"mapping.layers.{i}", w, 0.01))
    made, energies = [], []
    for row in w:
        c, s, tx, ty = reference.dense(state, "synthesis.input.motion", row[None])[0]
        length = torch.sqrt(c * c + s * s)
        c, s, tx, ty = c / length, s / length, tx / length, ty / length
        size, rate = 36, 16
        line = (torch.arange(size).double() - (size - 1) / 2) / 16
        rate = g.synthesis.layers[0].layer.before.rate
        assert (g.synthesis.layers[0].layer.before.size, rate) == (36, 16)
        px, py = line[None, :] - tx, line[:, None] - ty       # first the translation, then the rotation
        px, py = c * px - s * py, s * px + c * py
        f, phase = state["synthesis.input.frequencies"], state["synthesis.input.phases"]
        angle = f[:, :1, None] * px + f[:, 1:, None] * py + phase[:, None, None]
        mix = state["synthesis.input.weight"]
        x = torch.einsum("oc,chw->ohw", mix / math.sqrt(len(mix)), torch.sin(2 * math.pi * angle))
        of_row = []
        for i, module in enumerate(g.synthesis.layers):
            layer, name = module.layer, f"synthesis.layers.{i}"
            of_row.append((x * x).mean())
            style = reference.dense(state, f"{name}.affine", row[None])[0]
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            if layer.rgb:
                weight = weight * style[None, :, None, None] / math.sqrt(len(style))
            else:
                style = style / torch.sqrt((style * style).mean())
                weight = weight / torch.sqrt((weight * weight).mean(dim=(1, 2, 3), keepdim=True))
                weight = weight * style[None, :, None, None]
                weight = weight / torch.sqrt((weight * weight).sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
            weight = weight / torch.sqrt(state["synthesis.magnitudes"][i])
            x = F.conv2d(F.pad(x, [layer.kernel - 1] * 4)[None], weight)[0] + bias[:, None, None]
            if not layer.rgb:
                up, down = (tap.double() for tap in module.filters(CPU))
                sparse = torch.zeros(len(x), x.shape[1] * layer.up, x.shape[2] * layer.up, dtype=torch.float64)
                sparse[:, ::layer.up, ::layer.up] = x
                low, high = layer.padding
                sparse = F.pad(sparse, (low, high, low, high))
                x = fir(reference.lrelu(fir(sparse, up * layer.up)), down)[:, ::layer.down, ::layer.down]
        made.append(x / 4)
        energies.append(torch.stack(of_row))
    return torch.stack(made), torch.stack(energies)


def fir(x: Tensor, taps: Tensor) -> Tensor:
    """Convolve each map where the filter fits; a line in both directions."""
    plane = taps if taps.ndim == 2 else taps[:, None] * taps[None]
    return F.conv2d(x[:, None], plane.flip([0, 1])[None, None])[:, 0]


@pytest.mark.parametrize(("variant", "classes"), [("t", 3), ("r", 0)])
def test_the_generator_is_what_the_paper_says(variant, classes):
    g, _ = networks(variant, classes)
    state, z = reference.weights_of(g), reference.normals(7, 2, 8)
    labels = torch.tensor([0, 2]) if classes else None
    images, energies = g.synthesis.measured(g.styles(z, labels))
    expected, squares = expected_images(state, g, z, labels)
    assert images.shape == (2, 3, 16, 16)
    assert reference.difference(images, expected) < 1e-10
    assert reference.difference(energies, squares) < 1e-6  # in float32
    assert torch.equal(g(z, labels), images)
    cotangent = reference.normals(8, 2, 3, 16, 16)
    names, parameters = zip(*g.named_parameters(), strict=True)
    found = torch.autograd.grad((images * cotangent).sum(), parameters)
    wanted = torch.autograd.grad((expected * cotangent).sum(), [state[name] for name in names])
    for name, one, other in zip(names, found, wanted, strict=True):
        assert other.any(), name
        assert reference.difference(one, other) < 1e-9, name


def decibel(signal: Tensor, error: Tensor) -> float:
    return 10 * math.log10(float(signal.square().mean() / error.square().mean()))


@pytest.mark.parametrize(("variant", "least"), [("t", 60), ("r", 110)])
def test_translation_of_the_input_translates_the_image(variant, least):
    g = wide_generator(variant)
    w = g.latents(0, "test", torch.arange(2), None)
    moved = torch.eye(3).repeat(2, 1, 1)
    moved[0, 0, 2], moved[1, 1, 2] = -4 / 32, 4 / 32  # right, and up
    plain, shifted = g.synthesize(w, None), g.moved(w, None, moved)
    right = shifted[0, :, :, 4:] - plain[0, :, :, :-4]
    up = shifted[1, :, :-4] - plain[1, :, 4:]
    assert decibel(plain, right[:, 8:-8, 8:-8]) > least
    assert decibel(plain, up[:, 8:-8, 8:-8]) > least
    g.synthesis.input.transform.copy_(moved[0])
    assert torch.equal(g.synthesize(w[:1], None), g.moved(w[:1], None, moved[:1])), "the buffer says the same"


@pytest.mark.parametrize(("variant", "least", "most"), [("t", 0, 20), ("r", 110, 400)])
def test_rotation_of_the_input_rotates_the_image(variant, least, most):
    g = wide_generator(variant)
    w = g.latents(0, "test", torch.arange(2), None)
    quarter = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    plain, rotated = g.synthesize(w, None), g.moved(w, None, quarter)
    assert least < decibel(plain, rotated - plain.rot90(3, (2, 3))) < most


def wide_generator(variant: str) -> Generator:
    overrides = ("generator.channel_base=1024", "generator.channel_max=32", "generator.z_dim=16", "generator.w_dim=16")
    return build_generator(resolved(variant, *overrides, resolution=32).config, SampleShape(32, 3),
                           CPU).requires_grad_(False)


def test_frequencies_that_samples_cannot_hold_fade_out():
    g, _ = networks("t")
    waves, w = g.synthesis.input, reference.normals(0, 1, 8)
    zoomed = [waves(w, torch.diag(torch.tensor([zoom, zoom, 1.0]))) for zoom in (1.0, 1e3)]
    assert zoomed[0].std() > 0.1
    assert not zoomed[1].any()


@pytest.mark.parametrize("variant", ["t", "r"])
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.full)])
def test_low_precision_is_near_and_recomputation_changes_no_bit(variant, dtype):
    made, gradients = {}, []
    for recompute, low in ((0, "fp32"), (0, dtype), (8, dtype)):
        config = small(variant, f"run.recompute={recompute}", f"precision.dtype={low}", "precision.top_resolutions=1").config
        g = build_generator(config, SampleShape(16, 3), CPU)
        images = g(reference.normals(0, 4, 8).float())
        assert images.dtype == torch.float32
        made[low] = images
        if low == dtype:
            gradients.append(torch.autograd.grad(images.square().sum(), list(g.parameters())))
    assert 0 < reference.difference(made[dtype].double(), made["fp32"].double()) < 0.05
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_truncation():
    g, _ = networks("t")
    index = torch.arange(2)
    w, mean = g.latents(0, "x", index, None), g.latents(0, "x", index, None, truncation=0.0)
    assert reference.difference(mean, g.w_avg.expand(2, -1)) < 1e-12
    assert reference.difference(g.latents(0, "x", index, None, 0.5), (w + g.w_avg) / 2) < 1e-12
    assert torch.equal(g.sample(0, "x", index, None, Sampling()), g.synthesize(w, None))
