"""The stream of batches: the global order, read from shards by offset, decoded by reader processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import math
import os
import signal
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stylegan_dist import randomness
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.decoding import decoder
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.mixture import MixedOrder, order_of
from stylegan_dist.data.order import GlobalOrder
from stylegan_dist.data.pool import end_with_parent
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import STOP_SIGNALS, InputError, LocalInputError

_KEPT_BUFFERS = 2
LOCATED_AT_ONCE = 512  # images: below some hundreds the calls of NumPy cost more than the work


@dataclass
class Batch:
    """A rank's part of one global batch."""

    images: torch.Tensor  # [n, C, H, W], uint8, or the dtype of the arrays
    labels: torch.Tensor  # int64 [n], -1 where there is none
    index: torch.Tensor   # int64 [n], global image numbers

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


class Replaced(NamedTuple):
    """A corrupt sample, and the one that stands in for it."""

    image: int       # global image number
    place: str       # shard, sample and byte
    reason: str
    by: int          # sample of the same shard

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}; sample {self.by} of the shard takes its place (image {self.image})"


@dataclass
class _Loaded:
    """A batch, and how it came about."""

    batch: Batch
    replaced: list[Replaced]
    seconds_read: float
    seconds_decode: float

    def pin_memory(self) -> _Loaded:
        return replace(self, batch=self.batch.pin_memory())


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
        self._located: dict[int, list[list[int]]] = {}  # shard and sample of the images of batches to come
        self._buffers = _Buffers()
        side, channels = reader.index.resolution, reader.index.channels
        self._dtype, self._decode = getattr(torch, reader.index.dtype), decoder(reader.index.array, reader.index.packed)
        self._shape = (count, side, side, channels * self._dtype.itemsize)  # of bytes
        self._unflipped = np.empty((side, side, channels), reader.index.dtype)  # one image

    def __getitem__(self, nimg: int) -> _Loaded | InputError:
        # An exception would cross the process border as a wall of text; the stream raises it on the other side.
        try:
            self._announce(nimg)
            return self._load(nimg + self.first, self._places(nimg))
        except InputError as error:
            return error

    def _announce(self, nimg: int) -> None:
        """When a batch comes within reach of new slots: have their shards fetched, and let go of those of the old ones."""
        slots = self.order.slots_from(nimg, self.batch, 0) + self.order.slots_from(nimg, self.batch, 1)
        if slots != self._slots:
            self._slots = slots
            now, soon = (self.order.working_set(nimg, self.batch, self.first, self.count, ahead) for ahead in (0, 1))
            self.reader.retain(now)
            self.reader.prefetch(soon)

    def _places(self, nimg: int) -> list[list[int]]:
        """Shard and sample of each image of this rank's part of a batch, for several of its batches at once."""
        if nimg not in self._located:
            reader = get_worker_info()
            stride, batches = self.batch * (reader.num_workers if reader else 1), -(-LOCATED_AT_ONCE // self.count)
            begins = nimg + stride * np.arange(batches)
            images = self.first + begins[:, None] + np.arange(self.count)
            places = self.order.places(images.ravel()).reshape(*images.shape, 2)
            self._located = dict(zip(begins.tolist(), places.tolist(), strict=True))
        return self._located.pop(nimg)

    def _load(self, start: int, places: list[list[int]]) -> _Loaded:
        images, index = self._buffers.take(self._shape).view(self._dtype), torch.arange(start, start + self.count)
        loaded = _Loaded(Batch(images.permute(0, 3, 1, 2), torch.empty_like(index), index), [], 0.0, 0.0)
        flips = randomness.coins(self.order.seed, "data.mirror", start, self.count) if self.mirror else [False] * self.count
        pixels, unflipped, labels = images.numpy(), torch.from_numpy(self._unflipped), loaded.batch.labels.numpy()
        for i, ((shard, sample), flip) in enumerate(zip(places, flips, strict=True)):
            labels[i] = self._sample(start + i, shard, sample, self._unflipped if flip else pixels[i], loaded)
            if flip:
                images[i].copy_(unflipped.flip(1))  # 16 times as fast as in NumPy at 256 pixels
        return loaded

    def _sample(self, image: int, shard: int, sample: int, pixels: np.ndarray, loaded: _Loaded) -> int:
        """Decode a sample, or the next good one of its shard, into [H, W, C]; returns its class number.

        The last sample is followed by the first. So what stands in for a corrupt sample depends on the shard
        alone, and every rank, reader and resumed run takes the same.
        """
        index = self.reader.index
        samples = index.shards[shard].samples
        reason = ""
        for step in range(samples):
            candidate = (sample + step) % samples
            began = time.perf_counter()
            try:
                data, label = self.reader.read(shard, candidate)
                read = time.perf_counter()
                loaded.seconds_read += read - began
                self._decode(data, pixels)
            except ValueError as error:
                reason = reason or str(error)
                continue
            loaded.seconds_decode += time.perf_counter() - read
            if step:
                loaded.replaced.append(Replaced(image, self.reader.place(shard, sample), reason, candidate))
            return label
        raise InputError(
            f"{self.reader.place(shard, sample)}: {reason}; the shard is damaged, not one of its {samples} samples is good: "
            "restore it or pack the data again (stylegan-dist verify lists all damage)"
        )


class _Buffers:
    """Memory for batches, uint8 [n, H, W, C].

    In a reader process it is shared with the training process, so that handing a batch over copies nothing. Otherwise
    memory of batches that are gone is used again: the kernel takes as long to hand out fresh memory as half a decoder.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor without values."""
        if get_worker_info() is not None:
            images = torch.empty(0, dtype=torch.uint8)
            storage = images.untyped_storage()._new_shared(math.prod(shape), device="cpu")  # as torch's own collation does
            return images.new(storage).resize_(shape)
        memory = self._free.pop() if self._free else np.empty(shape, np.uint8)
        lent = memory.view()  # held by the tensor and everything that shares its memory, and by nothing else
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return torch.from_numpy(lent)

    def _give_back(self, memory: np.ndarray) -> None:
        if len(self._free) < _KEPT_BUFFERS:
            self._free.append(memory)


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
        verify: when local shards are compared with their SHA-256 (`ShardReader`).
    """

    def __init__(self, index: DatasetIndex, *, seed: int, lanes: int, block: int, batch: int,
                 rank: int = 0, world_size: int = 1, start: int = 0, mirror: bool = False, workers: int = 0,
                 prefetch: int = 4, pin_memory: bool = False, cache: NodeCache | None = None, verify: str = "never"):
        count = batch // world_size
        order = order_of(index, seed, lanes, block)
        dataset = BatchDataset(ShardReader(index, cache, verify), order, batch=batch, first=rank * count, count=count,
                               mirror=mirror)
        self.seconds_waited = self.seconds_read = self.seconds_decode = 0.0
        self._replaced: list[Replaced] = []
        self._reader = dataset.reader
        with _stop_signals_wait():  # for the readers, until they have said that they ignore them
            self._batches: Iterator[_Loaded | InputError] = iter(DataLoader(
                dataset, batch_size=None, sampler=_Numbers(start, batch), num_workers=workers,
                prefetch_factor=prefetch if workers else None, pin_memory=pin_memory,
                worker_init_fn=functools.partial(_start_reader, os.getpid()),
            ))
        _open_streams.add(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises LocalInputError where the data turns out to be damaged."""
        began = time.perf_counter()
        loaded = next(self._batches)
        self.seconds_waited += time.perf_counter() - began
        if isinstance(loaded, InputError):
            raise LocalInputError(str(loaded))
        self.seconds_read += loaded.seconds_read
        self.seconds_decode += loaded.seconds_decode
        self._replaced += loaded.replaced
        return loaded.batch

    def take_replaced(self) -> list[Replaced]:
        """The corrupt samples of the batches since the last call, in their order."""
        taken, self._replaced = self._replaced, []
        return taken

    def close(self) -> None:
        """End the reader processes, and close the shards that this process has open."""
        self._batches = iter(())
        self._reader.close()


_open_streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """The readers ignore the signal by which an interpreter that ends would end them, and it would wait for ever."""
    for stream in list(_open_streams):
        stream.close()


@contextlib.contextmanager
def _stop_signals_wait() -> Iterator[None]:
    """Requests to stop reach this thread after the block; processes that are started in it are born with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_reader(trainer: int, _worker: int) -> None:
    """In each reader: ignore the signals that ask a run to stop, and end with the training process.

    Slurm and Ctrl-C send them to all processes of a run. The training process answers them, and needs the
    readers until it has finished its step; then it ends them. Where it is killed they end by themselves: PyTorch's
    own watch takes whoever is the parent when it starts for the trainer, which may be dead by then.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    end_with_parent(trainer)


class _Numbers:
    """start, start + step, ...: an endless sampler. The loader keeps its order for any number of readers."""

    def __init__(self, start: int, step: int):
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.step)


