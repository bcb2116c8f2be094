"""Writes one safetensors file from host memory, in one pass that also computes its SHA-256.

The bytes are those of safetensors' own `save_file`, after which every file would have to be read again for its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stylegan_dist.ranks import Sharded

# In the order in which a file holds them: larger ones first, so that all are aligned.
_TYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
          torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL"}
_ORDER = {dtype: number for number, dtype in enumerate(_TYPES)}
PIECE = 1 << 23  # bytes that are hashed and written at once; Python's lock is free meanwhile


class Cancelled(OSError):
    """Nobody wants the file any more."""


class TensorFile:
    """The content of a file, for which host memory is there.

    Args:
        content: names, shapes and types; no value is read.
        buffer: memory of an earlier file, used again if it has the size.
        pinned: memory to which a GPU copies at full speed; plain memory where there is none.
    """

    def __init__(self, content: Mapping[str, Tensor | Sharded], buffer: Tensor | None = None, pinned: bool = False):
        entries: dict[str, dict] = {}
        self._places: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}
        start = 0
        for name, value in sorted(content.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])):
            end = start + value.shape.numel() * value.dtype.itemsize
            entries[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
            self._places[name] = start, end, value.dtype, value.shape
            start = end
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        self.buffer = buffer if buffer is not None and len(buffer) == start else _memory(start, pinned)

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Copy a value. From a GPU to pinned memory this only starts; synchronize before the file is used."""
        self._view(name).copy_(value.detach(), non_blocking=True)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values in the order of the file, as views."""
        for name in self._places:
            yield name, self._view(name)

    def _view(self, name: str) -> Tensor:
        start, end, dtype, shape = self._places[name]
        return self.buffer[start:end].view(dtype).view(shape)

    def write(self, path: Path, cancelled: Callable[[], bool] = lambda: False) -> dict[str, int | str]:
        """Write and sync the file.

        Returns: its size in bytes and its SHA-256, as the manifest names them.
        Raises:
            OSError: it cannot be written.
            Cancelled: `cancelled` said so, between two pieces.
        """
        digest, data = hashlib.sha256(), self.buffer.numpy().data
        if cancelled():  # before an existing file is emptied
            raise Cancelled(f"{path} was given up")
        with open(path, "wb", buffering=0) as file:
            for piece in (memoryview(self._header), *(data[i:i + PIECE] for i in range(0, len(data), PIECE))):
                if cancelled():
                    raise Cancelled(f"{path} was given up")
                digest.update(piece)
                while piece:  # a write may take less, on a full disk for example; the next one then says why
                    piece = piece[file.write(piece):]
            os.fsync(file.fileno())
        return {"bytes": len(self._header) + len(data), "sha256": digest.hexdigest()}


def _memory(size: int, pinned: bool) -> Tensor:
    if pinned:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system limits it; copies wait for the device then, and are as right
            pass
    return torch.empty(size, dtype=torch.uint8)
