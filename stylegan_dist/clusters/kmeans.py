"""k-means (Lloyd 1982), from centres that are drawn by k-means++ (Arthur and Vassilvitskii 2007, section 2.2).

All sums are in float64 and in a fixed order, and every draw has an address. So the same features give the same clusters to the
last bit, on one kind of machine with one number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.errors import InputError

MOST_ROUNDS = 100
STARTS = 3               # of which the best counts: one alone may end in a bad minimum
_NUMBERS = 1 << 21       # of a tile of rows or of distances: 16 MiB
_ROUNDING = 1e-13        # of a squared distance, relative to the squares of both vectors
_TINY = 1e-300


class Clusters(NamedTuple):
    """What `kmeans` has found."""

    centres: Tensor          # float64 [K, d]
    inertia: float           # mean squared distance of a row to its centre
    rounds: int


def kmeans(rows: Tensor, clusters: int, seed: int, starts: int = STARTS,
           progress: Callable[[], object] = lambda: None) -> Clusters:
    """Centres with the smallest mean squared distance of rows to their nearest centre, as good as `starts` starts find them.

    No cluster is empty: one that has lost all its rows gets the row that is farthest from its own centre.

    Args:
        rows: float32 or float64 [n, d] on any device.
        clusters: K, from 1 to the number of different rows.
        progress: is called after every round.
    Raises:
        InputError: there are fewer different rows than clusters.
    """
    rows = rows.double()
    found = (_lloyd(rows, _first_centres(rows, clusters, seed, start), progress) for start in range(starts))
    return min(found, key=lambda one: one.inertia)


def nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row, int64 [n], and the squared distance from it, float64 [n].

    Args:
        rows: float [n, d].
        centres: float64 [K, d].
    """
    found = [tile.min(1) for tile in _squared_distances(rows, centres)]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def _squared_distances(rows: Tensor, centres: Tensor) -> Iterator[Tensor]:
    """Squared distances of some rows after the other from all centres, float64 [?, K]. What differs by rounding alone is 0."""
    squares = centres.square().sum(1)
    for part in rows.split(_tile(centres)):
        x = part.double()
        scale = x.square().sum(1, keepdim=True) + squares
        yield F.threshold(torch.addmm(scale, x, centres.t(), alpha=-2) / scale.clamp(min=_TINY), _ROUNDING, 0.0) * scale


def _tile(centres: Tensor) -> int:
    """Rows that are computed at once. They depend on the centres' shape alone, and so does the order of sums."""
    return max(1, _NUMBERS // max(centres.shape))


def _first_centres(rows: Tensor, clusters: int, seed: int, start: int) -> Tensor:
    """k-means++: rows that are drawn one after the other, each in proportion to its squared distance from those before.

    Each time several are drawn, and the one that leaves the smallest sum of distances is taken (as they advise in section 5).
    """
    candidates = 2 + int(math.log(clusters))
    purpose = f"clusters.start{start}"
    draws = randomness.uniform(seed, purpose, torch.arange(clusters * candidates)).double().view(clusters, candidates)
    chosen = [int(draws[0, 0] * len(rows))]
    closest = nearest(rows, rows[chosen])[1]
    for draw in draws[1:]:
        ends = closest.cpu().cumsum(0)  # on the CPU, where it is always summed in the same order
        if not ends[-1] > 0:
            raise InputError(f"only {len(chosen)} of the samples differ in their features: ask for {len(chosen)} clusters at "
                             "most")
        picked = torch.searchsorted(ends, draw * ends[-1], right=True).clamp(max=len(rows) - 1)
        options = torch.cat([*_squared_distances(rows, rows[picked.to(rows.device)])]).minimum(closest[:, None])
        best = int(options.sum(0).argmin())
        chosen.append(int(picked[best]))
        closest = options[:, best]
    return rows[chosen]


def _lloyd(rows: Tensor, centres: Tensor, progress: Callable[[], object]) -> Clusters:
    former: Tensor | None = None
    rounds = 0
    while True:
        labels, distances = nearest(rows, centres)
        done = former is not None and torch.equal(labels, former)
        progress()
        if done or rounds == MOST_ROUNDS:
            return Clusters(centres, float(distances.mean()), rounds)
        former, rounds = labels, rounds + 1
        labels = _without_empty(labels, distances, len(centres))
        counts = torch.bincount(labels, minlength=len(centres))
        # `index_add_` has no fixed order on GPUs, this has.
        sums = F.embedding_bag(labels.argsort(stable=True), rows, counts.cumsum(0) - counts, mode="sum")
        centres = sums / counts[:, None]


def _without_empty(labels: Tensor, distances: Tensor, clusters: int) -> Tensor:
    """Labels of which every one occurs: an empty cluster takes the row that is farthest from its centre, of those not alone."""
    counts = torch.bincount(labels, minlength=clusters)
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty:
        return labels
    labels = labels.clone()
    for cluster in empty:
        row = int(torch.where(counts[labels] > 1, distances, -1.0).argmax())
        counts[labels[row]] -= 1
        labels[row], counts[cluster] = cluster, 1
    return labels
