"""Memory for batches, which reader processes fill and the training process lends out: nothing is copied."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.data.workers import shared_bytes

_LINE = 64  # bytes: fields begin at a cache line


class Layout:
    """Where the fields of a batch lie in one piece of memory.

    Args:
        fields: shape and dtype of each.
    """

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]]):
        self.bytes = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._fields = dict(fields)
        for name, (shape, dtype) in fields.items():
            size = math.prod(shape) * dtype.itemsize
            self._places[name] = self.bytes, self.bytes + size
            self.bytes += -(-size // _LINE) * _LINE

    def fields(self, memory: Tensor) -> dict[str, Tensor]:
        """The fields in a memory, uint8 [bytes]."""
        found = {}
        for name, (shape, dtype) in self._fields.items():
            begin, end = self._places[name]
            found[name] = memory[begin:end].view(dtype).view(shape)
        return found


class Slots:
    """Memory for a number of batches. That of batches which are gone is used again.

    Fresh memory would cost half as much as decoding: the kernel clears it.

    Raises:
        OSError: there is not so much memory.
    """

    def __init__(self, number: int, size: int):
        self._size = size
        self._memory = shared_bytes(number * size)
        self.free = list(range(number))

    def __getstate__(self) -> dict[str, Any]:  # for a reader, which takes no slots
        return {"_size": self._size, "_memory": self._memory}

    def at(self, slot: int) -> Tensor:
        """The bytes of a slot."""
        return torch.from_numpy(self._bytes(slot))

    def lend(self, slot: int) -> Tensor:
        """The same. The slot is free again when the tensor, and all that shares its memory, are gone."""
        lent = self._bytes(slot)  # held by the tensor and everything that shares its memory, and by nothing else
        weakref.finalize(lent, self.free.append, slot).atexit = False
        return torch.from_numpy(lent)

    def _bytes(self, slot: int) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, self._size, slot * self._size)
