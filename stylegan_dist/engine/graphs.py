"""CUDA graphs: the backward passes of a phase are recorded once and replayed.

At small resolutions a phase is thousands of kernels, each shorter than its launch. A graph launches all of them
at once. It replays the same kernels on the same addresses, so no bit changes.

A recording holds losses, backward passes, and the buffer of gradients and statistics. The sum over the ranks stays outside.
The update stays outside, too: an optimizer can only be recorded with another arithmetic (`capturable`), which would
change the run, and its few kernels work on all parameters at once.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stylegan_dist.engine.data_parallel import FlatLearner
from stylegan_dist.engine.learner import Job, PhaseResult, Sums
from stylegan_dist.ranks import Ranks

T = TypeVar("T")
Replay = Callable[[], None]

# Ordinary executions of a phase before it is recorded. They make what is made once and must not be part of a
# graph: handles and workspaces of libraries, chosen algorithms, cached filters.
WARM_UP = 3


class CudaRecorder:
    """CUDA graphs that share their memory, for work that never overlaps. All of a process should use one."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def forget(self) -> None:
        """Recordings of before are no longer used; memory that no recording holds cannot be shared again."""
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, work takes place where it would be recorded; after it, everyone may use its results."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            yield
        here.wait_stream(self._stream)

    def record(self, work: Callable[[], T]) -> tuple[Replay, T]:
        """A function that does the work, reading and writing the same memory every time, and where the results will be."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads go on to allocate and to ask for events, as those of NCCL and of pinned memory do.
        # The stream is set around it, too, because torch.cuda.graph does not set it back if it fails at its end.
        with torch.cuda.stream(self._stream), torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


@dataclass
class _Recording:
    """A recorded phase: where it reads and where it writes."""

    inputs: list[Tensor]
    replay: Replay
    line: Tensor
    sums: Sums


class GraphLearner(FlatLearner):
    """A `FlatLearner` that replays what it has recorded.

    A recording is for certain losses and shapes. If it fails, phases go on without graphs, and the next result has
    a notice that says so.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, recorder: CudaRecorder):
        super().__init__(network, optimizer, ranks)
        self._recorder: CudaRecorder | None = recorder
        self._executions: Counter[tuple] = Counter()
        self._recordings: dict[tuple, _Recording] = {}
        self._notice = ""

    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool,
             skip: bool = False, clip: float = 0.0) -> PhaseResult:
        result = super().step(jobs, counts, l1, second_order, skip, clip)
        result.notice, self._notice = self._notice, ""
        return result

    def restore(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        super().restore(parameters, optimizer_state)
        if self._recorder is not None and self._recordings:  # they hold the seed of their draws, which a roll-back changes
            self._recordings.clear()
            self._recorder.forget()

    def _accumulate(self, jobs: Sequence[Job], counts: Mapping[str, Tensor]) -> tuple[Tensor, Sums]:
        if self._recorder is None:
            return super()._accumulate(jobs, counts)
        inputs = _inputs(jobs, counts)
        key = tuple(job.loss for job in jobs), tuple((x.shape, x.dtype) for x in inputs), tuple(counts)
        self._executions[key] += 1
        if self._executions[key] <= WARM_UP:
            with self._recorder.aside():
                return super()._accumulate(jobs, counts)
        if key not in self._recordings:
            try:
                self._recordings[key] = self._record(self._recorder, jobs, counts)
            except Exception as error:  # whatever it is, the phase can take place without a graph
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self._notice = f"CUDA graphs are off, recording failed ({reason}); training goes on without them"
                self._recorder = None
                self._recordings.clear()
                return super()._accumulate(jobs, counts)
        recording = self._recordings[key]
        for fixed, new in zip(recording.inputs, inputs, strict=True):
            fixed.copy_(new)
        recording.replay()
        return recording.line, recording.sums

    def _record(self, recorder: CudaRecorder, jobs: Sequence[Job], counts: Mapping[str, Tensor]) -> _Recording:
        """Record a phase that reads copies of its inputs."""
        parts = {id(job.part): _copy(job.part) for job in jobs}
        jobs = [replace(job, part=parts[id(job.part)]) for job in jobs]
        counts = {name: value.clone() for name, value in counts.items()}
        replay, (line, sums) = recorder.record(lambda: FlatLearner._accumulate(self, jobs, counts))
        return _Recording(_inputs(jobs, counts), replay, line, sums)


def _inputs(jobs: Sequence[Job], counts: Mapping[str, Tensor]) -> list[Tensor]:
    """All tensors that jobs and counts consist of, each part once, in an order that depends on nothing else."""
    parts = {id(job.part): job.part for job in jobs}.values()
    return [x for part in parts for x in vars(part).values() if isinstance(x, Tensor)] + list(counts.values())


def _copy(part: Any) -> Any:
    return replace(part, **{name: value.clone() for name, value in vars(part).items() if isinstance(value, Tensor)})


def why_no_graphs(wanted: bool | str, device_type: str, zero: bool, reduction: str) -> str:
    """Why phases are not recorded; empty if they are.

    Args:
        wanted: run.cuda_graphs.
        device_type: "cuda" or "cpu".
        zero: whether DeepSpeed trains a network.
        reduction: how data parallel training is asked to sum gradients: "flat", "buckets" or "auto".
    """
    if wanted == "auto":
        return "auto: not measured on a GPU yet"
    if not wanted:
        return "run.cuda_graphs"
    if device_type != "cuda":
        return "there is no GPU"
    if zero:
        return "DeepSpeed communicates within the backward pass"
    if reduction == "buckets":
        return "run.reduction=buckets communicates within the backward pass"
    return ""
