"""Recorded phases, without a GPU: a tape of operations stands in for CUDA graphs, everything else is the real thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY
from tape import FORBIDDEN, ONLY_ON_CPUS, TapeRecorder
from torch import Tensor

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.constants import constant
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.engine.graphs import WARM_UP, GraphLearner, why_no_graphs
from stylegan_dist.ops import resample
from stylegan_dist.ranks import ALONE
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches, run_phase


class FailingRecorder(TapeRecorder):
    """Fails in the middle of its work, when gradients of some parameters are there."""

    def record(self, work: Callable) -> tuple[Callable[[], None], Any]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


class Run:
    """Steps of a real training, with recorded phases or without."""

    def __init__(self, shards: Path, recorder: TapeRecorder | None, *overrides: str):
        index = load_index(shards)
        resolved = resolve(load_config(None, [*TINY, f"data.shards={shards}", *overrides]), index)
        self.config, self.conditional, self.kind = resolved.config, resolved.conditional, index.kind
        self.state = TrainState(resolved, index, torch.device("cpu"))
        if recorder:
            for name, network in self.state.networks.items():
                self.state.learners[name] = GraphLearner(network, self.state.optimizers[name], ALONE, recorder)
        d = self.config.data
        self.stream = BatchStream(index, StreamPlan(self.config.run.seed, d.lanes, d.block, self.config.run.batch,
                                                    mirror=d.mirror))
        self.records: list[dict[str, float]] = []
        self.notices: list[str] = []

    def train(self, steps: int) -> None:
        state, batch = self.state, self.config.run.batch
        for _ in range(steps):
            batch_gpu, cpu = self.config.run.batch_gpu, torch.device("cpu")
            parts = micro_batches(next(self.stream), batch_gpu, self.conditional, cpu, self.kind)
            for phase in state.phases:
                if (state.nimg // batch) % phase.interval == 0:
                    result = run_phase(state, phase, parts, {"stop": torch.tensor(float(state.nimg))})
                    assert result.counts["stop"] == state.nimg
                    self.records.append({"norm": result.gradient_norm, "bad": result.nonfinite, **result.statistics,
                                         **{f"mean of {name}": mean for name, mean in result.running_means.items()}})
                    self.notices += [result.notice] if result.notice else []
            state.ema.update(state.generator, state.nimg, batch)
            state.nimg += batch

    def everything(self) -> dict[str, Tensor]:
        files = self.state.tensors()
        found = {f"{file}.{name}": x for file, values in files.items() for name, x in values.items()}
        found |= {f"{number}.{name}": x for number, record in enumerate(self.records) for name, x in record.items()}
        return {**found, "path_mean": self.state.objective.running["path_mean"]}


def assert_same(one: Run, other: Run) -> None:
    a, b = one.everything(), other.everything()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


CASES = {
    "whole": ("data.conditional=false",),
    "micro-batches": ("data.conditional=false", "run.batch_gpu=4", "optim.g.l1=1e-3"),
    "joined": ("data.conditional=false", "loss.penalty_interval=1", "loss.path_length_interval=1", "run.batch_gpu=4"),
    "approximate": ("data.conditional=false", "loss.penalty=approximate"),
    "recompute": ("data.conditional=false", "run.recompute=8"),
    "conditional": ("run.batch_gpu=4",),
    "relativistic": ("loss.adversarial=relativistic", "optim.g.name=SGD", "optim.g.lr=0.001"),
}


USUAL = {"micro-batches", "recompute"}  # the others in the exhaustive run


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case == "whole" else pytest.mark.full if case in USUAL
                                               else pytest.mark.exhaustive) for case in CASES])
def test_replayed_phases_equal_ordinary_ones(case: str, labelled_shards: Path, monkeypatch):
    conditional = "data.conditional=false" not in CASES[case]
    recorder = TapeRecorder([name for name in FORBIDDEN if not (conditional and name in ONLY_ON_CPUS)])
    plain, recorded = (Run(labelled_shards, r, *CASES[case]) for r in (None, recorder))
    for run in (plain, recorded):
        monkeypatch.setattr(resample, "low_pass", constant(resample.low_pass.__wrapped__))  # as in a new process
        run.train(10)
    assert recorder.records == len(plain.state.phases)
    assert recorder.replays == sum(-(-10 // phase.interval) - WARM_UP for phase in plain.state.phases)
    assert not recorded.notices
    assert_same(plain, recorded)


def test_a_weight_of_a_loss_moves_under_the_recordings(labelled_shards: Path):
    """As a schedule moves it."""
    recorder = TapeRecorder(())
    plain, recorded, constant_weight = (Run(labelled_shards, r) for r in (None, recorder, None))
    for run in (plain, recorded, constant_weight):
        run.train(8)
        if run is not constant_weight:
            run.state.objective.set_weight("r1_gamma", 7.0)
            run.state.objective.set_weight("path_length_weight", 0.25)
        run.train(4)
    assert recorder.replays > 0
    assert_same(plain, recorded)
    with pytest.raises(AssertionError):
        assert_same(plain, constant_weight)


def test_a_restored_state_is_what_replays_work_on(labelled_shards: Path):
    """The state goes back to where it was 4 steps ago, under the recordings."""
    recorder = TapeRecorder(())
    plain, recorded = (Run(labelled_shards, r) for r in (None, recorder))
    recorded.train(8)
    early = Run(labelled_shards, None)
    early.train(4)
    for name, learner in recorded.state.learners.items():
        learner.restore(early.state.learners[name].parameters(), early.state.learners[name].optimizer_state())
    recorded.state.generator.w_avg.copy_(early.state.generator.w_avg)
    recorded.state.objective.running["path_mean"].copy_(early.state.objective.running["path_mean"])
    recorded.state.ema.restore(early.state.ema.tensors())
    recorded.state.nimg, recorded.stream, recorded.records = early.state.nimg, early.stream, early.records
    before = recorder.replays
    recorded.train(6)
    plain.train(10)
    assert recorder.replays > before
    assert_same(plain, recorded)


def test_where_recording_fails_training_goes_on(labelled_shards: Path):
    plain, recorded = (Run(labelled_shards, r) for r in (None, FailingRecorder()))
    for run in (plain, recorded):
        run.train(10)
    assert recorded.notices == 2 * ["CUDA graphs are off, recording failed (operation not permitted when stream is "
                                    "capturing); training goes on without them"]  # of each network
    assert_same(plain, recorded)


@pytest.mark.parametrize(("arguments", "reason"), [
    (("auto", "cuda", False, "auto"), "auto"),
    ((False, "cuda", False, "auto"), "run.cuda_graphs"),
    ((True, "cpu", False, "auto"), "no GPU"),
    ((True, "cuda", True, "auto"), "DeepSpeed"),
    ((True, "cuda", False, "buckets"), "run.reduction"),
])
def test_why_not(arguments: tuple, reason: str):
    assert reason in why_no_graphs(*arguments)


def test_on_a_gpu_they_are_on():
    assert not why_no_graphs(True, "cuda", False, "auto")
    assert not why_no_graphs(True, "cuda", False, "flat")


def test_a_run_says_why_there_are_none(labelled_shards: Path, capsys: pytest.CaptureFixture):
    arguments = ["train", *TINY, f"data.shards={labelled_shards}", "run.cuda_graphs=true", "--dry-run"]
    assert main(arguments) == 0
    assert re.search(r"graphs +off \(there is no GPU\)", capsys.readouterr().out)
