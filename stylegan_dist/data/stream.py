"""The stream of batches: the global order, read from shards by offset, decoded by reader processes."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stylegan_dist import randomness
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.images import decode
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.mixture import MixedOrder, order_of
from stylegan_dist.data.order import GlobalOrder
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import STOP_SIGNALS, InputError, LocalInputError


@dataclass
class Batch:
    """A rank's part of one global batch."""

    images: torch.Tensor  # uint8 [n, C, H, W]
    labels: torch.Tensor  # int64 [n], -1 where there is none
    index: torch.Tensor   # int64 [n], global image numbers

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


class BatchDataset(Dataset):
    """Batches by the number of the first image of their global batch, so any reader can build any batch."""

    def __init__(self, reader: ShardReader, order: GlobalOrder | MixedOrder, *, batch: int, first: int, count: int,
                 mirror: bool):
        self.reader = reader
        self.order = order
        self.batch = batch   # images of the global batch
        self.first = first   # where this rank's part begins inside the global batch
        self.count = count   # images of this rank
        self.mirror = mirror
        self._slots: tuple[int, ...] = ()

    def __getitem__(self, nimg: int) -> Batch | InputError:
        # An exception would cross the process border as a wall of text; the stream raises it on the other side.
        try:
            self._announce(nimg)
            return self._load(nimg + self.first)
        except InputError as error:
            return error

    def _announce(self, nimg: int) -> None:
        """When a batch enters new slots: let go of the shards of the old ones, and have the next ones fetched."""
        slots = self.order.slots_from(nimg, self.batch, 0)
        if slots != self._slots:
            self._slots = slots
            now, then = (self.order.working_set(nimg, self.batch, self.first, self.count, ahead) for ahead in (0, 1))
            self.reader.retain(now)
            self.reader.prefetch(list(dict.fromkeys(now + then)))

    def _load(self, start: int) -> Batch:
        samples = [self._sample(*place) for place in self.order.locate(start, self.count)]
        index = torch.arange(start, start + self.count)
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        if self.mirror:
            flip = randomness.uniform(self.order.seed, "data.mirror", index)[:, 0] < 0.5
            images[flip] = images[flip].flip(3)
        return Batch(images, torch.tensor([label for _, label in samples]), index)

    def _sample(self, shard: int, sample: int) -> tuple[np.ndarray, int]:
        """Image uint8 [C, H, W] and class number."""
        data, label = self.reader.read(shard, sample)
        index = self.reader.index
        try:
            return decode(data, index.channels, index.resolution), label
        except ValueError as error:
            raise InputError(
                f"{self.reader.place(shard, sample)}: {error}; the shard is damaged "
                "(stylegan-dist verify lists all damage), restore it or pack the data again"
            ) from None


class BatchStream:
    """Endless iterator over a rank's batches from a given image on.

    Args:
        index: of the data.
        seed, lanes, block: of the global order.
        batch: images of the global batch.
        rank, world_size: this rank's part is images [rank, rank + 1) * batch / world_size of each.
        start: number of images already seen.
        workers: reader processes; 0 reads in this process.
        prefetch: batches that each reader prepares ahead.
        cache: of the node, for remote shards.
    """

    def __init__(self, index: DatasetIndex, *, seed: int, lanes: int, block: int, batch: int,
                 rank: int = 0, world_size: int = 1, start: int = 0, mirror: bool = False, workers: int = 0,
                 prefetch: int = 4, pin_memory: bool = False, cache: NodeCache | None = None):
        count = batch // world_size
        order = order_of(index, seed, lanes, block)
        dataset = BatchDataset(ShardReader(index, cache), order, batch=batch, first=rank * count, count=count, mirror=mirror)
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


