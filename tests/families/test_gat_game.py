"""GAT: a step of both networks against its plain form, and a run of it."""

from __future__ import annotations

import json
import math

import gat_reference
import pytest
import reference
import torch
from launching import TINY_GAT
from parts import results_in_parts
from safetensors.torch import load_file
from small_families import check_continued
from small_gat import (
    BATCH,
    CLASSES,
    CPU,
    OF_D,
    OF_G,
    SMALL,
    batch_of,
    gradients,
    index_of,
    networks,
    objective_of,
    resolved,
)
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.families.gat.family import FAMILY
from stylegan_dist.families.gat.networks import DiscriminatorBlock, GeneratorBlock
from stylegan_dist.families.gat.objective import GatObjective
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.memory import estimate_memory
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState

# The game


def plain_d_main(objective: GatObjective, state: reference.State, real: MicroBatch) -> dict[str, Tensor]:
    """By the reference, with the draws of the addresses."""
    fake, sigma = objective.generate("d_main", real.index, real.labels)[0].detach(), objective.config.penalty_sigma
    logits, penalties = {}, {}
    for name, side, images in (("r1", "real", real.images), ("r2", "fake", fake)):
        noise = randomness.normal(0, f"d_penalty.{name}_noise", real.index, images.shape[1:]).double()
        both = []
        for each in (images, images + sigma * noise):
            levels = torch.stack([each] * 4, 1) if side == "real" else each
            noisy = gat_reference.noisy_levels(levels, 0, f"d_main.levels.{side}", real.index)
            both.append(gat_reference.discriminator(state, noisy, real.labels, *OF_D))
        logits[side], penalties[name] = both[0], ((both[1] - both[0]) / sigma).square()
    game = torch.log(1 + torch.exp(logits["fake"] - logits["real"])).mean()
    gammas = {name: getattr(objective.config, f"{name}_gamma") for name in penalties}
    return {"loss/d_main": game, **{f"loss/{name}": gammas[name] / 2 * p.mean() for name, p in penalties.items()}}


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_the_discriminators_step(classes):
    real = batch_of(classes)
    objective = objective_of("loss.r1_gamma=0.3", "loss.r2_gamma=0.7", "loss.penalty_sigma=0.1", classes=classes)
    (loss,) = objective.phases()[0].losses
    result, state = loss(real), reference.weights_of(objective.discriminator)
    expected = plain_d_main(objective, state, real)
    for name, value in expected.items():
        assert result.statistics[name].item() == pytest.approx(value.item(), rel=1e-9), name
    total = sum(expected.values())
    assert result.share.item() == pytest.approx(total.item(), rel=1e-9)
    result.share.backward(), total.backward()
    worst = reference.gradient_differences(objective.discriminator, state)
    assert max(worst.values()) < 1e-7, worst


def test_the_generators_step():
    objective, real = objective_of(classes=CLASSES), batch_of(CLASSES)
    result, g = objective.g_main(real), objective.generator
    state = reference.weights_of(g)
    z = randomness.normal(0, "game.z", real.index, (6,)).double()
    w = gat_reference.mapping(reference.below(state, "mapping."), z, real.labels)
    fake = gat_reference.synthesis(reference.below(state, "synthesis."), w, *OF_G)
    of_d = reference.weights_of(objective.discriminator)
    logits = [gat_reference.discriminator(of_d, gat_reference.noisy_levels(x, 0, f"g_main.levels.{side}", real.index),
                                          real.labels, *OF_D)
              for x, side in ((fake, "fake"), (torch.stack([real.images] * 4, 1), "real"))]
    loss = torch.log(1 + torch.exp(logits[1] - logits[0])).mean()
    assert result.share.item() == pytest.approx(loss.item(), rel=1e-9)
    result.share.backward(), loss.backward()
    worst = reference.gradient_differences(g, state)
    assert max(worst.values()) < 1e-7, worst
    for k in range(CLASSES):
        mine = real.labels == k
        assert reference.difference(result.running_means["w"][k], w[mine].sum(0) / BATCH) < 1e-9
        assert result.running_means["w_count"][k].item() == mine.sum().item() / BATCH


def test_phases():
    def named(*overrides: str) -> list[tuple[str, int, int, bool]]:
        return [(phase.name, phase.interval, len(phase.losses), phase.second_order)
                for phase in objective_of(*overrides).phases()]

    assert named() == [("d_main", 1, 1, False), ("g_main", 1, 1, False)], "the discriminator's first"
    assert named("loss.penalty=exact") == [("d_main", 1, 1, True), ("g_main", 1, 1, False)]
    assert named("loss.penalty_interval=4") == [("d_main", 1, 1, False), ("d_penalty", 4, 1, False), ("g_main", 1, 1, False)]
    assert named("loss.r1_gamma=0", "loss.r2_gamma=0") == [("d_main", 1, 1, False), ("g_main", 1, 1, False)]
    alone = objective_of("loss.r2_gamma=0").d_main_with_estimates(batch_of()).statistics.keys()
    assert alone & {"loss/r1", "loss/r2"} == {"loss/r1"}


@pytest.mark.parametrize("interval", [1, 4])
def test_exact_penalties_are_gradients_at_all_levels(interval):
    objective = objective_of("loss.penalty=exact", "loss.r1_gamma=2", "loss.r2_gamma=2", f"loss.penalty_interval={interval}")
    real, phase = batch_of(), "d_main" if interval == 1 else "d_penalty"
    (loss,) = next(one.losses for one in objective.phases() if one.name == phase)
    statistics, d = loss(real).statistics, objective.discriminator
    for name, side, images in (("loss/r1", "real", real.images),
                               ("loss/r2", "fake", objective.generate("d_main", real.index, None)[0].detach())):
        images = images.clone().requires_grad_(True)
        levels = images if side == "fake" else torch.stack([images] * 4, 1)
        (gradient,) = torch.autograd.grad(
            d(gat_reference.noisy_levels(levels, 0, f"{phase}.levels.{side}", real.index)).sum(), images)
        assert statistics[name].item() == pytest.approx(gradient.square().sum().item() / BATCH, rel=1e-9)
    loss(real).share.backward()
    assert all(p.grad is not None for name, p in d.named_parameters() if name != "out.bias")


def test_estimates_near_the_exact_penalty():
    """Over many draws, with a small step."""
    g, d = networks()
    values = {}
    for name, more in (("exact", ()), ("approximate", ("loss.penalty_sigma=1e-3",))):
        config = resolved(*SMALL, f"loss.penalty={name}", "loss.r1_gamma=2", "loss.r2_gamma=2", *more)
        objective = GatObjective(config, g, FAMILY.discriminator(config, SampleShape(8, 3), d.precision).double(), None)
        objective.discriminator.load_state_dict(d.state_dict())
        statistics = []
        for start in range(0, 240, BATCH) if more else (0,):
            real = batch_of()
            objective.forwards["d"] = objective.discriminator
            noise = randomness.normal
            randomness.normal = lambda seed, purpose, index, shape, start=start, plain=noise: plain(
                seed, purpose, index + (start if purpose.startswith("d_penalty") else 0), shape)
            try:
                statistics.append(objective.phases()[0].losses[0](real).statistics)
            finally:
                randomness.normal = noise
        values[name] = [torch.stack([s[key] for s in statistics]).mean().item() for key in ("loss/r1", "loss/r2")]
    assert values["approximate"] == pytest.approx(values["exact"], rel=0.25)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("phase", ["g_main", "d_main"])
def test_micro_batches_add_up(phase, parts):
    objective, real = objective_of("augment.pipe=diffaugment", classes=CLASSES), batch_of(CLASSES)
    (loss,) = next(one.losses for one in objective.phases() if one.name == phase)
    network = objective.generator if phase == "g_main" else objective.discriminator
    pairs, means = results_in_parts(loss, real, parts, list(network.parameters()), unused=True)
    largest = max(whole.abs().max() for _, whole in pairs)  # some cancel in a relativistic game
    assert max((total - whole).abs().max() / max(whole.abs().max(), 1e-3 * largest) for total, whole in pairs) < 1e-9
    assert all(reference.difference(*pair) < 1e-12 for pair in means.values())


@pytest.mark.parametrize("phase", ["g_main", "d_main"])
@pytest.mark.parametrize("penalty", ["exact", "approximate"])
def test_recomputed_activations_change_no_bit(phase, penalty):
    found = []
    for recompute in (0, 8):
        config = resolved(*SMALL, f"run.recompute={recompute}", "precision.dtype=bf16", f"loss.penalty={penalty}")
        g, d = build_generator(config, SampleShape(8, 3), CPU), build_discriminator(config, SampleShape(8, 3), CPU)
        objective, real = GatObjective(config, g, d, None), batch_of()
        real.images = real.images.float()
        (loss,) = next(one.losses for one in objective.phases() if one.name == phase)
        found.append(gradients(loss(real).share, g if phase == "g_main" else d))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("where", ["full", "run"])
def test_low_precision_is_inside_the_blocks(where):
    config = resolved(*SMALL, "precision.dtype=bf16", f"loss.penalty_precision={where}")
    g, d = build_generator(config, SampleShape(8, 3), CPU), build_discriminator(config, SampleShape(8, 3), CPU)
    seen = {}
    for network in (g, d):
        for module in network.modules():
            if isinstance(module, GeneratorBlock | DiscriminatorBlock):
                kind = type(module)
                module.attention.register_forward_hook(lambda *at, kind=kind: seen.setdefault(kind, set()).add(at[2].dtype))
                module.register_forward_hook(lambda *at: seen.setdefault("tokens", set()).add(at[2].dtype))
    objective, real = GatObjective(config, g, d, None), batch_of()
    real.images = real.images.float()
    objective.phases()[0].losses[0](real)
    low = torch.bfloat16
    assert seen == {GeneratorBlock: {low}, DiscriminatorBlock: {low if where == "run" else torch.float32},
                    "tokens": {torch.float32}}
    objective.g_main(real)
    assert low in seen[DiscriminatorBlock]
    assert (g(torch.zeros(2, 6)).dtype, d(torch.zeros(2, 3, 8, 8)).dtype) == (torch.float32, torch.float32)


def test_truncation_pulls_to_the_mean_of_the_class():
    objective = objective_of("generator.w_avg_decay=0.75", classes=CLASSES)
    g = objective.generator
    old = g.w_avg.clone()
    w, labels = reference.normals(3, 4, 16), torch.tensor([2, 0, 2, 2])
    objective.after_phase(objective.observe((w, labels)))
    assert torch.equal(g.w_avg[1], old[1]), "none of this class was there"
    assert reference.difference(g.w_avg[0], 0.75 * old[0] + 0.25 * w[1]) < 1e-12
    assert reference.difference(g.w_avg[2], 0.75 * old[2] + 0.25 * w[[0, 2, 3]].mean(0)) < 1e-12
    before = g.w_avg.clone()
    broken = objective.observe((w * math.nan, labels))
    objective.after_phase(broken)
    assert torch.equal(g.w_avg, before)

    z, plain = reference.normals(4, 4, 6), g.mapping(reference.normals(4, 4, 6), labels)
    assert torch.equal(g.map(z, labels), plain)
    assert reference.difference(g.map(z, labels, 0.7), g.w_avg[labels] + 0.7 * (plain - g.w_avg[labels])) < 1e-12
    index = torch.arange(3)
    drawn = g.sample(0, "x", index, labels[:3], Sampling(truncation=0.7))
    assert torch.equal(drawn, g.synthesize(g.latents(0, "x", index, labels[:3], 0.7), None))
    unconditional, _ = networks()
    assert reference.difference(unconditional.map(z, None, 0.0), unconditional.w_avg.expand(4, -1)) < 1e-12


# A run


@pytest.mark.parametrize(("overrides", "message"), [
    (("generator.depth=6",), r"generator\.depth=6 must be a multiple of 4"),
    (("generator.patch=3",), r"generator\.patch=3 does not cut 8 px .*choose 1, 2, 4$"),
    (("discriminator.patch=8",), r"discriminator\.patch=8 does not cut 8 px"),
    (("generator.heads=3",), r"generator\.width=16 must be a multiple of 4 generator\.heads = 12"),
    (("generator.w_dim=8",), r"generator\.w_dim"),
    (("augment.pipe=diffaugment-place",), r"diffaugment-places"),
])
def test_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        resolved(*SMALL, *overrides)


def test_latents_have_no_colours():
    with pytest.raises(InputError, match=r"augment\.pipe=diffaugment changes colours.*diffaugment-places"):
        resolved(*SMALL, "augment.pipe=diffaugment", channels=4)
    assert resolved(*SMALL, "augment.pipe=diffaugment-places", channels=4).augment.pipe == "diffaugment-places"


def test_rules():
    config = resolved("generator.family=gat", "run.batch=512", resolution=64)
    assert (config.generator.patch, config.generator.heads, config.generator.hidden) == (4, 6, 1024)
    assert (config.discriminator.patch, config.discriminator.width, config.discriminator.hidden) == (4, 384, 1024)
    assert (config.optim.g.lr, config.ema.half_life_kimg) == (4e-4, pytest.approx(354.7, abs=0.05))
    assert resolved("generator.family=gat", resolution=8).generator.patch == 1
    assert resolved("generator.family=gat", "discriminator.width=768").optim.d.lr == 2e-4


def test_what_carries_over():
    shape = SampleShape(32, 4, 10)
    for network, name, now, expected in (
            ("g", "synthesis.blocks.0.mlp.out.weight", SampleShape(64, 3, 0), True),
            ("g", "synthesis.heads.1.out.weight", SampleShape(64, 4, 10), True),
            ("g", "synthesis.heads.1.out.weight", SampleShape(32, 3, 10), False),
            ("g", "synthesis.heads.1.modulation.weight", SampleShape(32, 3, 10), True),
            ("d", "embed.weight", SampleShape(32, 3, 10), False), ("d", "embed.weight", SampleShape(64, 4, 10), True),
            ("g", "w_avg", SampleShape(32, 4, 9), False), ("g", "mapping.first.weight", SampleShape(32, 4, 9), True),
            ("g", "mapping.first.weight", SampleShape(32, 4, 0), False),
            ("d", "mapping.first.weight", SampleShape(32, 4, 9), True),
            ("d", "out.weight", SampleShape(32, 4, 0), False), ("d", "out.weight", SampleShape(32, 4, 9), True)):
        assert FAMILY.carries_over(network, name, shape, now) == expected, (network, name, now)


def test_weights_of_another_resolution(small_shards, labelled_shards, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *TINY_GAT, f"data.shards={small_shards}", f"run.dir={first}", "run.kimg=0.016"]) == 0
    assert main(["train", *TINY_GAT, f"data.shards={labelled_shards}", f"run.dir={second}", "run.kimg=0.008",
                 f"run.init_from={first}", "optim.g.lr=0", "optim.d.lr=0"]) == 0
    before, after = (load_file(run / "checkpoints" / name / "d.safetensors")
                     for run, name in ((first, "nimg-00000016"), (second, "nimg-00000008")))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_continued_and_drawn_with(labelled_shards, tmp_path, capsys):
    more = ["augment.pipe=diffaugment", "optim.g.clip=0.05", "optim.d.clip=0.05", f"data.shards={labelled_shards}"]
    last = check_continued(tmp_path, [*TINY_GAT, *more], (0.048, 0.12))
    assert sorted(path.name for path in (tmp_path / "whole/evaluation").iterdir()) == [
        "classes.png", "interpolation.gif", "interpolation.png", "truncation.png"]
    assert load_file(last / "g.safetensors")["w_avg"].any(dim=1).all()
    record = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/g_main", "loss/d_main", "loss/r1", "loss/r2", "logits/real"} <= record.keys()

    out = tmp_path / "out"
    assert main(["generate", str(tmp_path / "whole"), "--seeds", "0-3", "--device", "cpu", "--out", str(out),
                 "--trunc", "0.7", "--class", "1"]) == 0
    assert len(list(out.glob("seed*.png"))) == 4


def test_a_plan(small_shards, capsys):
    assert main(["train", *TINY_GAT, f"data.shards={small_shards}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "transformer of 2 blocks, width 16, patches of 2 px" in text
    assert "relativistic, R1 gamma 0.1, R2 gamma 0.1" in text
    assert "peak of tensors on each rank, in d_main" in text


def test_planned_attention_needs_no_square_of_the_tokens():
    index = index_of(32, 0)
    peaks = {}
    for penalty in ("exact", "approximate"):
        config = load_config(None, ["data.shards=somewhere", "generator.family=gat", "generator.patch=1", "generator.depth=4",
                                    "generator.width=16", "discriminator.depth=1", "run.batch=2", f"loss.penalty={penalty}"])
        peaks[penalty] = estimate_memory(resolve(config, index), index).phases["d_main"]
    square = 1024**2 * 4
    assert peaks["approximate"] < 20 * square < peaks["exact"]


def test_a_state_has_the_optimizers_of_the_phases():
    index = index_of(8, 0)
    config = load_config(None, ["data.shards=somewhere", *SMALL, "loss.penalty_interval=4"])
    state = TrainState(resolve(config, index), index, CPU)
    assert [(phase.name, phase.interval) for phase in state.phases] == [("d_main", 1), ("d_penalty", 4), ("g_main", 1)]
    assert state.optimizers["d"].param_groups[0]["lr"] == pytest.approx(2e-4 * 768 / 24 * 4 / 5)
