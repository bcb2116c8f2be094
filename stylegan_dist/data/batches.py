"""Batches of the global order, read from shards by offset and decoded."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.data.memory import Layout
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import Decode

LOCATED_AT_ONCE = 512  # images: below some hundreds the calls of NumPy cost more than the work


@dataclass(frozen=True)
class Batch:
    """A rank's part of one global batch: `batch["sample"]` is [n, C, H, W], `batch["label"]` int64 [n], -1 for none."""

    index: Tensor               # int64 [n], global image numbers
    fields: dict[str, Tensor]   # the first dimension of each is n

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def pin_memory(self) -> Batch:
        return Batch(self.index.pin_memory(), {name: values.pin_memory() for name, values in self.fields.items()})


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
    replaced: list[Replaced] = field(default_factory=list)
    seconds_read: float = 0.0
    seconds_decode: float = 0.0

    def pin_memory(self) -> Loaded:
        return replace(self, batch=self.batch.pin_memory())


class BatchDataset:
    """Batches by the number of the first image of their global batch, so any reader can build any batch.

    Args:
        readers: processes that take turns with the batches.
    """

    def __init__(self, reader: ShardReader, plan: StreamPlan, readers: int = 1):
        self.reader, self.plan = reader, plan
        self.order = order_of(reader.index, plan)
        self._stride = plan.batch * readers
        self._slots: tuple[int, ...] = ()
        self._located: dict[int, list[list[int]]] = {}  # shard and sample of the images of batches to come
        index = reader.index
        form = (index.resolution, index.resolution, index.channels)
        self._decode = index.kind.decoder(strict=index.packed)
        self._decode_mirrored = index.kind.mirrored_decoder(strict=index.packed)
        self._unflipped = np.empty(form, index.kind.dtype)  # one sample
        self.layout = Layout({"sample": ((plan.count, *form), getattr(torch, index.kind.dtype)),
                              "label": ((plan.count,), torch.int64)})

    def batch_in(self, memory: Tensor, nimg: int) -> Batch:
        """The batch that has been loaded into a memory, uint8 [layout.bytes]."""
        fields = self.layout.fields(memory)
        start = nimg + self.plan.first
        return Batch(torch.arange(start, start + self.plan.count), {**fields, "sample": fields["sample"].permute(0, 3, 1, 2)})

    def load(self, nimg: int, memory: Tensor) -> Loaded:
        """Fill a memory, uint8 [layout.bytes], with a batch.

        Raises:
            InputError: the data is damaged, or cannot be read.
        """
        self._announce(nimg)
        loaded = Loaded(self.batch_in(memory, nimg))
        start, count = nimg + self.plan.first, self.plan.count
        flips = randomness.coins(self.plan.seed, "data.mirror", start, count) if self.plan.mirror else [False] * count
        samples, labels = loaded.batch["sample"].permute(0, 2, 3, 1), loaded.batch["label"].numpy()
        values, unflipped = samples.numpy(), torch.from_numpy(self._unflipped)
        for i, ((shard, sample), flip) in enumerate(zip(self._places(nimg), flips, strict=True)):
            stored = flip and self._decode_mirrored  # both are in the shard
            out = self._unflipped if flip and not stored else values[i]
            labels[i] = self._sample(start + i, (shard, sample), out, loaded, stored or self._decode)
            if flip and not stored:
                samples[i].copy_(unflipped.flip(1))  # 16 times as fast as in NumPy at 256 pixels
        return loaded

    def single(self, image: int) -> Tensor:
        """The sample of one image of the order, [C, H, W], not flipped. No other shard is fetched, and its own is let go of.

        Raises:
            InputError: as `load`.
        """
        shard, sample = self.order.places(np.array([image]))[0].tolist()
        values = np.empty_like(self._unflipped)
        try:
            self._sample(image, (shard, sample), values, Loaded(Batch(torch.empty(0), {})), self._decode)
        finally:
            self.reader.retain(())
        return torch.from_numpy(values).permute(2, 0, 1)

    def _announce(self, nimg: int) -> None:
        """When a batch comes within reach of new slots: have their shards fetched, and let go of those of the old ones."""
        order, plan = self.order, self.plan
        slots = order.slots_from(nimg, plan.batch, 0) + order.slots_from(nimg, plan.batch, 1)
        if slots != self._slots:
            self._slots = slots
            now, soon = (order.working_set(nimg, plan.batch, plan.first, plan.count, ahead) for ahead in (0, 1))
            self.reader.retain(now)
            self.reader.prefetch(soon)

    def _places(self, nimg: int) -> list[list[int]]:
        """Shard and sample of each image of this rank's part of a batch, for several of its batches at once."""
        if nimg not in self._located:
            begins = nimg + self._stride * np.arange(-(-LOCATED_AT_ONCE // self.plan.count))
            images = self.plan.first + begins[:, None] + np.arange(self.plan.count)
            places = self.order.places(images.ravel()).reshape(*images.shape, 2)
            self._located = dict(zip(begins.tolist(), places.tolist(), strict=True))
        return self._located.pop(nimg)

    def _sample(self, image: int, place: tuple[int, int], out: np.ndarray, loaded: Loaded, decode: Decode) -> int:
        """Decode a sample, or the next good one of its shard, into [H, W, C]; returns its class number.

        The last sample is followed by the first. So what stands in for a corrupt sample depends on the shard
        alone, and every rank, reader and resumed run takes the same.
        """
        shard, sample = place
        samples = self.reader.index.shards[shard].samples
        reason = ""
        for step in range(samples):
            candidate = (sample + step) % samples
            began = time.perf_counter()
            try:
                data, label = self.reader.read(shard, candidate)
                read = time.perf_counter()
                loaded.seconds_read += read - began
                decode(data, out)
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
