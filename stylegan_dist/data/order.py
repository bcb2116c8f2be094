"""The global sample order: image number -> sample, as pure arithmetic.

Training consumes one endless line of images, numbered from 0. Which sample image i is, is a function of
(seed, i) and of the sizes of the shards: not of the world size, the number of reader processes, the
batch or the past. So the position in the data is one integer, and seeking costs nothing.

    epoch e = i // N, position p = i mod N                 every sample exactly once per epoch
    all shards, permuted by (seed, e), laid on a line      neighbours on the line share a shard
    lane l = p mod L owns a contiguous piece of the line   so a batch draws from many shards
    inside its lane, blocks of samples are permuted        so neighbours in time are not neighbours on disk

At any time a lane touches the few shards of one block, which bounds what has to be open or cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from stylegan_dist.randomness import permutation


class GlobalOrder:
    """Locates images of the endless line.

    Args:
        shard_samples: number of samples in each shard.
        seed: the run's seed.
        lanes: number of lanes L; more than there are samples does no harm.
        block: samples of a lane that are permuted together.
    """

    def __init__(self, shard_samples: Sequence[int], seed: int, lanes: int, block: int):
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.num_samples = int(self.shard_samples.sum())
        self.seed = seed
        self.lanes = min(lanes, self.num_samples)
        self.block = block
        self._lane_length = self.num_samples // self.lanes  # the first `_longer` lanes have one more
        self._longer = self.num_samples % self.lanes
        self._blocks_per_lane = -(-(self._lane_length + 1) // block)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()

    def locate(self, first: int, count: int) -> list[tuple[int, int]]:
        """(shard, sample within the shard) of images first, ..., first + count - 1."""
        return [self._locate_one(image) for image in range(first, first + count)]

    def _locate_one(self, image: int) -> tuple[int, int]:
        epoch, position = divmod(image, self.num_samples)
        step, lane = divmod(position, self.lanes)
        block, within = divmod(step, self.block)
        start = lane * self._lane_length + min(lane, self._longer)
        on_line = start + block * self.block + int(self._block_order(epoch, lane, block)[within])
        shards, ends = self._shard_line(epoch)
        at = int(np.searchsorted(ends, on_line, side="right"))
        shard = int(shards[at])
        return shard, on_line - int(ends[at]) + int(self.shard_samples[shard])

    def _block_order(self, epoch: int, lane: int, block: int) -> np.ndarray:
        """The permutation inside one block; the last block of a lane is shorter."""
        number = (epoch * self.lanes + lane) * self._blocks_per_lane + block
        if number not in self._blocks:
            length = self._lane_length + (lane < self._longer)
            size = min(self.block, length - block * self.block)
            _remember(self._blocks, number, permutation(self.seed, "data.block", number, size), 2 * self.lanes)
        return self._blocks[number]

    def _shard_line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, and where on the line each of them ends."""
        if epoch not in self._epochs:
            shards = permutation(self.seed, "data.shards", epoch, len(self.shard_samples))
            _remember(self._epochs, epoch, (shards, np.cumsum(self.shard_samples[shards])), 2)
        return self._epochs[epoch]


def _remember(cache: OrderedDict, key: int, value: object, limit: int) -> None:
    """Store, and drop the oldest entries: the line is walked forwards, so they are not needed again."""
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
