"""Every engine trains the same run, and continues any other's: real process groups, real DeepSpeed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from engine_runs import BATCH, NETWORKS, OPTIMIZERS, Runs, difference, tensors
from launching import (
    TINY_DCGAN,
    TINY_GAT,
    TINY_MLP,
    TINY_R3GAN,
    TINY_STYLEGAN3,
    TINY_STYLEGAN_V,
    TINY_TEXT,
)
from small_text import pack_lines

from stylegan_dist.engine.graphs import WARM_UP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
STEPS = (8, 20)  # the longer one, with everything continued under everything else, in the exhaustive run
LEFT = 4         # steps for those who continue: every phase twice
SHORT = 4        # steps of variants, and of what is compared with a run of the same engine
RECORDED = 8     # steps of recorded phases, which begin with some that are not
# Rounding is magnified by 1 / sigma.
APPROXIMATE = ("loss.penalty=approximate", "loss.penalty_sigma=0.3")
ENGINES = {1: ("flat", "zero1", "zero2", "zero3"), 2: ("flat", "ddp", "zero1", "zero2", "zero3"),
           4: ("flat", "ddp", "zero1", "zero2", "zero3")}
# Some more on two ranks: parameters of every size spread, ZeRO-3 for both networks, one network each way, offload.
VARIANTS = ("zero2-buckets", "zero3-groups", "zero3-all-cut", "zero3-both", "zero2-g", "zero1-offload", "zero2-offload",
            "zero3-offload")
OPTIMIZED = {  # name -> overrides, for both networks
    "adamw": ("name=AdamW", "weight_decay=0.1"), "sgd": ("name=SGD", "eps=auto", "lr=0.01", "momentum=0.9", "nesterov=true"),
    "rmsprop": ("name=RMSprop", "lr=3e-4", "momentum=0.5"), "adadelta": ("name=Adadelta", "lr=0.1", "eps=1e-3"),
    "l1": ("l1=0.01",), "clip": ("clip=0.05", "l1=0.01"),
}
# R3GAN, with schedules of which every step sees another value, up to the last ones.
R3GAN = (
    "optim.g.lr={cosine: [1e-4, 1e-5], until_kimg: 0.1}", "optim.d.betas=[0, {linear: [0.9, 0.99], until_kimg: 0.1}]",
    "loss.r1_gamma={cosine: [1, 0.1], until_kimg: 0.1}", "loss.r2_gamma={linear: [0, 0.5], until_kimg: 0.1}",
    "ema.half_life_kimg={cosine: [0, 0.05], until_kimg: 0.1}", "ema.rampup=0",
)
# Configuration R, with a blur of which every step sees another width.
STYLEGAN3 = ("generator.family=stylegan3-r", "loss.blur_sigma={linear: [2, 0], until_kimg: 0.05}")
# Motion between anchors, and geometric augmentation; the clips would loop.
STYLEGAN_V = ("generator.loop_frames=0", "augment.pipe=bg", "augment.p=0.5")
R3GAN_CONTINUED = ("zero2", "flat", "zero3")  # what is saved under the first, by all
# Dropout by the address of an image; statistics of groups of 4 images, of which each rank has two; attention, a mean of w for
# each class, and gradients that are clipped in every phase.
FIRST = {"mlp": (TINY_MLP, ("loss.r1_gamma=1", "loss.penalty_interval=2")), "dcgan": (TINY_DCGAN, ()),
         "gat": (TINY_GAT, ("loss.penalty_sigma=0.3", "optim.g.clip=0.01", "optim.d.clip=0.01")),
         "text": (TINY_TEXT, ())}
FIRST_ENGINES = {"mlp": ("flat", "zero2", "recorded"), "dcgan": ("flat", "ddp", "zero3", "recorded"),
                 "gat": ("flat", "ddp", "zero2", "zero3", "zero3-offload", "recorded"),
                 "text": ("flat", "ddp", "zero2", "zero3", "recorded")}
AUGMENTED = ("augment.pipe=bgc", "augment.p=ada", "augment.target=0", "augment.kimg=0.2")  # p moves by 0.32 a time
AUGMENTED_STEPS = 6
FROZEN = "discriminator.freeze_layers=3"  # fromrgb and the convolutions of the only block, of a transfer; its skip learns
SAVED = [f"{engine}-{world}" for world, engines in ENGINES.items() for engine in engines]
# What is saved under one is continued under the other: by itself (not on four ranks, which take turns on the two cores of
# continuous integration), and by the next. In the exhaustive run every pair on one and two ranks; four meet a single
# process both ways.
NEXT = dict(zip(SAVED, (*SAVED[1:], SAVED[0]), strict=True))
SOME = [*((one, one) for one in SAVED if not one.endswith("-4")), *NEXT.items()]
CONTINUED = [*SOME, *sorted({
    *((one, one) for one in SAVED),
    *((before, after) for before in SAVED for after in SAVED if not (before + after).count("-4")),
    *((f"{engine}-4", "flat-1") for engine in ENGINES[4]),
    *(("flat-1", f"{engine}-4") for engine in ENGINES[4]),
} - {*SOME})]
# What is trained where only tests without the mark `full` are selected.
HEART = {"flat-1-1", "flat-2-1", "zero2-2-1", "zero3-2-1", "flat-2-to-flat-2", "zero2-2-to-zero3-2",
         "flat-1-r3gan", "zero2-2-r3gan", "flat-1-augmented", "flat-2-augmented", "flat-1-frozen", "ddp-2-frozen",
         "zero2-2-frozen", "flat-1-mlp", "flat-2-mlp", "flat-1-dcgan", "flat-2-dcgan", "flat-1-gat", "zero3-2-gat",
         "flat-1-stylegan3", "flat-2-stylegan3", "flat-1-stylegan_v", "flat-2-stylegan_v",
         "flat-1-text", "flat-2-text"}
DIVIDED = [*((engine, 2, 2) for engine in ENGINES[2]), ("flat", 2, 4), ("zero2", 2, 4), ("flat", 1, 2), ("flat", 1, 4)]


@pytest.fixture(scope="module", params=[STEPS[0], pytest.param(STEPS[1], marks=pytest.mark.exhaustive)])
def runs(small_shards: Path, labelled_shards: Path, clip_shards: Path, tmp_path_factory: pytest.TempPathFactory,
         request: pytest.FixtureRequest) -> Runs:
    """All steps under every engine, world and micro-batch; and what was saved on the way, continued under others."""
    runs = Runs(tmp_path_factory.mktemp("engines"), small_shards, request.param)
    shards = dict.fromkeys(FIRST, labelled_shards) | {"text": pack_lines(runs.folder)}
    saved_at = runs.steps - LEFT
    launches = []
    for world, engines in ENGINES.items():
        whole = f"run.batch_gpu={BATCH // world}"
        cases = [runs.case(f"{engine}-{world}-1", engine, whole) for engine in engines]
        for case, engine in zip(cases, engines, strict=True):
            at = {"half": saved_at, "short": SHORT}
            case["on_the_way"] = {str(runs.folder / f"{engine}-{world}-{name}"): steps for name, steps in at.items()}
        cases += [runs.case(f"{engine}-{world}-{parts}", engine, f"run.batch_gpu={BATCH // world // parts}")
                  for engine, ranks, parts in DIVIDED if ranks == world]
        if world == 1:
            cases.append(runs.case("flat-1-variant", "flat", steps=SHORT))
            cases.append(runs.case("flat-1-approximate", "flat", *APPROXIMATE, steps=SHORT))
            cases.append(runs.case("flat-1-r3gan", "flat", *R3GAN, steps=RECORDED, tiny=TINY_R3GAN))
            cases.append(runs.case("flat-1-r3gan-parts", "flat", "run.batch_gpu=4", *R3GAN, steps=RECORDED, tiny=TINY_R3GAN))
            cases += [runs.case(f"flat-1-{name}{parts}", "flat", f"run.batch_gpu={size}", *first(name, shards[name]),
                                steps=RECORDED, tiny=FIRST[name][0])
                      for name in FIRST for parts, size in (("", BATCH), ("-parts", 4))]
            cases += [runs.case(f"flat-1-stylegan3{name}", "flat", *more, *STYLEGAN3, steps=RECORDED, tiny=TINY_STYLEGAN3)
                      for name, more in (("", ()), ("-parts", ("run.batch_gpu=4",)))]
            cases += [runs.case(f"flat-1-stylegan_v{name}", "flat", *more, f"data.shards={clip_shards}", *STYLEGAN_V,
                                steps=RECORDED, tiny=TINY_STYLEGAN_V)
                      for name, more in (("", ()), ("-parts", ("run.batch_gpu=4",)))]
            cases.append(runs.case("flat-1-augmented", "flat", *AUGMENTED, steps=AUGMENTED_STEPS))
            cases.append(runs.case("flat-1-poison", "flat", steps=6, poison=3 * BATCH + 1))
            cases += [runs.case(f"flat-1-{name}", "flat", *optimizers(name), steps=SHORT) for name in OPTIMIZED]
        if world == 2:
            cases += [runs.case(f"{engine}-2-again", engine, whole, steps=SHORT) for engine in engines]
            cases += [runs.case(f"{engine}-2-phases", engine, whole, steps=RECORDED) for engine in ("flat", "recorded")]
            cases += [runs.case(f"{engine}-2-r3gan", engine, *R3GAN, steps=RECORDED, tiny=TINY_R3GAN,
                                on_the_way={str(runs.folder / f"{engine}-2-r3gan-half"): SHORT})
                      for engine in (*engines, "recorded")]
            cases += [runs.case(f"{engine}-2-{name}", engine, *first(name, shards[name]), steps=RECORDED,
                                tiny=FIRST[name][0])
                      for name in FIRST for engine in FIRST_ENGINES[name]]
            cases += [runs.case(f"{engine}-2-stylegan3", engine, *STYLEGAN3, steps=RECORDED, tiny=TINY_STYLEGAN3)
                      for engine in (*engines, "recorded")]
            cases += [runs.case(f"{engine}-2-stylegan_v", engine, f"data.shards={clip_shards}", *STYLEGAN_V, steps=RECORDED,
                                tiny=TINY_STYLEGAN_V) for engine in (*engines, "recorded")]
            cases += [runs.case(f"{engine}-2-approximate", engine, whole, *APPROXIMATE, steps=SHORT) for engine in engines]
            cases += [runs.case(f"{engine}-2-augmented", engine, whole, *AUGMENTED, steps=AUGMENTED_STEPS)
                      for engine in engines]
            cases += [runs.case(f"{engine}-2-2", engine, f"run.batch_gpu={BATCH // 4}", steps=SHORT) for engine in VARIANTS]
            cases += [runs.case(f"{engine}-2-poison", engine, whole, steps=6, poison=3 * BATCH + 1)
                      for engine in (*engines, "zero2-offload", "zero3-offload")]
            cases += [runs.case(f"{engine}-2-{name}", engine, whole, *optimizers(name), steps=SHORT)
                      for engine in ("zero2", "zero3") for name in OPTIMIZED]
            cases += [runs.case(f"{engine}-2-{place}", engine, whole, f"ema.placement={place}", steps=SHORT)
                      for engine, place in (("flat", "sharded"), ("flat", "cpu"), ("zero2", "sharded"))]
            cases += [runs.case(f"{engine}-2-recompute", engine, whole, "run.recompute=8", steps=SHORT)
                      for engine in engines]
        launches.append((world, cases))
    start = runs.folder / f"{R3GAN_CONTINUED[0]}-2-r3gan-half/checkpoints/nimg-{SHORT * BATCH:08d}"
    origin = runs.folder / f"flat-1-half/checkpoints/nimg-{saved_at * BATCH:08d}"
    frozen = [f"run.init_from={origin}", "run.seed=5", FROZEN]
    launches.append((1, [runs.case("flat-1-frozen", "flat", *frozen, steps=SHORT)]))
    launches.append((2, [runs.case(f"{engine}-2-frozen", engine, *frozen, steps=SHORT)
                         for engine in (*ENGINES[2], "zero3-both")]))
    launches.append((2, [runs.case(f"r3gan-to-{engine}-2", engine, *R3GAN, steps=RECORDED - SHORT, start=start, tiny=TINY_R3GAN)
                         for engine in R3GAN_CONTINUED]))
    for world in ENGINES:
        launches.append((world, [
            runs.case(f"{before}-to-{after}", after.removesuffix(f"-{world}"), f"run.batch_gpu={BATCH // world}",
                      steps=LEFT, start=runs.folder / f"{before}-half/checkpoints/nimg-{saved_at * BATCH:08d}")
            for before, after in (SOME if runs.steps == STEPS[0] else CONTINUED) if after.endswith(f"-{world}")
        ]))
    if not any(item.path == request.path and item.get_closest_marker("full") for item in request.session.items):
        chosen = [(world, [case for case in cases if Path(case["out"]).name in HEART]) for world, cases in launches]
        launches = [(world, cases) for world, cases in chosen if cases]
    runs.train(launches)
    return runs


def mark(cases: Iterable[tuple[str, str]], name: str) -> list:
    """Cases as parameters; `name` is what a case is called in HEART."""
    return [pytest.param(*case, marks=() if name.format(*case) in HEART else pytest.mark.full) for case in cases]


def first(name: str, shards: Path) -> list[str]:
    """Overrides for one of FIRST, with images of 16 pixels, at which both networks of DCGAN normalise."""
    return [f"data.shards={shards}", *FIRST[name][1]]


def optimizers(name: str) -> list[str]:
    return [f"optim.{network}.{setting}" for network in "gd" for setting in OPTIMIZED[name]]


def assert_same_run(runs: Runs, one: str, other: str) -> None:
    """Weights, average, optimizer state; and what every phase of every step has measured."""
    assert difference(runs.checkpoint(one), runs.checkpoint(other)) < 1e-5
    assert difference(runs.checkpoint(one), runs.checkpoint(other), OPTIMIZERS, floor=1e-2) < 1e-3
    a, b = runs.facts(one), runs.facts(other)
    assert b.get("path_mean", 0) == pytest.approx(a.get("path_mean", 0), rel=1e-5)  # R3GAN has none
    norms = []
    for (phase, norm, nonfinite, means), (other_phase, other_norm, other_nonfinite, other_means) in zip(
            a["records"][-len(b["records"]):], b["records"], strict=True):
        assert (other_phase, other_nonfinite) == (phase, nonfinite)
        assert other_means == pytest.approx(means, rel=1e-4, abs=1e-5, nan_ok=True)
        norms.append(abs(norm - other_norm) / max(norm, 1e-9))
    assert max(norms) < 1e-3  # where a feature went over its kink
    assert statistics.median(norms) < 1e-6


def assert_same_draws(runs: Runs, one: str, other: str, least: int = 11) -> None:
    """The same images for the same numbers; and latents, labels, noise, mixing: so many for an image at least."""
    a, b = runs.facts(one), runs.facts(other)
    assert a["samples"] == b["samples"]
    assert a["draws"] == b["draws"]
    assert len(a["draws"]) >= len(a["samples"]) * least


@pytest.mark.parametrize(("one", "other"), mark([
    *(("flat-1-1", f"{engine}-{world}-1") for world, engines in ENGINES.items() for engine in engines),
    *(("flat-1-1", f"{engine}-{world}-{parts}") for engine, world, parts in DIVIDED),
    *(("flat-1-variant", f"{engine}-2-2") for engine in VARIANTS),
], "{1}"))
def test_every_engine_equals_one_process(one: str, other: str, runs: Runs):
    assert_same_run(runs, one, other)
    assert_same_draws(runs, one, other)


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES[2])
def test_same_engine_and_world_is_exact(engine: str, runs: Runs):
    assert difference(runs.checkpoint(f"{engine}-2-short"), runs.checkpoint(f"{engine}-2-again"), NETWORKS + OPTIMIZERS) == 0
    again = runs.facts(f"{engine}-2-again")["records"]
    assert len(again) > 2 * SHORT
    assert runs.facts(f"{engine}-2-1")["records"][:len(again)] == again


@pytest.mark.full
def test_recorded_phases_on_two_ranks(runs: Runs):
    """To the last bit what they are without recordings: these end before the ranks add up their gradients."""
    plain, recorded = (runs.facts(name) for name in ("flat-2-phases", "recorded-2-phases"))
    assert recorded["replays"] == 2 * (RECORDED - WARM_UP) + 2 * (RECORDED // 2 - WARM_UP)
    assert recorded["records"] == plain["records"]
    checkpoints = runs.checkpoint("flat-2-phases"), runs.checkpoint("recorded-2-phases")
    assert difference(*checkpoints, NETWORKS + OPTIMIZERS) == 0


@pytest.mark.parametrize("other", [
    pytest.param(name, marks=() if name in HEART else pytest.mark.full)
    for name in ("flat-1-r3gan-parts", *(f"{engine}-2-r3gan" for engine in ENGINES[2]))
])
def test_r3gan_with_schedules(other: str, runs: Runs):
    assert_same_run(runs, "flat-1-r3gan", other)
    assert_same_draws(runs, "flat-1-r3gan", other, least=2)  # a latent for G, and one for D


@pytest.mark.parametrize(("name", "other"), [
    pytest.param(name, other, marks=() if other in HEART else pytest.mark.full)
    for name in FIRST for other in (f"flat-1-{name}-parts", *(f"{engine}-2-{name}" for engine in FIRST_ENGINES[name]
                                                              if engine != "recorded"))
])
def test_first_networks(name: str, other: str, runs: Runs):
    assert_same_run(runs, f"flat-1-{name}", other)
    assert_same_draws(runs, f"flat-1-{name}", other, least=2)


@pytest.mark.full
@pytest.mark.parametrize("name", FIRST)
def test_recorded_phases_of_first_networks(name: str, runs: Runs):
    assert runs.facts(f"recorded-2-{name}")["replays"] >= 2 * (RECORDED - WARM_UP)
    assert runs.facts(f"recorded-2-{name}")["records"] == runs.facts(f"flat-2-{name}")["records"]
    checkpoints = runs.checkpoint(f"flat-2-{name}"), runs.checkpoint(f"recorded-2-{name}")
    assert difference(*checkpoints, NETWORKS + OPTIMIZERS) == 0


@pytest.mark.parametrize(("name", "other"), [
    pytest.param(name, other, marks=() if other in HEART else pytest.mark.full) for name in ("stylegan3", "stylegan_v")
    for other in (f"flat-1-{name}-parts", *(f"{engine}-2-{name}" for engine in (*ENGINES[2], "recorded")))
])
def test_later_stylegans(name: str, other: str, runs: Runs):
    assert_same_run(runs, f"flat-1-{name}", other)
    if not other.startswith("recorded"):
        assert_same_draws(runs, f"flat-1-{name}", other, least=2)


@pytest.mark.full
def test_recorded_phases_see_moving_weights(runs: Runs):
    """Their draws are not seen here, as replays call no Python; what comes of them is."""
    assert runs.facts("recorded-2-r3gan")["replays"] == 2 * (RECORDED - WARM_UP)
    assert runs.facts("recorded-2-r3gan")["records"] == runs.facts("flat-2-r3gan")["records"]
    checkpoints = runs.checkpoint("flat-2-r3gan"), runs.checkpoint("recorded-2-r3gan")
    assert difference(*checkpoints, NETWORKS + OPTIMIZERS) == 0


@pytest.mark.full
@pytest.mark.parametrize("engine", R3GAN_CONTINUED)
def test_continued_in_the_middle_of_schedules(engine: str, runs: Runs):
    assert_same_run(runs, "flat-1-r3gan", f"r3gan-to-{engine}-2")
    if engine == R3GAN_CONTINUED[0]:
        checkpoints = runs.checkpoint(f"{engine}-2-r3gan"), runs.checkpoint(f"r3gan-to-{engine}-2")
        assert difference(*checkpoints, NETWORKS + OPTIMIZERS) == 0


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES[2])
def test_approximate_penalties(engine: str, runs: Runs):
    assert_same_run(runs, "flat-1-approximate", f"{engine}-2-approximate")
    assert difference(runs.checkpoint("flat-1-variant"), runs.checkpoint("flat-1-approximate")) > 1e-5


@pytest.mark.parametrize("engine", mark([(engine,) for engine in ENGINES[2]], "{0}-2-augmented"))
def test_augmentation(engine: str, runs: Runs):
    """The same transforms for the same images, and the same p to the last bit."""
    assert_same_run(runs, "flat-1-augmented", f"{engine}-2-augmented")
    assert_same_draws(runs, "flat-1-augmented", f"{engine}-2-augmented")
    one, other = (runs.facts(name) for name in ("flat-1-augmented", f"{engine}-2-augmented"))
    for name in ("augment_p", "augment_signs", "augment_steps"):
        assert one[name] == other[name], name
    assert one["augment_p"] > 0.3


@pytest.mark.parametrize("engine", mark([(engine,) for engine in (*ENGINES[2], "zero3-both")], "{0}-2-frozen"))
def test_transfer_with_frozen_layers(engine: str, runs: Runs):
    """All ranks begin with the same weights, and what is frozen does not move under any engine."""
    assert_same_run(runs, "flat-1-frozen", f"{engine}-2-frozen")
    origin = runs.folder / f"flat-1-half/checkpoints/nimg-{(runs.steps - LEFT) * BATCH:08d}"
    before, after = (tensors(folder, "d") for folder in (origin, runs.checkpoint(f"{engine}-2-frozen")))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {f"{layer}.{kind}" for layer in ("fromrgb", "b8.conv0", "b8.conv1") for kind in ("weight", "bias")}
    moments = tensors(runs.checkpoint(f"{engine}-2-frozen"), "optimizer_d")
    assert {name.rpartition(".")[0] for name in moments} == before.keys() - still


@pytest.mark.parametrize(("before", "after"), [
    *mark(SOME, "{0}-to-{1}"), *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in CONTINUED[len(SOME):]),
])
def test_saved_under_one_continued_under_another(before: str, after: str, runs: Runs):
    if runs.steps == STEPS[0] and (before, after) not in SOME:
        pytest.skip(f"continued after {STEPS[1]} steps only")
    assert len(list(runs.checkpoint(f"{before}-half").glob("g-*-of-*.safetensors"))) > 1
    assert_same_run(runs, "flat-1-1", f"{before}-to-{after}")
    if before == after:
        files = NETWORKS + OPTIMIZERS
        assert difference(runs.checkpoint(f"{after}-1"), runs.checkpoint(f"{before}-to-{after}"), files) == 0


@pytest.mark.full
@pytest.mark.parametrize("engine", [*ENGINES[2], "zero2-offload", "zero3-offload"])
def test_nonfinite_gradients_are_counted_and_replaced_alike(engine: str, runs: Runs):
    assert_same_run(runs, "flat-1-poison", f"{engine}-2-poison")
    size = sum(value.numel() for value in tensors(runs.checkpoint("flat-1-1"), "d").values())
    alone, shared = ([record for record in runs.facts(f"{name}-poison")["records"] if record[2]]
                     for name in ("flat-1", f"{engine}-2"))
    (phase, norm, count, _), = shared
    assert [(one, number) for one, _, number, _ in alone] == [("d_main", count)]
    assert phase == "d_main"
    # What remains is the gradient of the embeddings of classes that the spoilt images do not have.
    assert size - tensors(runs.checkpoint("flat-1-1"), "d")["mapping.embed.weight"].numel() < count <= size
    assert norm == pytest.approx(alone[0][1], rel=1e-4)
    assert norm < 1


@pytest.mark.full
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
@pytest.mark.parametrize("name", OPTIMIZED)
def test_other_optimizers(engine: str, name: str, runs: Runs):
    assert_same_run(runs, f"flat-1-{name}", f"{engine}-2-{name}")
    assert difference(runs.checkpoint("flat-1-variant"), runs.checkpoint(f"flat-1-{name}")) > 1e-5


@pytest.mark.full
@pytest.mark.parametrize(("engine", "place"), [("flat", "sharded"), ("flat", "cpu"), ("zero2", "sharded")])
def test_average_kept_in_parts(engine: str, place: str, runs: Runs):
    assert difference(runs.checkpoint(f"{engine}-2-short"), runs.checkpoint(f"{engine}-2-{place}"), NETWORKS) == 0


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES[2])
def test_recomputed_activations(engine: str, runs: Runs):
    one, other = (runs.checkpoint(f"{engine}-2-{name}") for name in ("short", "recompute"))
    assert difference(one, other, NETWORKS + OPTIMIZERS) == 0
