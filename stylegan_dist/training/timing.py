"""Durations of the phases of a step, measured without waiting for the device, and ranks that are slower than the others."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

SLOWER = 1.1        # times the median: what counts as a slow rank
SHOWN_RANKS = 16    # of the table
MOST_RANKS = 64     # whose times are recorded one by one
# Seconds a step by which a slow rank is slower at least. On CPUs other processes share the cores.
LEAST_DIFFERENCE = {"cpu": 0.05, "cuda": 0.002}


class PhaseTimer:
    """Measures named stretches; CUDA events on a GPU, a wall clock on a CPU.

    Attributes:
        own_seconds: the sum over the stretches before the last `take`, each up to its last call of `computed`; None if
            that was not called in each. So long has this rank worked without waiting for another.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._stretches: dict[str, list] = defaultdict(list)
        self._computed: Any = None
        self.own_seconds: float | None = None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin, self._computed = self._now(), None
        yield
        self._stretches[name].append((begin, self._computed, self._now()))

    def computed(self) -> None:
        """From here on the stretch waits for other ranks, and then does what takes all of them the same time."""
        self._computed = self._now()

    def take(self) -> dict[str, float]:
        """The mean seconds of each name since the last call. Waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        means = {name: sum(self._seconds(begin, end) for begin, _, end in every) / len(every)
                 for name, every in self._stretches.items()}
        own = [(begin, computed) for every in self._stretches.values() for begin, computed, _ in every]
        known = bool(own) and all(computed is not None for _, computed in own)
        self.own_seconds = sum(self._seconds(*one) for one in own) if known else None
        self._stretches.clear()
        return means

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin


class SlowRanks:
    """Finds the ranks that keep the others waiting, and says so when they are others than the last time.

    It says nothing of its first look: in the first steps much happens for the first time.

    Args:
        hosts: the machines of all ranks, in their order.
        device_type: "cuda" or "cpu".
    """

    def __init__(self, hosts: Sequence[str], device_type: str):
        self._hosts, self._least = hosts, LEAST_DIFFERENCE[device_type]
        self._told: list[int] | None = None

    def look(self, seconds: Sequence[float | None]) -> tuple[dict[str, float], str]:
        """Metrics, and a table for a person or nothing.

        Args:
            seconds: a step of each rank without what it waits for others; None where an engine cannot tell.
        """
        known = {rank: value for rank, value in enumerate(seconds) if value is not None}
        if len(known) < 2:
            return {}, ""
        median = statistics.median_low(known.values())
        ranked = sorted(known, key=lambda rank: -known[rank])
        metrics = {"time/rank_step_slowest": known[ranked[0]], "time/rank_step_median": median,
                   "time/rank_step_fastest": known[ranked[-1]]}
        if len(seconds) <= MOST_RANKS:
            metrics |= {f"time/rank_step/{rank}": value for rank, value in known.items()}
        slow = sorted(rank for rank in known if known[rank] > max(SLOWER * median, median + self._least))
        first, self._told = self._told is None, self._told or []
        if first or not slow or slow == self._told:
            return metrics, ""
        self._told = slow
        width = max(len(self._hosts[rank]) for rank in ranked[:SHOWN_RANKS])
        lines = [f"  rank {rank:<5} {self._hosts[rank]:<{width}}  {known[rank] * 1000:8.1f} ms"
                 for rank in ranked[:SHOWN_RANKS]]
        return metrics, "\n".join([
            f"{len(slow)} of {len(known)} ranks need more than {SLOWER - 1:.0%} longer for a step than the median of "
            f"{median * 1000:.1f} ms, and the others wait for them (see whether something else runs there, or a GPU is hot or "
            "throttled). Without waiting for others a step takes", *lines,
            *([f"  and {len(known) - SHOWN_RANKS} faster ones"] if len(known) > SHOWN_RANKS else [])])
