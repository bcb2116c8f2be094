"""R3GAN: its networks against closed forms, its step, and a run of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from launching import ROOT, TINY, TINY_R3GAN
from parts import gradients_in_parts
from safetensors.torch import load_file
from small_families import batch_of, check_continued, index_of
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stylegan_dist import ops
from stylegan_dist.augment import augmentation_of
from stylegan_dist.cli import main
from stylegan_dist.config import load_config, schedules_of
from stylegan_dist.config.schedules import Schedule
from stylegan_dist.errors import InputError
from stylegan_dist.families.r3gan.networks import RECTIFIER_GAIN, Block, Discriminator, Generator
from stylegan_dist.families.r3gan.objective import R3GanObjective
from stylegan_dist.families.stylegan2.objective import StyleGan2Objective
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.networks.layers import Precision
from stylegan_dist.ops import native
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState

CPU = torch.device("cpu")
BATCH = 8
SMALL = ("generator.family=r3gan", "generator.z_dim=6", "generator.class_dim=3", "generator.channel_base=64",
         "generator.channel_max=8", "generator.group_width=4", f"run.batch={BATCH}", "run.batch_gpu=2")


def resolved(*overrides: str, resolution: int = 16, classes: int = 0, preset: Path | None = None):
    return resolve(load_config(preset, ["data.shards=somewhere", *overrides]), index_of(resolution, classes)).config


def networks(*overrides: str, resolution: int = 16, classes: int = 0, random: bool = False) -> tuple[Generator, Discriminator]:
    """As they begin, or with random weights; in float64."""
    config, shape = resolved(*SMALL, *overrides, resolution=resolution, classes=classes), SampleShape(resolution, 3, classes)
    g, d = build_generator(config, shape, CPU), build_discriminator(config, shape, CPU)
    if random:
        for seed, network in enumerate((g, d)):
            reference.randomize(network, seed)
            for p in network.parameters():
                p.data /= max(p[0].numel(), 4) ** 0.5  # nothing grows without bound
    return g.double(), d.double()


@pytest.mark.parametrize(("preset", "resolution", "classes", "sizes"), [
    ("cifar10", 32, 10, (20_781_952, 21_280_512)), ("cifar10", 32, 0, (20_732_160, 20_683_776)),
    ("ffhq64", 64, 0, (22_429_824, 22_381_440)), ("ffhq256", 256, 0, (23_057_952, 23_009_568)),
    ("imagenet32", 32, 1000, (82_914_304, 86_548_992)), ("imagenet64", 64, 1000, (103_570_432, 107_205_120)),
])
def test_presets_have_the_published_sizes(preset, resolution, classes, sizes):
    config = resolved(f"data.conditional={str(classes > 0).lower()}", resolution=resolution, classes=classes,
                      preset=ROOT / f"launch/presets/r3gan-{preset}.yaml")
    shape = SampleShape(resolution, 3, classes)
    meta = torch.device("meta")
    built = build_generator(config, shape, meta), build_discriminator(config, shape, meta)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in built) == sizes
    policy = Precision(torch.bfloat16, config.precision.top_resolutions)
    lowest = {256: 32}.get(resolution, 8)  # as published
    dtypes = [policy.of_block(r, resolution, torch.float32) for r in built[0].resolutions]
    assert dtypes == [torch.bfloat16 if r >= lowest else torch.float32 for r in built[0].resolutions]


@pytest.mark.parametrize(("preset", "batch", "gamma", "half_life", "p", "until"), [
    ("cifar10", 512, 0.05, 5000, 0.55, 20_000), ("ffhq64", 256, 2, 500, 0.3, 20_000), ("ffhq256", 256, 150, 500, 0.3, 20_000),
    ("imagenet32", 4096, 0.5, 50_000, 0.5, 200_000), ("imagenet64", 4096, 1, 50_000, 0.4, 200_000),
])
def test_presets_have_the_published_schedules(preset, batch, gamma, half_life, p, until):
    config = load_config(ROOT / f"launch/presets/r3gan-{preset}.yaml")
    assert (config.run.batch, config.loss.adversarial, config.loss.penalty_interval) == (batch, "relativistic", 1)
    assert schedules_of(config) == {
        **{f"loss.r{i}_gamma": Schedule("cosine", gamma, gamma / 10, until) for i in (1, 2)},
        **{f"optim.{name}.lr": Schedule("cosine", 2e-4, 5e-5, until) for name in "gd"},
        **{f"optim.{name}.betas[1]": Schedule("cosine", 0.9, 0.99, until) for name in "gd"},
        "ema.half_life_kimg": Schedule("cosine", 0, half_life, until), "augment.p": Schedule("cosine", 0, p, until),
    }
    assert augmentation_of(config.augment).multipliers == {"blit": 1, "geom": 1, "color": 0.5, "cutout": 1}
    assert [config.optim.g.betas[0], config.optim.d.betas[0], config.ema.rampup] == [0, 0, 0]


def test_a_block_is_what_the_paper_says():
    block = reference.randomize(Block(6, 3, 8, None), 0).double()
    x = reference.normals(1, 2, 6, 5, 5)
    w1, w2, w3 = (layer.weight for layer in (block.conv1, block.conv2, block.conv3))
    inner = F.leaky_relu(torch.einsum("oi,nihw->nohw", w1[:, :, 0, 0], x) + block.act1.bias[:, None, None], 0.2)
    parts = [F.conv2d(inner[:, i:i + 3], w2[i:i + 3], padding=1) for i in range(0, 12, 3)]
    inner = F.leaky_relu(torch.cat(parts, 1) + block.act2.bias[:, None, None], 0.2)
    expected = x + torch.einsum("oi,nihw->nohw", w3[:, :, 0, 0], inner)
    assert reference.difference(block(x), expected) < 1e-12
    assert sum(p.numel() for p in block.parameters()) == 4 * 6**2 + 36 * 6**2 // 4 + 4 * 6


def test_initial_values():
    config = resolved("generator.family=r3gan", "generator.channel_max=256", "generator.channel_base=4096", classes=10)
    shape = SampleShape(16, 3, 10)
    g, d = build_generator(config, shape, CPU), build_discriminator(config, shape, CPU)
    shrunk = RECTIFIER_GAIN * 6**-0.25  # three resolutions of two blocks
    assert math.isclose(RECTIFIER_GAIN, math.sqrt(2 / 1.04))
    for network in (g, d):
        for name, p in network.named_parameters():
            if name.endswith("bias") or "conv3" in name:
                assert not p.any(), name
            elif "blocks" in name:
                assert p.std().item() == pytest.approx(shrunk / p[0].numel() ** 0.5, rel=0.05), name
    of_g = (g.dense.weight, 128**-0.5), (g.embed.weight, 10**-0.5), (g.basis, 1), (g.torgb.weight, 1 / 16)
    of_d = (d.dense.weight, 1 / 16), (d.embed.weight, 10**-0.5 / 16), (d.basis, 1 / 4), (d.fromrgb.weight, 3**-0.5)
    for weight, std in (*of_g, *of_d):
        assert weight.std().item() == pytest.approx(std, rel=0.12)


@pytest.mark.parametrize("classes", [0, 3])
def test_networks_begin_as_linear_functions(classes):
    """Every block is the identity. So R1 is the squared length of one vector, the same for all images of a class."""
    g, d = networks(classes=classes)
    x = reference.normals(0, 2, 8, 4, 4)
    assert all(torch.equal(block(x), x) for block in g.b4.blocks)
    labels = torch.full((4,), classes - 1) if classes else None
    a, b = reference.normals(1, 4, 3, 16, 16), reference.normals(2, 4, 3, 16, 16)
    assert reference.difference(d(2 * a - 3 * b, labels), 2 * d(a, labels) - 3 * d(b, labels)) < 1e-12

    # The logit by hand: 1x1 layers, and the filter at each resolution.
    x = torch.einsum("oi,nihw->nohw", d.fromrgb.weight[:, :, 0, 0], a)
    for r in (16, 8):
        x = ops.downsample2d(x)
        if r == 16:
            x = torch.einsum("oi,nihw->nohw", d.b16.width.weight[:, :, 0, 0], x)
    features = torch.einsum("nchw,chw->nc", x, d.basis) @ d.dense.weight.t()
    logits = features[:, 0] if labels is None else features @ d.embed.weight[:, classes - 1]
    assert reference.difference(d(a, labels), logits) < 1e-12

    units = torch.eye(3 * 16 * 16).double().view(-1, 3, 16, 16)
    direction = d(units, None if labels is None else labels[:1].expand(len(units)))
    config = resolved(*SMALL, "loss.r1_gamma=2", "loss.r2_gamma=4", classes=classes)
    objective = R3GanObjective(config, g, d, torch.tensor([8] * classes) if classes else None)
    real = batch_of(a.repeat(2, 1, 1, 1))
    real.labels = None if labels is None else labels.repeat(2)
    statistics = objective.d_main_with_penalties(real).statistics
    assert statistics["loss/r1"].item() == pytest.approx(1 * direction.square().sum().item(), rel=1e-12)
    assert statistics["loss/r2"].item() == pytest.approx(2 * direction.square().sum().item(), rel=1e-12)


class Flops(TorchDispatchMode):
    """Counts those of convolutions and matrix products. PyTorch's own counter cannot look into a gradient penalty."""

    total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def test_flops_of_a_step():
    """4 forward passes of G and 15 of D, instead of 4 and 9 without penalties: once, not twice for main loss and penalty."""
    # Whole groups, because the counter takes grouped backward passes for whole ones. The filters count little at this width.
    overrides = ("generator.channel_max=64", "generator.channel_base=1024", "generator.group_width=128")
    g, d = networks(*overrides)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16))

    def flops(work) -> float:
        with Flops() as counter:
            work()
        return counter.total

    def step(*more: str) -> float:
        objective = R3GanObjective(resolved(*SMALL, *overrides, *more), g, d, None)
        total = 0.0
        for phase in objective.phases():
            g.requires_grad_(phase.network == "g"), d.requires_grad_(phase.network == "d")
            total += flops(lambda phase=phase: [loss(real).share.backward() for loss in phase.losses])
        return total

    with native.using("reference"), torch.no_grad():
        of_g, of_d = flops(lambda: g(torch.zeros(BATCH, 6))), flops(lambda: d(real.images))
    with native.using("reference"):
        assert step("loss.r1_gamma=0", "loss.r2_gamma=0") == pytest.approx(4 * of_g + 9 * of_d, rel=0.02)
        assert step() == pytest.approx(4 * of_g + 15 * of_d, rel=0.02)


@pytest.mark.parametrize("classes", [0, 3])
def test_one_pass_for_game_and_penalty_is_their_sum(classes):
    g, d = networks(classes=classes, random=True)
    counts = torch.tensor([8] * classes) if classes else None
    objective = R3GanObjective(resolved(*SMALL, "loss.r1_gamma=0.3", "loss.r2_gamma=0", classes=classes), g, d, counts)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16), classes)
    apart, together = [objective.d_main(real), objective.d_penalty(real)], objective.d_main_with_penalties(real)
    total = apart[0].share + apart[1].share
    assert reference.difference(together.share, total) < 1e-12
    gradients = [torch.autograd.grad(share, list(d.parameters())) for share in (total, together.share)]
    assert max(reference.difference(a, b) for a, b in zip(*gradients, strict=True)) < 1e-10
    assert together.statistics.keys() == apart[0].statistics.keys() | apart[1].statistics.keys()


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("phase", ["g_main", "d_main"])
def test_micro_batches_add_up(phase, parts):
    g, d = networks(classes=3, random=True)
    config = resolved(*SMALL, "loss.r1_gamma=0.3", "loss.r2_gamma=0.2", classes=3)
    objective = R3GanObjective(config, g, d, torch.tensor([8] * 3))
    loss, = next(one.losses for one in objective.phases() if one.name == phase)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16), 3)
    pairs = gradients_in_parts(loss, real, parts, list((g if phase == "g_main" else d).parameters()))
    assert max(reference.difference(a, b) for a, b in pairs) < 1e-10


@pytest.mark.parametrize("phase", ["g_main", "d_main"])
def test_recomputed_activations_change_no_bit(phase):
    gradients = []
    for recompute in (0, 4):
        config = resolved(*SMALL, f"run.recompute={recompute}", "precision.dtype=bf16", "precision.top_resolutions=1")
        g, d = build_generator(config, SampleShape(16, 3), CPU), build_discriminator(config, SampleShape(16, 3), CPU)
        objective = R3GanObjective(config, g, d, None)
        loss, = next(one.losses for one in objective.phases() if one.name == phase)
        share = loss(batch_of(reference.normals(0, BATCH, 3, 16, 16).float())).share
        gradients.append(torch.autograd.grad(share, list((g if phase == "g_main" else d).parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_low_precision_ends_at_images_and_logits():
    config = resolved(*SMALL, "precision.dtype=bf16", "precision.top_resolutions=2")
    g, d = build_generator(config, SampleShape(16, 3), CPU), build_discriminator(config, SampleShape(16, 3), CPU)
    seen = {}

    def look(block: Block, inputs: tuple, output: Tensor) -> None:
        seen[stages[block]] = output.dtype

    stages = {module: name.partition(".blocks")[0] for prefix, network in (("g", g), ("d", d))
              for name, module in network.named_modules(prefix=prefix) if isinstance(module, Block)}
    for block in stages:
        block.register_forward_hook(look)
    images = g(torch.zeros(2, 6))
    assert (images.dtype, d(images).dtype) == (torch.float32, torch.float32)
    assert seen == {f"{name}.b{r}": torch.float32 if r == 4 else torch.bfloat16 for name in "gd" for r in (4, 8, 16)}


def test_truncation_does_not_exist():
    g, _ = networks()
    index = torch.arange(3)
    with pytest.raises(InputError, match=r"truncation 0\.7 is not possible: R3GAN has no mapping network"):
        g.sample(0, "x", index, None, Sampling(truncation=0.7))
    assert torch.equal(g.synthesize(g.latents(0, "x", index, None), None), g.sample(0, "x", index, None, Sampling()))


@pytest.mark.parametrize(("overrides", "message"), [
    (("generator.group_width=5",), r"generator\.group_width=5 does not divide the 16 feature maps .* at 4 px"),
    (("discriminator.channel_base=12", "discriminator.group_width=1"), r"discriminator\.channel_base=12 leaves no .* at 16 px"),
    (("generator.w_dim=8",), r"generator\.w_dim"),
    (("loss.path_length_weight=1",), r"loss\.path_length_weight"),
])
def test_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        resolved(*SMALL, *overrides)


def test_rules():
    config = resolved("generator.family=r3gan", resolution=64)
    assert (config.loss.adversarial, config.loss.r1_gamma, config.loss.r2_gamma, config.loss.penalty_interval) == (
        "relativistic", 2, 2, 1)
    assert (config.optim.g.lr, config.optim.d.lr) == (2e-4, 2e-4)
    assert resolved(*SMALL, "generator.blocks=3").discriminator.blocks == 3
    assert resolved(*SMALL, "loss.r1_gamma={cosine: [2, 1], until_kimg: 3}").loss.r2_gamma.first == 2


def test_lazy_penalties_have_a_phase_of_their_own():
    index = index_of(16, 0)
    config = load_config(None, ["data.shards=somewhere", *SMALL, "loss.penalty_interval=8"])
    state = TrainState(resolve(config, index), index, CPU)
    assert [(phase.name, phase.interval) for phase in state.phases] == [("g_main", 1), ("d_main", 1), ("d_penalty", 8)]
    assert state.optimizers["d"].param_groups[0]["lr"] == pytest.approx(2e-4 * 8 / 9)


@pytest.mark.parametrize("discriminator", ["r3gan", "stylegan2"])
def test_its_objective_trains_the_networks_of_stylegan2(discriminator):
    """Style-based generators paint without noise maps then, and a relativistic game ignores the discriminator's last bias."""
    sizes = {"channel_base": 128, "channel_max": 8}
    g = stylegan2_generator(16, 3, z_dim=6, w_dim=6, mapping_layers=2, **sizes)
    d = networks()[1].float() if discriminator == "r3gan" else stylegan2_discriminator(16, 3, mbstd_group=2, **sizes)
    reference.randomize(g, 1), reference.randomize(d, 2)
    objective = R3GanObjective(resolved(*SMALL), g, d, None)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16).float())
    for phase in objective.phases():
        network = g if phase.network == "g" else d
        for loss in phase.losses:
            loss(real).share.backward()
        unused = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        assert all("noise_strength" in name or name == "out.bias" for name in unused), unused


def test_its_discriminator_serves_the_objective_of_stylegan2():
    sizes = ("generator.z_dim=6", "generator.w_dim=6", "generator.channel_base=128", "generator.channel_max=8")
    config = resolved(*sizes, f"run.batch={BATCH}", "run.batch_gpu=4", "loss.r2_gamma=0.5", "loss.penalty_interval=4")
    g, d = build_generator(config, SampleShape(16, 3), CPU), networks(random=True)[1].float()
    objective = StyleGan2Objective(config, g, d, None)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16).float())
    assert [phase.name for phase in objective.phases()] == ["g_main", "g_path", "d_main", "d_penalty"]
    for phase in objective.phases():
        (result,) = (loss(real) for loss in phase.losses)
        result.share.backward()
        assert result.share.isfinite()
    assert all(p.grad.any() for p in d.parameters())


@pytest.mark.parametrize("game", [
    (*TINY, "loss.adversarial=relativistic", "loss.r2_gamma=1", "loss.penalty_interval=1"),
    (*TINY_R3GAN, "loss.adversarial=nonsaturating", "loss.r2_gamma=0", "loss.penalty_interval=2"),
    (*TINY_R3GAN, "loss.penalty=approximate"),
], ids=["stylegan2", "r3gan", "approximate"])
def test_the_game_is_a_matter_of_knobs(game, small_shards, tmp_path):
    assert main(["train", *game, f"data.shards={small_shards}", f"run.dir={tmp_path / 'run'}", "run.kimg=0.024"]) == 0
    assert (tmp_path / "run/checkpoints/nimg-00000024/manifest.json").exists()


MOVING = ("optim.g.lr={cosine: [1e-3, 1e-4], until_kimg: 0.1}", "optim.d.betas=[0, {cosine: [0.9, 0.99], until_kimg: 0.1}]",
          "loss.r1_gamma={cosine: [2, 0.5], until_kimg: 0.1}", "ema.half_life_kimg={cosine: [0, 0.05], until_kimg: 0.1}",
          "ema.rampup=0")


def test_a_run_is_continued_and_drawn_with(small_shards, tmp_path, capsys):
    last = check_continued(tmp_path, [*TINY_R3GAN, *MOVING, f"data.shards={small_shards}"], (0.048, 0.12))
    assert sorted(path.name for path in (tmp_path / "whole/evaluation").iterdir()) == [
        "classes.png", "interpolation.gif", "interpolation.png"], "no truncation"
    assert load_file(last / "d.safetensors")["b8.blocks.0.conv3.weight"].any(), "it has learned"
    record = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/g_main", "loss/d_main", "loss/r1", "loss/r2", "logits/real"} <= record.keys()

    out = tmp_path / "out"
    draw = ["generate", str(tmp_path / "whole"), "--seeds", "0-3", "--device", "cpu", "--out", str(out)]
    assert main(draw) == 0
    assert len(list(out.glob("seed*.png"))) == 4
    capsys.readouterr()
    assert main([*draw, "--trunc", "0.7"]) == 2
    assert "truncation 0.7 is not possible" in capsys.readouterr().err


def test_a_plan(small_shards, capsys):
    assert main(["train", *TINY_R3GAN, *MOVING, f"data.shards={small_shards}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 blocks a resolution" in text
    assert "relativistic, R1 gamma 2 to 0.5, R2 gamma 0.5" in text
    assert "peak of tensors on each rank, in d_main" in text
