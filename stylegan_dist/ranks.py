"""The ranks of a run: their communication, and tensors that are distributed over them.

This module knows torch.distributed, but neither Accelerate, nor DeepSpeed, nor how gradients are summed (`engine/`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

# Imported before there is a process group, because its functions take the group of that moment as default arguments.
# torch's optimizers would import it later. The group's threads would then live until the interpreter ends, where they
# abort the process now and then.
import torch.distributed.nn

from stylegan_dist.errors import InputError, RankLost

MEET_SECONDS = 10.0  # between two meetings of the ranks while rank 0 works
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """What rules must know of the machines.

    Attributes:
        size: number of processes.
        device_type: "cuda" or "cpu".
        bf16: whether the device computes in bfloat16 natively.
        sharded_generator: whether no rank holds the whole generator.
    """

    size: int = 1
    device_type: str = "cpu"
    bf16: bool = False
    sharded_generator: bool = False


class Ranks:
    """This process among the others of a run.

    Args:
        rank, world_size: its number, and how many there are; more than one need a process group.
        device: where its tensors live.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self._begun = 0  # stages and collectives; the others wait for a rank that has begun fewer
        self._stage = ("starting", 0, time.monotonic())
        self.on_computed: Callable[[], None] = lambda: None

    def enter(self, doing: str, nimg: int, step: bool = False) -> None:
        """Say what this rank does from now on, in words, and how many images it has seen; the other ranks can look it up.

        All ranks enter the same stages, so that the one that is behind is known where a library does the collectives.

        Args:
            step: it is a part of a training step, for which an engine has a time limit of its own.
        """
        self._begun += 1
        self._stage = (doing, nimg, time.monotonic())

    def describe_stage(self, doing: str) -> None:
        """Say more about what this rank does now."""
        self._stage = (doing, *self._stage[1:])

    def where(self) -> tuple[str, int, int, float]:
        """What this rank does, images seen, stages and collectives begun, and since when (time.monotonic)."""
        doing, nimg, since = self._stage
        return doing, nimg, self._begun, since

    def computed(self) -> None:
        """Called by a learner when this rank has computed its part of a phase and is about to wait for the others."""
        self.on_computed()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """`value` becomes the sum over all ranks, in place."""
        if self.world_size > 1:
            self._collective(dist.all_reduce, value)
        return value

    def together(self, function: Callable[[], T]) -> T:
        """Run `function` on every rank; if it raises InputError or OSError on any, all raise the first one's InputError.

        The message says which rank that was, if rank 0 had no error.
        """
        result, failure = None, None
        try:
            result = function()
        except (InputError, OSError) as error:
            failure = f"{error} (on rank {self.rank}, {host_name()})" if self.rank else str(error)
        for text in self.gather(failure):
            if text is not None:
                raise InputError(text)
        return cast(T, result)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Run `function` on rank 0 alone while the others wait; its InputError is raised on every rank.

        Returns: what the function returned on rank 0, None elsewhere.
        """
        return self.together(lambda: function() if self.is_main else None)

    def on_main_at_length(self, function: Callable[[], T]) -> T | None:
        """As `on_main`, for what may take longer than a rank waits for another: meanwhile the ranks meet again and again.

        The function runs in a thread of rank 0. What PyTorch keeps for each thread, such as `no_grad`, does not hold there.
        """
        if self.world_size == 1:
            return function()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            work = pool.submit(function) if self.is_main else None
            ended = False
            while not ended:
                if work is not None:
                    ended = bool(concurrent.futures.wait([work], MEET_SECONDS).done)
                ended = bool(self.sum(torch.tensor(float(ended), device=self.device)))
            return self.together(lambda: work.result() if work is not None else None)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank. Anything that JSON can carry."""
        return self.gather(value if self.is_main else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank. Anything that JSON can carry."""
        if self.world_size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(text)
        self.sum(lengths)
        texts = torch.zeros(self.world_size, int(lengths.max()), dtype=torch.uint8, device=self.device)
        texts[self.rank, :len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.sum(texts)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(texts.cpu(), lengths.tolist(), strict=True)]

    def agree(self, values: Sequence[float]) -> bool:
        """Whether all ranks hold the same numbers, to the last bit; NaN equals NaN."""
        everyone = self.gather([float(value).hex() for value in values])
        return all(theirs == everyone[0] for theirs in everyone)

    def read_later(self, value: torch.Tensor) -> Callable[[], float]:
        """Start to fetch a number from the device; the result, when called, waits only for that number."""
        if self.device.type != "cuda":
            number = float(value)
            return lambda: number
        host = torch.empty((), pin_memory=True)
        host.copy_(value, non_blocking=True)
        fetched = torch.cuda.Event()
        fetched.record()

        def wait() -> float:
            fetched.synchronize()
            return float(host)

        return wait

    def _collective(self, function: Callable, *args: Any, **kwargs: Any) -> None:
        self._begun += 1
        with lost_ranks_reported():
            function(*args, **kwargs)


@dataclass(frozen=True)
class Sharded:
    """A tensor of the state of which each rank holds a part."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]  # the whole tensor; all ranks must call it


def part_of(size: int, ranks: Ranks) -> tuple[int, int]:
    """(start, length) of this rank's part of `size` values."""
    part = -(-size // ranks.world_size)
    start = min(ranks.rank * part, size)
    return start, min(part, size - start)


def assemble(shape: torch.Size, part: torch.Tensor | None, start: int, ranks: Ranks) -> torch.Tensor:
    """The whole of a float32 tensor of which each rank gives its part (None: nothing of it). All ranks must call it."""
    whole = torch.zeros(shape.numel(), dtype=torch.float32, device=ranks.device)
    if part is not None:
        whole[start:start + len(part)] = part
    ranks.sum(whole.view(torch.int32))  # adding zeros to the bits keeps even -0.0
    return whole.view(shape)


def sum_of_bits(tensors: Iterable[torch.Tensor]) -> float:
    """A number that changes with any one bit of the tensors; one fast pass over them, and one wait for the device."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in tensors:
        integer = integers[tensor.dtype.itemsize]
        sums.append(tensor.detach().view(integer).sum(dtype=integer).long())  # what overflows is left out
    return float(sum(torch.stack(sums).tolist()) % 2**53) if sums else 0.0


def host_name() -> str:
    """The name of this machine, as the person who starts the run knows it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


@contextlib.contextmanager
def lost_ranks_reported(only: str = "") -> Iterator[None]:
    """Turn the errors of the backends about a lost peer into RankLost. They have no common type for it.

    Args:
        only: a regular expression that the message must match, where other errors can occur, too.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not re.search(only, str(error)):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise RankLost(f"lost contact with another rank ({reason})") from error


# Inside a backward pass that communicates; anything else is an error of the computation.
COMMUNICATION = r"(?i)gloo|nccl|connection|timed out|process group|socket"
ALONE = Ranks()
