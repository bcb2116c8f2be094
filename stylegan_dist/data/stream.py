"""The stream of batches: the global order, read from shards by offset, decoded by reader processes."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stylegan_dist import randomness
from stylegan_dist.data.images import decode
from stylegan_dist.data.index import INDEX_NAME, NO_LABEL, DatasetIndex, load_offsets
from stylegan_dist.data.order import GlobalOrder
from stylegan_dist.errors import STOP_SIGNALS, InputError, LocalInputError

OPEN_SHARDS = 256


@dataclass
class Batch:
    """A rank's part of one global batch."""

    images: torch.Tensor  # uint8 [n, C, H, W]
    labels: torch.Tensor  # int64 [n], -1 where there is none
    index: torch.Tensor   # int64 [n], global image numbers

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


class ShardReader:
    """Random access to the samples of a local shard set, with one `pread` each."""

    def __init__(self, folder: str | os.PathLike, index: DatasetIndex):
        self.folder = Path(folder)
        self.index = index
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def read(self, shard: int, sample: int) -> tuple[np.ndarray, int]:
        """Image uint8 [C, H, W] and class number.

        Raises:
            InputError: the shard cannot be read, or holds something else than promised.
        """
        info = self.index.shards[shard]
        file, table = self._opened(shard)
        offset, size, label = (int(v) for v in table[sample])
        try:
            data = os.pread(file, size, offset)
        except OSError as error:
            raise InputError(
                f"cannot read {self.folder / info.name}, sample {sample} at byte {offset}: {error.strerror}; "
                "check the disk or the network file system"
            ) from None
        try:
            return decode(data, self.index.channels, self.index.resolution), label
        except ValueError as error:
            raise InputError(
                f"{self.folder / info.name}, sample {sample} at byte {offset}: {error}; the shard is damaged "
                f"(stylegan-dist verify {self.folder} lists all damage), restore it or pack the data again"
            ) from None

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


class BatchDataset(Dataset):
    """Batches by the number of the first image of their global batch, so any reader can build any batch."""

    def __init__(self, folder: str | os.PathLike, index: DatasetIndex, order: GlobalOrder, *, first: int, count: int,
                 mirror: bool):
        self.reader = ShardReader(folder, index)
        self.order = order
        self.first = first   # where this rank's part begins inside the global batch
        self.count = count   # images of this rank
        self.mirror = mirror

    def __getitem__(self, nimg: int) -> Batch | InputError:
        # An exception would cross the process border as a wall of text; the stream raises it on the other side.
        try:
            return self._load(nimg + self.first)
        except InputError as error:
            return error

    def _load(self, start: int) -> Batch:
        samples = [self.reader.read(*place) for place in self.order.locate(start, self.count)]
        index = torch.arange(start, start + self.count)
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        if self.mirror:
            flip = randomness.uniform(self.order.seed, "data.mirror", index)[:, 0] < 0.5
            images[flip] = images[flip].flip(3)
        return Batch(images, torch.tensor([label for _, label in samples]), index)


class BatchStream:
    """Endless iterator over a rank's batches from a given image on.

    Args:
        folder, index: the shard set.
        seed, lanes, block: of the global order.
        batch: images of the global batch.
        rank, world_size: this rank's part is images [rank, rank + 1) * batch / world_size of each.
        start: number of images already seen.
        workers: reader processes; 0 reads in this process.
        prefetch: batches that each reader prepares ahead.
    """

    def __init__(self, folder: str | os.PathLike, index: DatasetIndex, *, seed: int, lanes: int, block: int, batch: int,
                 rank: int = 0, world_size: int = 1, start: int = 0, mirror: bool = False, workers: int = 0,
                 prefetch: int = 4, pin_memory: bool = False):
        count = batch // world_size
        order = GlobalOrder([shard.samples for shard in index.shards], seed, lanes, block)
        dataset = BatchDataset(folder, index, order, first=rank * count, count=count, mirror=mirror)
        self.seconds_waited = 0.0
        self._reader = dataset.reader
        self._batches: Iterator[Batch | InputError] = iter(DataLoader(
            dataset, batch_size=None, sampler=_Numbers(start, batch), num_workers=workers,
            prefetch_factor=prefetch if workers else None, pin_memory=pin_memory, worker_init_fn=_outlive_stop_requests,
        ))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises LocalInputError where the data turns out to be damaged."""
        began = time.perf_counter()
        batch = next(self._batches)
        self.seconds_waited += time.perf_counter() - began
        if isinstance(batch, InputError):
            raise LocalInputError(str(batch))
        return batch

    def close(self) -> None:
        """End the reader processes, and close the shards that this process has open."""
        self._batches = iter(())
        self._reader.close()


def _outlive_stop_requests(_worker: int) -> None:
    """In each reader: ignore the signals that ask a run to stop.

    Slurm and Ctrl-C send them to all processes of a run. The training process answers them, and needs the
    readers until it has finished its step; then it ends them. They also end by themselves when it dies.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Numbers:
    """start, start + step, ...: an endless sampler. The loader keeps its order for any number of readers."""

    def __init__(self, start: int, step: int):
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.step)


