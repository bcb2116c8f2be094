"""Train lists of cases in the processes of a few launches: `python tests/helpers/engine_cases.py LAUNCHES.json`.

The file holds [[ranks, [case, ...]], ...]. Each case trains real networks on real shards under one engine and writes a
checkpoint, with the code of the training loop, but many cases share the cost of a launch. A case is an object with

    engine      "flat", "recorded", "ddp", "zero1", "zero2", "zero3", "zero3-both", "zero2-offload", ...
    overrides   of the configuration
    start       folder of a checkpoint to continue from, or null
    steps       to train
    out         folder to save in
    poison      optional: the number of an image that is infinitely bright
    inflate     optional: the number of an image with which the discriminator's loss is infinite, but no gradient
    back_to     optional: [steps, folder of a checkpoint to go back to after so many]
    on_the_way  optional: {folder: steps} of other checkpoints to save, in many small files
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - imported by every engine of DeepSpeed, and slowly
import torch
import torch._dynamo  # likewise
from forking import run_ranks
from saving import save_checkpoint
from tape import FORBIDDEN, ONLY_ON_CPUS, TapeRecorder

from stylegan_dist import engine as engines
from stylegan_dist import randomness
from stylegan_dist.config import load_config
from stylegan_dist.config.schema import RunConfig
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.engine import PhaseResult
from stylegan_dist.engine.choice import DATA_PARALLEL, Choice, Zero
from stylegan_dist.objective.phases import Phase
from stylegan_dist.objective.result import LossResult
from stylegan_dist.ranks import Ranks
from stylegan_dist.training import loop
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches
from stylegan_dist.training.timing import PhaseTimer
from stylegan_dist.training.transfer import open_transfer

SMALL_FILES = 4000  # bytes

CHOICES = {
    "flat": DATA_PARALLEL,
    "recorded": DATA_PARALLEL,  # with a tape in place of CUDA graphs
    "ddp": DATA_PARALLEL,
    "zero1": Choice({"g": Zero(1), "d": Zero(1)}),
    "zero2": Choice({"g": Zero(2), "d": Zero(2)}),
    "zero3": Choice({"g": Zero(3), "d": Zero(2)}),
    "zero3-all-cut": Choice({"g": Zero(3, buffers={"stage3_param_persistence_threshold": 0}), "d": Zero(2)}),
    "zero3-both": Choice({"g": Zero(3), "d": Zero(3)}),
    "zero1-offload": Choice({"g": Zero(1, offload=True), "d": Zero(1, offload=True)}),
    "zero2-offload": Choice({"g": Zero(2, offload=True), "d": Zero(2, offload=True)}),
    "zero3-offload": Choice({"g": Zero(3, offload=True), "d": Zero(2, offload=True)}),
    "zero2-buckets": Choice(dict.fromkeys("gd", Zero(2, buffers={"reduce_bucket_size": 500, "allgather_bucket_size": 700}))),
    "zero3-groups": Choice({"g": Zero(3, buffers={"sub_group_size": 700, "stage3_prefetch_bucket_size": 0,
                                                  "overlap_comm": False}), "d": Zero(2)}),
    "zero2-g": Choice({"g": Zero(2)}),
}


class Draws:
    """What was drawn for which image, whoever drew it."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._plain, self._address = randomness._addressed, randomness.noise_address
        randomness._addressed, randomness.noise_address = self._record, self._record_address

    def _record(self, seed, purpose, index, block, substream):
        words = self._plain(seed, purpose, index, block, substream)
        for number, row in zip(index.tolist(), words, strict=True):
            self.seen.add(f"{purpose} {number} {hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16]}")
        return words

    def _record_address(self, seed, purpose, index):
        address = self._address(seed, purpose, index)
        for number, row in zip(index.tolist(), address.tolist(), strict=True):
            self.seen.add(f"{purpose} {number} {row}")
        return address

    def taken(self, ranks: Ranks) -> list[str]:
        seen, self.seen = sorted(self.seen), set()
        return sorted({line for part in ranks.gather(seen) for line in part})


class Phases:
    """What each phase of a step has measured. A phase of one network leaves the other one alone."""

    def __init__(self) -> None:
        self.records: list[list] = []
        self._plain = loop.run_phase
        loop.run_phase = self._record

    def _record(self, state: TrainState, phase: Phase, *arguments: Any) -> PhaseResult:
        with nothing_leaks(state, phase.network):
            result = self._plain(state, phase, *arguments)
        means = {name: value.item() for name, value in result.statistics.items()}
        self.records.append([phase.name, result.gradient_norm.item(), result.nonfinite.item(), means])
        return result

    def taken(self) -> list[list]:
        records, self.records = self.records, []
        return records


def train_all(cases: list[dict]) -> None:
    """In the processes of a launch."""
    engine = engines.Engine(RunConfig(device="cpu", threads=1, timeout=1800))
    draws, phases = Draws(), Phases()
    for case in cases:
        train(case, engine, draws, phases)
    engine.close()


def train(case: dict, engine: engines.Engine, draws: Draws, phases: Phases) -> None:
    """One case."""
    config = load_config(None, case["overrides"])
    index = load_index(config.data.shards)
    engine.choice = CHOICES[case["engine"]]
    engine.reduction = "buckets" if case["engine"] == "ddp" else "flat"
    recorder = TapeRecorder([name for name in FORBIDDEN if name not in ONLY_ON_CPUS])
    engine._recorder = recorder if case["engine"] == "recorded" else None
    resolved = resolve(config, index, engine.world)
    config, out = resolved.config, Path(case["out"])
    state = TrainState(resolved, index, engine.device, engine, open_transfer(resolved, index, engine))
    if case["start"]:
        state.restore(Path(case["start"]))
    d, batch = config.data, config.run.batch
    stream = BatchStream(index, StreamPlan(config.run.seed, d.lanes, d.block, batch, engine.rank, engine.world_size, state.nimg,
                                           d.mirror))
    draws.taken(engine)
    samples, stop = [], torch.zeros(())
    if "inflate" in case:
        inflate(state, case["inflate"])
    for done in range(case["steps"]):
        if done == case.get("back_to", [-1])[0]:
            state.go_back(Path(case["back_to"][1]), "a test")
            stream.go_to(state.nimg)
        read = next(stream)
        samples += [f"{i} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}"
                    for i, image in zip(read.index.tolist(), read["sample"], strict=True)]
        parts = micro_batches(read, config.run.batch_gpu, resolved.conditional, engine.device, index.kind)
        for part in parts:
            part.images[part.index == case.get("poison", -1)] = torch.inf
        loop.train_networks(state, parts, stop, PhaseTimer(engine.device), no_notice)
        for folder, steps in case.get("on_the_way", {}).items():
            if state.nimg == steps * batch:
                engine.on_main(lambda folder=folder: Path(folder).mkdir(parents=True, exist_ok=True))
                save_checkpoint(Path(folder), state.nimg, state.tensors(), state.facts(), engine, SMALL_FILES)
    stream.close()
    facts = {**state.facts(), "draws": draws.taken(engine), "records": phases.taken(), "replays": recorder.replays,
             "samples": sorted(line for part in engine.gather(samples) for line in part)}
    assert engine.agree(state.checksums())
    engine.on_main(lambda: out.mkdir(parents=True, exist_ok=True))
    save_checkpoint(out, state.nimg, state.tensors(), facts, engine, 1 << 30)
    for learner in state.learners.values():
        learner.close()


def inflate(state: TrainState, image: int) -> None:
    """Make the discriminator's loss infinite for the rank that has an image; gradients stay as they are."""
    (phase,) = (phase for phase in state.phases if phase.name == "d_main")
    plain = phase.losses[0]

    def infinite(part):
        result = plain(part)
        more = torch.where((part.index == image).any(), torch.inf, 0.0)
        return LossResult(result.share + more, {**result.statistics, "loss/d_main": result.statistics["loss/d_main"] + more})

    state.phases[state.phases.index(phase)] = replace(phase, losses=(infinite, *phase.losses[1:]))


def no_notice(text: str) -> None:
    raise AssertionError(text)


class nothing_leaks:  # noqa: N801 - used like a function
    """A phase of one network leaves the other one alone: no gradient, no change of a bit."""

    def __init__(self, state: TrainState, learning: str):
        (self.name,) = {"g", "d"} - {learning}
        self.state = state
        self.other = state.learners[self.name]

    def _bits(self) -> Iterator[torch.Tensor]:
        yield from (values.clone() for _, values, _ in self.other.local())
        yield from (p.grad.clone() for p in self.other.network.parameters() if p.grad is not None)
        for state in self.other.optimizer.state.values():
            yield from (torch.as_tensor(value).clone() for value in state.values() if value is not None)

    def __enter__(self) -> None:
        self.before = list(self._bits())

    def __exit__(self, *_: object) -> None:
        assert all(p.grad is None or not p.requires_grad for p in self.other.network.parameters())
        after = list(self._bits())
        assert len(after) == len(self.before)
        assert all(torch.equal(a, b) for a, b in zip(self.before, after, strict=True)), f"{self.name} has changed"


if __name__ == "__main__":
    for world, cases in json.loads(Path(sys.argv[1]).read_text()):
        run_ranks(world, partial(train_all, cases))
