"""Batches of the global order, read from shards by offset and decoded."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from stylegan_dist import randomness
from stylegan_dist.data.memory import Buffers
from stylegan_dist.data.mixture import MixedOrder
from stylegan_dist.data.order import GlobalOrder
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.decoding import decoder

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
class Loaded:
    """A batch, and how it came about."""

    batch: Batch
    replaced: list[Replaced]
    seconds_read: float
    seconds_decode: float

    def pin_memory(self) -> Loaded:
        return replace(self, batch=self.batch.pin_memory())


class BatchDataset:
    """Batches by the number of the first image of their global batch, so any reader can build any batch.

    Args:
        batch: images of the global batch.
        first: where this rank's part begins inside the global batch.
        count: images of this rank.
        readers: processes that take turns with the batches.
    """

    def __init__(self, reader: ShardReader, order: GlobalOrder | MixedOrder, *, batch: int, first: int, count: int,
                 mirror: bool, readers: int = 1):
        self.reader = reader
        self.order = order
        self.batch, self.first, self.count = batch, first, count
        self.mirror = mirror
        self.readers = readers
        self._slots: tuple[int, ...] = ()
        self._located: dict[int, list[list[int]]] = {}  # shard and sample of the images of batches to come
        self._buffers = Buffers()
        side, channels = reader.index.resolution, reader.index.channels
        self._dtype, self._decode = getattr(torch, reader.index.dtype), decoder(reader.index.array, reader.index.packed)
        self.shape = (count, side, side, channels * self._dtype.itemsize)  # of a batch, in bytes
        self._unflipped = np.empty((side, side, channels), reader.index.dtype)  # one image

    def __getitem__(self, nimg: int) -> Loaded:
        return self.load(nimg, self._buffers.take(self.shape))

    def load(self, nimg: int, memory: torch.Tensor) -> Loaded:
        """Fill memory, uint8 of `shape`, with a batch.

        Raises:
            InputError: the data is damaged, or cannot be read.
        """
        self._announce(nimg)
        return self._load(nimg + self.first, self._places(nimg), memory)

    def in_memory(self, memory: torch.Tensor, nimg: int, labels: torch.Tensor) -> Batch:
        """The batch whose images a reader has written into this memory."""
        start = nimg + self.first
        images = memory.view(self._dtype)
        return Batch(images.permute(0, 3, 1, 2), labels, torch.arange(start, start + self.count))

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
            stride, batches = self.batch * self.readers, -(-LOCATED_AT_ONCE // self.count)
            begins = nimg + stride * np.arange(batches)
            images = self.first + begins[:, None] + np.arange(self.count)
            places = self.order.places(images.ravel()).reshape(*images.shape, 2)
            self._located = dict(zip(begins.tolist(), places.tolist(), strict=True))
        return self._located.pop(nimg)

    def _load(self, start: int, places: list[list[int]], memory: torch.Tensor) -> Loaded:
        images = memory.view(self._dtype)
        batch = self.in_memory(memory, start - self.first, torch.empty(self.count, dtype=torch.int64))
        loaded = Loaded(batch, [], 0.0, 0.0)
        flips = randomness.coins(self.order.seed, "data.mirror", start, self.count) if self.mirror else [False] * self.count
        pixels, unflipped, labels = images.numpy(), torch.from_numpy(self._unflipped), loaded.batch.labels.numpy()
        for i, ((shard, sample), flip) in enumerate(zip(places, flips, strict=True)):
            labels[i] = self._sample(start + i, shard, sample, self._unflipped if flip else pixels[i], loaded)
            if flip:
                images[i].copy_(unflipped.flip(1))  # 16 times as fast as in NumPy at 256 pixels
        return loaded

    def _sample(self, image: int, shard: int, sample: int, pixels: np.ndarray, loaded: Loaded) -> int:
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
