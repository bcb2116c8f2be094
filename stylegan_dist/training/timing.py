"""Durations of the phases of a step, measured without waiting for the device."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch


class PhaseTimer:
    """Measures named stretches; CUDA events on a GPU, a wall clock on a CPU."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._stretches: dict[str, list] = defaultdict(list)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._stretches[name].append((begin, self._now()))

    def take(self) -> dict[str, float]:
        """The mean seconds of each name since the last call. Waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        means = {name: sum(self._seconds(*one) for one in every) / len(every) for name, every in self._stretches.items()}
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
