"""Random access to the encoded samples of a shard set."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from stylegan_dist.data.index import INDEX_NAME, NO_LABEL, DatasetIndex, load_offsets
from stylegan_dist.errors import InputError

OPEN_SHARDS = 256


class ShardReader:
    """Random access to the samples of a local shard set, with one `pread` each."""

    def __init__(self, folder: str | os.PathLike, index: DatasetIndex):
        self.folder = Path(folder)
        self.index = index
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def read(self, shard: int, sample: int) -> tuple[bytes, int]:
        """The encoded sample and its class number.

        Raises:
            InputError: the shard cannot be read, or its offsets do not fit it.
        """
        file, table = self._opened(shard)
        offset, size, label = (int(v) for v in table[sample])
        try:
            return os.pread(file, size, offset), label
        except OSError as error:
            raise InputError(
                f"cannot read {self.place(shard, sample)}: {error.strerror}; check the disk or the network file system"
            ) from None

    def place(self, shard: int, sample: int) -> str:
        """Where a sample lies, for people."""
        offset = int(self._opened(shard)[1][sample][0])
        return f"{self.folder / self.index.shards[shard].name}, sample {sample} at byte {offset}"

    def _opened(self, shard: int) -> tuple[int, np.ndarray]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.index.shards[shard]
        table = load_offsets(self.folder, info)
        if ((table[:, 2] < NO_LABEL) | (table[:, 2] >= max(self.index.num_classes, 1))).any():
            raise InputError(f"{self.folder / info.offsets} names classes that {INDEX_NAME} does not know; pack the data again")
        try:
            file = os.open(self.folder / info.name, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot open {self.folder / info.name}: {error.strerror}; restore it") from None
        self._open[shard] = (file, table)
        if len(self._open) > OPEN_SHARDS:
            _, (oldest, _) = self._open.popitem(last=False)
            os.close(oldest)
        return self._open[shard]

    def close(self) -> None:
        """Close all shards; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    __del__ = close
