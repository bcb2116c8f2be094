"""What is not finite on one rank gets the same verdict on all, under every engine; and every engine goes back in place."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_runs import Runs
from safetensors.torch import load_file
from saving import FILES

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]
BATCH = 8
STEPS = 6
POISON = 3 * BATCH + BATCH - 1  # the last image of a step is with the last rank
AT = 3  # steps, where a checkpoint is
SKIP = "guard.nonfinite=skip"
ENGINES = ("flat", "recorded", "ddp", "zero1", "zero2", "zero3", "zero3-groups", "zero1-offload", "zero2-offload",
           "zero3-offload")
USUAL = ("flat", "recorded", "ddp", "zero2", "zero3")  # the others in the exhaustive run


class WholeRuns(Runs):
    """Those whose tensors are compared all at once."""

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return {f"{file}/{key}": value for file in FILES
                for key, value in load_file(self.checkpoint(name) / f"{file}.safetensors").items()}


@pytest.fixture(scope="module")
def launched(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], WholeRuns]:
    """The runs of some engines, launched once."""
    return functools.cache(
        lambda engines: launch(engines, WholeRuns(tmp_path_factory.mktemp("guard"), small_shards, STEPS, BATCH)))


@pytest.fixture
def runs(request: pytest.FixtureRequest, launched: Callable[[tuple[str, ...]], WholeRuns]) -> WholeRuns:
    """Those of the engines that the parameter names."""
    return launched(request.param)


def launch(engines: tuple[str, ...], runs: WholeRuns) -> WholeRuns:
    def cases(engine: str, ranks: int, whole: str) -> list[dict]:
        name, half = f"{engine}-{ranks}", str(runs.folder / f"{engine}-{ranks}-half")
        back_to = f"{half}/checkpoints/nimg-{AT * BATCH:08d}"
        return [
            runs.case(f"{name}-plain", engine, whole, on_the_way={half: AT}),
            runs.case(f"{name}-skip", engine, whole, SKIP, poison=POISON),
            runs.case(f"{name}-inflate", engine, whole, SKIP, inflate=POISON),
            runs.case(f"{name}-replace", engine, whole, inflate=POISON),
            runs.case(f"{name}-healthy", engine, whole, SKIP),
            runs.case(f"{name}-back", engine, whole, "guard.lr_factor=0.5", back_to=[4, back_to]),
            runs.case(f"{name}-fresh", engine, whole, "guard.lr_factor=0.5", back_to=[0, back_to], steps=2),
        ]

    launches = [(1, cases("flat", 1, f"run.batch_gpu={BATCH}")),
                (2, [case for engine in engines for case in cases(engine, 2, f"run.batch_gpu={BATCH // 2}")])]
    runs.train(launches)
    return runs


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max() / max(1.0, float(one[key].abs().max())))
               for key in one if one[key].numel())


def updates(tensors: dict[str, torch.Tensor], name: str) -> set[float]:
    return {float(value) for key, value in tensors.items() if key.startswith(f"optimizer_{name}/") and key.endswith(".step")}


def phases(facts: dict) -> Counter:
    return Counter(phase for phase, *_ in facts["records"])


def everywhere(engines: tuple[str, ...], marks: tuple[pytest.MarkDecorator, ...] = ()) -> list:
    names = ["flat-1", *(f"{engine}-2" for engine in engines)]
    return [pytest.param(engines, name, marks=marks, id=f"{len(engines)}-{name}") for name in names]


EVERYWHERE = pytest.mark.parametrize(
    ("runs", "name"), [*everywhere(USUAL), *everywhere(ENGINES, (pytest.mark.exhaustive,))], indirect=["runs"])


@EVERYWHERE
@pytest.mark.parametrize("kind", ["skip", "inflate"])
def test_an_update_is_skipped_on_all_ranks(kind: str, name: str, runs: WholeRuns):
    facts, tensors = runs.facts(f"{name}-{kind}"), runs.tensors(f"{name}-{kind}")
    taken = phases(facts)
    assert facts["statistics"]["guard/skipped"] == [1, 0]
    assert updates(tensors, "d") == {taken["d_main"] + taken["d_penalty"] - 1}
    assert updates(tensors, "g") == {taken["g_main"] + taken["g_path"]}
    assert facts["broken_steps"] == [STEPS - 1 - 3]
    assert all(value.isfinite().all() for value in tensors.values())
    assert largest_difference(runs.tensors(f"flat-1-{kind}"), tensors) < 1e-5


@EVERYWHERE
def test_a_loss_alone_is_counted_and_changes_nothing(name: str, runs: WholeRuns):
    facts = runs.facts(f"{name}-replace")
    assert facts["broken_steps"] == [STEPS - 1 - 3]
    assert "guard/skipped" not in facts["statistics"]
    for other in ("plain", "replace"):
        assert largest_difference(runs.tensors(f"{name}-{other}"), runs.tensors(f"{name}-healthy")) == 0
    assert runs.facts(f"{name}-plain")["broken_steps"] == []


@EVERYWHERE
def test_going_back_in_place_equals_a_fresh_start_there(name: str, runs: WholeRuns):
    """After a roll-back draws are others, images are the same, and learning rates are lower."""
    back, fresh, plain = (runs.facts(f"{name}-{kind}") for kind in ("back", "fresh", "plain"))
    assert largest_difference(runs.tensors(f"{name}-back"), runs.tensors(f"{name}-fresh")) == 0
    assert [(one["at"], one["to"]) for one in back["rollbacks"]] == [(4 * BATCH, AT * BATCH)]
    assert back["nimg"] == fresh["nimg"] == (AT + 2) * BATCH
    assert fresh["draws"]
    assert not set(fresh["draws"]) & set(plain["draws"])
    assert set(fresh["samples"]) < set(plain["samples"])
    assert largest_difference(runs.tensors("flat-1-back"), runs.tensors(f"{name}-back")) < 1e-5


@pytest.mark.parametrize("runs", [USUAL], indirect=True)
def test_learning_rates_are_lower_after_a_roll_back(runs: WholeRuns):
    assert 0 < moved(runs, "flat-1-back") < moved(runs, "flat-1-plain")


def moved(runs: WholeRuns, name: str) -> float:
    """How far the generator is from the checkpoint that one of them has gone back to, for each step since."""
    folder = runs.folder / f"flat-1-half/checkpoints/nimg-{AT * BATCH:08d}"
    before = {key: value for path in folder.glob("g-*.safetensors") for key, value in load_file(path).items()}
    after = load_file(runs.checkpoint(name) / "g.safetensors")
    return float(sum((after[key] - before[key]).abs().sum() for key in before)) / (runs.facts(name)["nimg"] // BATCH - AT)
