"""DCGAN: batch normalisation of groups, networks against formulas, standing statistics, and a run of it."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
import torch.nn.functional as F
from launching import TINY_DCGAN
from parts import gradients_in_parts
from small_families import batch_of, check_continued, index_of, with_random_networks
from torch import Tensor

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.families.dcgan.networks import STANDING_GROUPS, Discriminator, Generator, GroupBatchNorm
from stylegan_dist.networks.generator import SampleShape, Sampling, draw_samples
from stylegan_dist.objective.game import Objective
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ranks import World
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve

CPU = torch.device("cpu")
BATCH, CLASSES, GROUP = 8, 3, 2
SMALL = ("generator.family=dcgan", "generator.z_dim=6", "generator.class_dim=3", "generator.channel_base=32",
         "generator.channel_max=8", f"generator.norm_group={GROUP}", f"run.batch={BATCH}", "run.batch_gpu=8")


def resolved(*overrides: str, resolution: int = 16, classes: int = 0, world: int = 1):
    index = index_of(resolution, classes)
    return resolve(load_config(None, ["data.shards=somewhere", *overrides]), index, World(size=world)).config


def objective_of(*overrides: str, classes: int = 0) -> Objective:
    """Of networks with random weights, in float64."""
    config = resolved(*SMALL, *overrides, classes=classes)
    return with_random_networks(Objective, config, SampleShape(16, 3, classes))


def real_of(classes: int = 0) -> MicroBatch:
    return batch_of(reference.normals(0, BATCH, 3, 16, 16), classes)


def normalized(layer: GroupBatchNorm, x: Tensor) -> Tensor:
    """Each channel of each group by itself."""
    result = torch.empty_like(x)
    for start in range(0, len(x), GROUP):
        for c in range(x.shape[1]):
            values = x[start:start + GROUP, c]
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
            result[start:start + GROUP, c] = layer.gain[c] * (values - mean) / torch.sqrt(variance + 1e-5) + layer.bias[c]
    return result


def painted(g: Generator, z: Tensor, labels: Tensor | None) -> Tensor:
    x = z.double()
    if labels is not None:
        x = torch.cat([x, g.embed.weight[:, labels].t()], 1)
    x = torch.clamp(normalized(g.norm, (x @ g.dense.weight.t()).view(len(z), -1, 4, 4)), min=0)
    size = g.b8.conv.weight.shape[-1]
    for stage in (g.b8, g.b16):
        x = F.conv_transpose2d(x, stage.conv.weight, stride=2, padding=size // 2 - (size == 4), output_padding=size - 4)
        if stage is not g.b16:
            x = torch.clamp(normalized(stage.norm, x), min=0)
    return torch.tanh(x)


def judged(d: Discriminator, images: Tensor, labels: Tensor | None) -> Tensor:
    size = d.b16.conv.weight.shape[-1]
    x = F.conv2d(images, d.b16.conv.weight, stride=2, padding=size // 2 - (size == 4))
    x = torch.where(x > 0, x, 0.2 * x)
    x = normalized(d.b8.norm, F.conv2d(x, d.b8.conv.weight, stride=2, padding=size // 2 - (size == 4)))
    x = torch.where(x > 0, x, 0.2 * x)
    logits = torch.einsum("nchw,chw->n", x, d.dense.weight[0].view(x.shape[1:]))
    return logits if labels is None else logits + torch.einsum("nchw,cn->n", x, d.embed.weight[:, labels])


@pytest.mark.parametrize(("kernel", "base", "most", "sizes"), [
    # The published G normalises each of the 1024 x 4 x 4 first features by itself; here a map has one gain and one bias.
    (5, "auto", 1024, (18_885_760 - 2 * 1024 * 15, 17_232_768)),
    (4, 2048, 512, (3_576_704, 2_765_568)),
])
def test_published_sizes(kernel, base, most, sizes):
    config = resolved("generator.family=dcgan", f"generator.kernel={kernel}", f"generator.channel_base={base}",
                      f"generator.channel_max={most}", resolution=64)
    built = (build(config, SampleShape(64, 3), torch.device("meta")) for build in (build_generator, build_discriminator))
    assert tuple(sum(p.numel() for p in network.parameters()) for network in built) == sizes


def test_initial_values():
    config, shape = resolved("generator.family=dcgan", classes=10), SampleShape(16, 3, 10)
    for build in (build_generator, build_discriminator):
        for name, p in build(config, shape, CPU).named_parameters():
            if name.endswith("bias"):
                assert not p.any()
            elif p.numel() > 100:
                assert p.std().item() == pytest.approx(0.02, rel=0.15), name
                assert p.mean().item() == pytest.approx(1 if name.endswith("gain") else 0, abs=0.005), name


def layer_of(group: int, channels: int = 3) -> GroupBatchNorm:
    return reference.randomize(GroupBatchNorm(channels, 0, group), 0).double()


def test_one_group_is_batch_normalisation():
    layer, torchs = layer_of(6), torch.nn.BatchNorm2d(3).double()
    torchs.load_state_dict({"weight": layer.gain, "bias": layer.bias}, strict=False)
    x = reference.normals(1, 6, 3, 4, 4).requires_grad_()
    weights = reference.normals(2, 6, 3, 4, 4)
    values = [(network(x), list(network.parameters())) for network in (layer, torchs)]
    assert reference.difference(values[0][0], values[1][0]) < 1e-12
    gradients = [torch.autograd.grad((y.square() * weights).sum(), [x, *parameters]) for y, parameters in values]
    assert max(reference.difference(a, b) for a, b in zip(*gradients, strict=True)) < 1e-12
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_groups_are_apart_to_the_last_bit():
    layer = layer_of(GROUP)
    x = reference.normals(1, 6, 3, 4, 4) * torch.arange(1, 7)[:, None, None, None]
    assert reference.difference(layer(x), normalized(layer, x)) < 1e-12
    layer, x = layer.float(), x.float()
    assert torch.equal(layer(x), torch.cat([layer(x[i:i + GROUP]) for i in range(0, 6, GROUP)]))
    with pytest.raises(AssertionError, match="multiple of the group"):
        layer(x[:3])


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_losses_and_gradients(kernel, classes):
    """Of all parameters, against networks of PyTorch's convolutions and batch normalisation written out."""
    objective = objective_of(f"generator.kernel={kernel}", classes=classes)
    g, d, real = objective.generator, objective.discriminator, real_of(classes)

    def fakes(phase: str) -> tuple[Tensor, Tensor | None]:
        labels, z = objective.labels(phase, real), g.draw(0, phase, real.index)
        assert -1 <= z.min() < -0.8 < 0.8 < z.max() < 1
        return painted(g, z, labels), labels

    images, labels = fakes("d_main")
    of_d = (reference.DISCRIMINATOR_LOSS["nonsaturating"](judged(d, real.images, real.labels),
                                                          judged(d, images.detach(), labels)))
    of_g = reference.GENERATOR_LOSS["nonsaturating"](None, judged(d, *fakes("g_main")))
    for share, expected, network in ((objective.d_main(real).share, of_d.mean(), d),
                                     (objective.g_main(real).share, of_g.mean(), g)):
        assert reference.difference(share, expected) < 1e-12
        pairs = zip(*(torch.autograd.grad(value, list(network.parameters())) for value in (share, expected)), strict=True)
        assert max(reference.difference(a, b) for a, b in pairs) < 1e-9


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("phase", ["g_main", "d_main", "d_penalty"])
def test_micro_batches_add_up(phase, parts):
    objective = objective_of("loss.r1_gamma=0.3", "loss.r2_gamma=0.2", classes=CLASSES)
    loss, = next(one.losses for one in objective.phases() if one.name == phase)
    parameters = list((objective.generator if phase == "g_main" else objective.discriminator).parameters())
    pairs = gradients_in_parts(loss, real_of(CLASSES), parts, parameters)
    assert max(reference.difference(a, b) for a, b in pairs if b.any()) < 1e-9


@pytest.mark.parametrize("phase", ["g_main", "d_main"])
def test_recomputed_activations_change_no_bit(phase):
    gradients = []
    for recompute in (0, 8):
        config = resolved(*SMALL, f"run.recompute={recompute}", "precision.dtype=bf16", "precision.top_resolutions=1")
        g, d = build_generator(config, SampleShape(16, 3), CPU), build_discriminator(config, SampleShape(16, 3), CPU)
        real = real_of()
        loss = getattr(Objective(config, g, d, None), phase)
        share = loss(MicroBatch(real.images.float(), None, real.index)).share
        assert share.dtype == torch.float32
        gradients.append(torch.autograd.grad(share, list((g if phase == "g_main" else d).parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_sample_does_not_depend_on_its_batch(classes):
    g = objective_of(classes=classes).generator.requires_grad_(False)
    index = torch.arange(7)
    labels = index % classes if classes else None
    one, other = (draw_samples(g, 0, "x", index, labels, Sampling(batch=batch)) for batch in (7, 2))
    assert reference.difference(one, other) < 1e-12

    # By hand: the means of what each layer sees when groups of fixed latents go through.
    seen: dict[int, list[Tensor]] = {}
    hooks = [m.register_forward_pre_hook(lambda layer, x: seen.setdefault(layer.number, []).append(x[0]))
             for m in g.modules() if isinstance(m, GroupBatchNorm)]
    for i in range(STANDING_GROUPS):
        fixed = torch.arange(i * GROUP, (i + 1) * GROUP)
        g(g.draw(0, "dcgan.standing", fixed), fixed % classes if classes else None)
    for hook in hooks:
        hook.remove()
    assert sorted(seen) == [0, 1]
    for number, inputs in seen.items():
        moments = [(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in inputs]
        expected = [torch.stack(values).mean(0) for values in zip(*moments, strict=True)]
        assert max(reference.difference(a, b) for a, b in zip(g.standing()[number], expected, strict=True)) < 1e-12


def test_standing_statistics_follow_the_weights():
    g = objective_of().generator.requires_grad_(False)
    index = torch.arange(3)
    draws = {"first": draw_samples(g, 0, "x", index)}
    kept = g.standing()
    assert g.standing() is kept
    twin, state = copy.deepcopy(g), copy.deepcopy(g.state_dict())
    g.dense.weight.mul_(-1)
    twin.load_state_dict(g.state_dict())
    draws["changed"], draws["loaded"] = draw_samples(g, 0, "x", index), draw_samples(twin, 0, "x", index)
    assert reference.difference(draws["changed"], draws["first"]) > 1e-3
    assert torch.equal(draws["changed"], draws["loaded"])
    g.load_state_dict(state)
    assert torch.equal(draw_samples(g, 0, "x", index), draws["first"])


def test_rules_and_refusals():
    config = resolved("generator.family=dcgan", "run.batch=24", "run.batch_gpu=12", resolution=32)
    assert (config.generator.norm_group, config.discriminator.norm_group) == (12, 12)
    assert (config.generator.channel_base, config.discriminator.channel_base, config.optim.g.lr) == (2048, 2048, 2e-4)
    for overrides, message in (
        (("run.batch_gpu=1",), r"must be a multiple of 2, so that the groups of generator\.norm_group=2 and .* never split"),
        (("generator.norm_group=3",), r"run\.batch_gpu=8 .* generator\.norm_group=3"),
        (("generator.channel_base=7",), r"generator\.channel_base=7 leaves no feature maps at 8 px"),
        (("generator.kernel=3",), r"generator\.kernel"),
    ):
        with pytest.raises(InputError, match=message):
            resolved(*SMALL, *overrides)
    with pytest.raises(InputError, match=r"use .*smaller groups of images|number of processes out of"):
        resolved(*SMALL, "run.batch_gpu=auto", "generator.norm_group=8", world=2)
    with pytest.raises(InputError, match=r"truncation 0\.7 is not possible"):
        objective_of().generator.sample(0, "x", torch.arange(3), None, Sampling(truncation=0.7))


def test_a_run_is_continued_and_drawn_with(labelled_shards, tmp_path, capsys):
    check_continued(tmp_path, [*TINY_DCGAN, f"data.shards={labelled_shards}"], (0.048, 0.12))
    draw = ["generate", str(tmp_path / "whole"), "--seeds", "0-3", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(draw) == 0
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 4
    capsys.readouterr()
    assert main(["train", *TINY_DCGAN, f"data.shards={labelled_shards}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "batch normalisation of 4 images" in text
    assert "peak of tensors on each rank" in text
