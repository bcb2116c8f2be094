"""Memory for batches: of this process, or shared with reader processes."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch

from stylegan_dist.data.workers import shared_bytes

_KEPT_BUFFERS = 2
_LINE = 64  # bytes: slots begin at a cache line


class Buffers:
    """Memory of batches that are gone is used again: the kernel takes as long to hand out fresh memory as half a decoder."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of bytes, without values."""
        memory = self._free.pop() if self._free else np.empty(shape, np.uint8)
        return _lend(memory, self._give_back, memory)

    def _give_back(self, memory: np.ndarray) -> None:
        if len(self._free) < _KEPT_BUFFERS:
            self._free.append(memory)


class Slots:
    """Memory for a number of batches, which reader processes fill and this process lends out: nothing is copied.

    Args:
        number: of slots.
        shape: of each, in bytes.
    Raises:
        OSError: there is not so much memory.
    """

    def __init__(self, number: int, shape: tuple[int, ...]):
        self._shape = shape
        self._memory = shared_bytes(number * self._stride)
        self.free = list(range(number))

    @property
    def _stride(self) -> int:
        return -(-math.prod(self._shape) // _LINE) * _LINE

    def __getstate__(self) -> dict[str, Any]:  # for a reader, which takes no slots
        return {"_shape": self._shape, "_memory": self._memory}

    def at(self, slot: int) -> np.ndarray:
        """The bytes of a slot."""
        return np.frombuffer(self._memory, np.uint8, math.prod(self._shape), slot * self._stride).reshape(self._shape)

    def lend(self, slot: int) -> torch.Tensor:
        """A slot that has been filled; it is free again when the tensor, and all that shares its memory, are gone."""
        return _lend(self.at(slot), self.free.append, slot)


def _lend(memory: np.ndarray, give_back: Any, *args: Any) -> torch.Tensor:
    lent = memory.view()  # held by the tensor and everything that shares its memory, and by nothing else
    weakref.finalize(lent, give_back, *args).atexit = False
    return torch.from_numpy(lent)
