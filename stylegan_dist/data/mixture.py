"""Several shard sets as one sequence of images, in fixed proportions.

The sequence is cut into groups of `GROUP` images. Each group holds the same number of images of every set. Their order is
drawn from (seed, number of the group). The number of images of a set before any image is therefore computed, the
proportions hold exactly after every group, and each set is walked by its own `GlobalOrder`, every sample once per epoch
of that set.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import GlobalOrder, StreamPlan, runs
from stylegan_dist.randomness import permutation

GROUP = 4096
_KEPT_GROUPS = 64  # 4 MiB: readers look up places some batches ahead of those that they announce


class MixedOrder:
    """Locates images of a line that is mixed from several sets.

    Args:
        orders: of the sets.
        weights: of the sets, positive; their proportions are met to 1 / GROUP, and no set gets nothing.
        seed: the run's seed.
    """

    def __init__(self, orders: Sequence[GlobalOrder], weights: Sequence[float], seed: int):
        self.orders = list(orders)
        self.seed = seed
        self.num_samples = sum(order.num_samples for order in orders)
        self.shares = np.array(apportion(weights, GROUP))
        self._first_shard = np.cumsum([0, *(len(order.shard_samples) for order in orders)]).tolist()
        self._groups: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def places(self, images: np.ndarray) -> np.ndarray:
        """As of one set: int64 [n, 2]; shards count through all sets."""
        parts, numbers = self.numbers(images)
        places = np.empty((len(images), 2), np.int64)
        for part in np.unique(parts).tolist():
            at = np.flatnonzero(parts == part)
            places[at] = self.orders[part].places(numbers[at])
            places[at, 0] += self._first_shard[part]
        return places

    def numbers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of images with rising numbers, int64 [n]: the set of each, and its number on the line of that set, int64 [n]."""
        groups, within = np.divmod(images, GROUP)
        parts, numbers = np.empty_like(images), np.empty_like(images)
        for begin, end in runs(groups):
            group = int(groups[begin])
            sets, earlier = (values[within[begin:end]] for values in self._group(group))
            parts[begin:end] = sets
            numbers[begin:end] = group * self.shares[sets] + earlier
        return parts, numbers

    def slots_from(self, nimg: int, images: int, ahead: int) -> tuple[int, ...]:
        """As of one set, for all sets one after the other; `images` is the global batch."""
        return tuple(
            slot for order, (begin, count) in zip(self.orders, self._spans(nimg, images), strict=True)
            for slot in order.slots_from(begin, count, ahead)
        )

    def working_set(self, nimg: int, batch: int, first: int, count: int, ahead: int = 0, steps: int = 1) -> list[int]:
        """The shards that any rank reads from around image `nimg`: a rank's images come from all lanes of all sets."""
        return [
            start + shard
            for start, order, (begin, images) in zip(self._first_shard, self.orders, self._spans(nimg, steps * batch),
                                                     strict=False)
            for shard in order.working_set(begin, images, 0, images, ahead)
        ]

    def most_held(self, sizes: Sequence[int], nimg: int, batch: int, parts: Iterable[tuple[int, int]], steps: int) -> int:
        """As of one set, for all ranks; as if all sets came to the ends of their epochs at the same time."""
        return sum(
            order.most_held(sizes[start:], begin, images, [(0, images)], 1)
            for start, order, (begin, images) in zip(self._first_shard, self.orders, self._spans(nimg, steps * batch),
                                                     strict=False)
        )

    def _spans(self, nimg: int, batch: int) -> list[tuple[int, int]]:
        """For each set: the number of its next image, and how many of its images the batch spans (at least all lanes)."""
        group, within = divmod(nimg, GROUP)
        parts, _ = self._group(group)
        before = np.bincount(parts[:within], minlength=len(self.orders))
        return [(int(group * share + n), max(batch, order.lanes))
                for share, n, order in zip(self.shares, before, self.orders, strict=True)]

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """For each image of a group: its set, and how many images of that set come before it in the group."""
        if group not in self._groups:
            parts = np.repeat(np.arange(len(self.shares)), self.shares)[permutation(self.seed, "data.mix", group, GROUP)]
            earlier = np.empty(GROUP, np.int64)
            for part, share in enumerate(self.shares):
                earlier[parts == part] = np.arange(share)
            self._groups[group] = (parts, earlier)
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        return self._groups[group]


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers with the given sum in the proportions of the weights, each at least 1 (largest remainders)."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    shares = np.maximum(np.floor(exact), 1).astype(np.int64)
    for part in np.argsort(shares - exact, kind="stable")[:max(0, total - int(shares.sum()))]:
        shares[part] += 1
    while shares.sum() > total:  # many tiny weights were lifted to 1
        shares[np.argmax(shares)] -= 1
    return shares.tolist()


def order_of(index: DatasetIndex, plan: StreamPlan) -> GlobalOrder | MixedOrder:
    """The line of a data set, or of a mixture of several."""
    shards = iter(index.shards)
    orders = [GlobalOrder([shard.samples for shard in itertools.islice(shards, count)], plan.seed, plan.lanes, plan.block)
              for count in [part.shards for part in index.parts] or [len(index.shards)]]
    return MixedOrder(orders, [part.weight for part in index.parts], plan.seed) if index.parts else orders[0]
