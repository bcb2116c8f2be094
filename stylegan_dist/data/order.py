"""The global sample order: image number -> sample, by arithmetic.

Training consumes one endless sequence of images, numbered from 0. The sample for image i is computed from the seed, i and
the shard sizes. The world size, the number of reader processes, the batch and the past do not matter. The position in the
data is one integer, and seeking costs nothing.

    epoch e = i // N, position p = i mod N                 every sample exactly once per epoch
    all shards, permuted by (seed, e), laid on a line      neighbours on the line share a shard
    lane l = p mod L owns a contiguous piece of the line   a batch draws from many shards
    inside its lane, blocks of samples are permuted        neighbours in time are not neighbours on disk

All lanes walk their blocks in step, so the line is also a sequence of *slots*: slot s is block s of every lane. During a
slot only the few shards under these blocks are read. That bounds what must be open or cached, and the shards of the next
slot are known long before they are needed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stylegan_dist.randomness import permutation, permutations


@dataclass(frozen=True)
class StreamPlan:
    """Which samples a rank reads, and in which order."""

    seed: int
    lanes: int
    block: int
    batch: int             # images of the global batch
    rank: int = 0          # its part is images [rank, rank + 1) * batch / world_size of each global batch
    world_size: int = 1
    start: int = 0         # number of the first image of the first global batch
    mirror: bool = False   # flip images where a draw says so

    @property
    def count(self) -> int:
        """Images of a rank in a global batch."""
        return self.batch // self.world_size

    @property
    def first(self) -> int:
        """Where the rank's part begins in a global batch."""
        return self.rank * self.count


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
        longest = self._lane_length + (self._longer > 0)
        lane = np.arange(self.lanes)
        self._starts = lane * self._lane_length + np.minimum(lane, self._longer)
        self._blocks_per_lane = -(-longest // block)
        self._slot_images = self.lanes * min(block, longest)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        # The permutations inside one block, and in which lanes they are at hand: the line is walked forwards, so older ones
        # are not needed again. Memory of lanes that are not asked for is never touched.
        self._orders = np.empty((self.lanes, min(block, longest)), np.min_scalar_type(min(block, longest) - 1))
        self._is_ordered = np.zeros(self.lanes, bool)
        self._ordered = (0, 0)  # epoch and block

    def places(self, images: np.ndarray) -> np.ndarray:
        """Shard, and sample within the shard, of images with rising numbers, int64 [n]: int64 [n, 2].

        A call costs as much as some fifty images, so that asking for those of several batches together is much cheaper.
        """
        epochs, positions = np.divmod(images, self.num_samples)
        steps = positions // self.lanes
        lanes = positions - steps * self.lanes
        slots = epochs * self._blocks_per_lane + steps // self.block
        places = np.empty((len(images), 2), np.int64)
        for begin, end in runs(slots):
            epoch, block = divmod(int(slots[begin]), self._blocks_per_lane)
            on_line = self._on_line(epoch, block, lanes[begin:end], steps[begin:end])
            shards, line = self._shard_line(epoch)
            at = line.searchsorted(on_line, side="right") - 1
            places[begin:end, 0] = shards[at]
            places[begin:end, 1] = on_line - line[at]
        return places

    def slot(self, image: int) -> int:
        """The slot that an image lies in, counted through all epochs."""
        epoch, position = divmod(image, self.num_samples)
        return epoch * self._blocks_per_lane + position // self.lanes // self.block

    def slots_from(self, nimg: int, images: int, ahead: int) -> tuple[int, int]:
        """First and last slot of `images` images from `nimg` on and of those that follow, `ahead` blocks of every lane.

        That much ahead is one slot and part of another, or at the end of an epoch, whose last slot may be short, three.
        """
        return self.slot(nimg), self.slot(nimg + images - 1 + ahead * self._slot_images)

    def working_set(self, nimg: int, batch: int, first: int, count: int, ahead: int = 0, steps: int = 1) -> list[int]:
        """The shards that a rank reads from in the slots of some global batches.

        Args:
            nimg: number of the first image of a global batch.
            batch: images of a global batch.
            first, count: the rank's part of each global batch is images first, ..., first + count - 1.
            ahead: 0 for the slots of these batches, 1 also for what follows within a block of every lane.
            steps: how many batches, counted from `nimg`.
        Returns: numbers of shards, each once, in the order of the lanes.
        """
        begin, end = self.slots_from(nimg, steps * batch, ahead)
        wanted: dict[int, None] = {}
        for slot in range(begin, end + 1):
            epoch = slot // self._blocks_per_lane
            for lane in self._lanes_of(nimg + first, batch, count, epoch):
                wanted.update(dict.fromkeys(self._shards_under(epoch, lane, slot % self._blocks_per_lane)))
        return list(wanted)

    def most_held(self, sizes: Sequence[int], nimg: int, batch: int, parts: Iterable[tuple[int, int]], steps: int) -> int:
        """The largest sum of the sizes of shards that are read from at a time, or next, in this epoch.

        At its end more are needed than in the middle, because the next epoch begins in other shards. Of an epoch of very
        many slots some are looked at.

        Args:
            sizes: of every shard.
            parts: `first` and `count` of each rank, and `nimg`, `batch`, `steps`, as in `working_set`.
        """
        parts = list(parts)
        if parts[0][1] >= math.gcd(batch, self.lanes):  # every rank reads from all lanes
            parts = parts[:1]
        begin = nimg // self.num_samples * self.num_samples
        slots = {*np.linspace(0, self._blocks_per_lane - 1, 16).astype(int).tolist(), max(0, self._blocks_per_lane - 2)}
        ends = (begin + min((slot + 1) * self.lanes * self.block, self.num_samples) for slot in slots)
        most = 0
        for moment in {nimg, *(max(nimg, (end - 1) // batch * batch) for end in ends)}:
            held = {shard for first, count in parts for shard in self.working_set(moment, batch, first, count, 1, steps)}
            most = max(most, sum(sizes[shard] for shard in held))
        return most

    def _lanes_of(self, image: int, batch: int, count: int, epoch: int) -> list[int]:
        """The lanes that `count` images from `image` on, and those whole batches later, come from in an epoch.

        An epoch begins with lane 0 whatever came before, so a rank's lanes may be others in each.
        """
        step = math.gcd(batch, self.lanes)  # whole batches move the lane by multiples of this
        if count >= step:
            return list(range(self.lanes))
        begin = (image - epoch * self.num_samples) % step
        return [lane for lane in range(self.lanes) if (lane - begin) % step < count]

    def _shards_under(self, epoch: int, lane: int, block: int) -> list[int]:
        """The shards that hold one block of a lane; none for a block beyond the end of the lane."""
        start, length = int(self._starts[lane]), self._lane_length + (lane < self._longer)
        first, last = start + block * self.block, start + min(length, (block + 1) * self.block) - 1
        if first > last:
            return []
        shards, line = self._shard_line(epoch)
        begin, end = line.searchsorted([first, last], side="right") - 1
        return [shard for shard in shards[begin:end + 1].tolist() if self.shard_samples[shard]]

    def _on_line(self, epoch: int, block: int, lanes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Where on the line of an epoch's shards some samples, all of one slot, lie: int64."""
        if self._ordered != (epoch, block):
            self._ordered = epoch, block
            self._is_ordered[:] = False
        if not self._is_ordered[lanes].all():
            self._order_blocks(epoch, np.unique(lanes), block)
        return self._starts[lanes] + block * self.block + self._orders[lanes, steps - block * self.block]

    def _order_blocks(self, epoch: int, lanes: np.ndarray, block: int) -> None:
        """See that the permutations inside the same block of some lanes are at hand; the last block of a lane is shorter."""
        for extra in (0, 1):  # the first lanes have one sample more
            missing = lanes[~self._is_ordered[lanes] & ((lanes < self._longer) == extra)]
            if len(missing):
                numbers = (epoch * self.lanes + missing) * self._blocks_per_lane + block
                size = min(self.block, self._lane_length + extra - block * self.block)
                self._orders[missing, :size] = permutations(self.seed, "data.block", numbers, size)
        self._is_ordered[lanes] = True

    def _shard_line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, and where on the line each of them begins, and the last one ends."""
        if epoch not in self._epochs:
            shards = permutation(self.seed, "data.shards", epoch, len(self.shard_samples))
            self._epochs[epoch] = shards, np.cumsum(np.append(0, self.shard_samples[shards]))
            while len(self._epochs) > 2:  # the line is walked forwards, so older ones are not needed again
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


def runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of equal values."""
    ends = [*(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)] if len(values) else []
    return zip([0, *ends], ends, strict=False)
