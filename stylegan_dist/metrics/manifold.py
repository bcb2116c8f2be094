"""Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): balls around samples.

The ball of a sample reaches to its k-th nearest neighbour in its own set, itself not counted.

    precision   share of generated samples in the ball of any real one
    recall      share of real samples in the ball of any generated one
    density     mean number of real balls that a generated sample is in, / k
    coverage    share of real samples with a generated one in their ball

Balls are closed (<=) in all four, as in Kynkäänniemi's eq. 1. Naeem et al. do not say it in words, and their code takes open
balls (<), with which a set does not cover itself where samples occur twice. Only ties differ.

Who is in a ball is decided exactly. Distances come from products of matrices, in float64. Where one is as near to the radius as
its rounding error, both are computed once more from differences of vectors. A copy of a sample then has distance 0, a neighbour
at the radius is in the ball, and the pieces in which pairs are computed change nothing.

A perfect generator gets neither precision nor recall 1: `real_floor` shows what it would get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stylegan_dist.metrics.features import check_features, check_pair, pieces

_SPARE = 4         # neighbours that are looked at beyond the k-th, as rounding may have changed their order
_EXACT = 1 << 19   # numbers of pairs whose distances are computed from differences at once: 4 MiB


@dataclass(frozen=True)
class ManifoldScores:
    """Precision, recall and coverage in [0, 1]; density about 1 where the distributions are equal, and without a limit."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: Tensor, generated: Tensor, neighbours: int = 3, density_neighbours: int = 5,
                    real_radii: Tensor | None = None) -> ManifoldScores:
    """Compare features [n, d] and [m, d] on one device.

    Time goes with (n + m)^2 d, memory beside the features with n + m and some tiles of 32 MiB. Scores of different n or m
    cannot be compared, apart from density.

    Args:
        neighbours: k of precision and recall; 3 in the paper.
        density_neighbours: k of density and coverage; 5 in the paper.
        real_radii: `neighbour_radii(real, (neighbours, density_neighbours))`, if it is known.
    Raises:
        ValueError: features that cannot be compared; k below 1; radii of another shape.
        InputError: no more samples than neighbours; values that are not finite.
    """
    most = max(neighbours, density_neighbours)
    check_pair(real, generated, most + 1)
    if real_radii is None:
        real_radii = neighbour_radii(real, (neighbours, density_neighbours))
    if real_radii.shape != (len(real), 2):
        raise ValueError(f"radii must be [{len(real)}, 2], got {list(real_radii.shape)}")
    real_radii = real_radii.to(real.device)
    radii, wide = real_radii.unbind(1)
    (generated_radii,) = neighbour_radii(generated, (neighbours,)).unbind(1)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    counted = 0
    reals, others = _Samples.of(real), _Samples.of(generated)
    for start, end in pieces(len(real), real.shape[1]):
        for first, last in pieces(len(generated), real.shape[1]):
            tile = _Tile(reals.part(start, end), others.part(first, last))
            inside = tile.within(radii[start:end, None])
            precise[first:last] |= inside.any(0)
            if density_neighbours != neighbours:
                inside = tile.within(wide[start:end, None])
            counted += int(inside.sum())
            covered[start:end] |= inside.any(1)
            recalled[start:end] |= tile.within(generated_radii[None, first:last]).any(1)
    return ManifoldScores(_share(precise), _share(recalled), counted / (density_neighbours * len(generated)), _share(covered))


def neighbour_radii(features: Tensor, neighbours: Sequence[int]) -> Tensor:
    """Squared distances of each sample to its k-th nearest other one, exact to the rounding of a sum.

    Args:
        features: [n, d].
        neighbours: values of k, from 1 to n - 1.
    Returns: float64 [n, len(neighbours)], on the device of the features.

    Raises:
        ValueError: no k, or one below 1.
        InputError: no more samples than neighbours; values that are not finite.
    """
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"neighbours must be numbers of at least 1, got {list(neighbours)}")
    distances, _ = nearest_others(features, max(neighbours))
    return distances[:, [k - 1 for k in neighbours]]


def nearest_others(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The nearest `neighbours` other samples of the same set [n, d] to each sample, the nearest first.

    Returns, raises: as `nearest_samples`.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    check_features(features, "features", neighbours + 1)
    count, width = features.shape
    found = _Nearest(count, min(neighbours + _SPARE, count - 1), features.device)
    samples = _Samples.of(features)
    for start, end in pieces(count, width):
        for first, last in pieces(count, width, start):  # distances are symmetric: each pair once
            distances = _Tile(samples.part(start, end), samples.part(first, last)).distances
            if first == start:
                found.update(start, end, distances.fill_diagonal_(math.inf), first)
            else:
                found.update(start, end, distances, first)
                found.update(first, last, distances.T, start)
    exact, names = found.exact(features, features)
    return exact[:, :neighbours], names[:, :neighbours]


def nearest_samples(features: Tensor, others: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The nearest `neighbours` of `others` [m, d] to each sample of `features` [n, d], the nearest first; on one device.

    Returns: squared distances, float64 [n, neighbours], exact to the rounding of a sum, so that a copy has 0; and which of the
        others they are, int64 [n, neighbours].

    Raises:
        ValueError: features that cannot be compared; `neighbours` below 1.
        InputError: fewer others than neighbours; values that are not finite.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    check_pair(others, features, 1)
    check_features(others, "others", neighbours)
    found = _Nearest(len(features), min(neighbours + _SPARE, len(others)), features.device)
    samples, candidates = _Samples.of(features), _Samples.of(others)
    for start, end in pieces(*features.shape):
        for first, last in pieces(*others.shape):
            found.update(start, end, _Tile(samples.part(start, end), candidates.part(first, last)).distances, first)
    exact, names = found.exact(features, others)
    return exact[:, :neighbours], names[:, :neighbours]


def expected_coverage(real: int, generated: int, neighbours: int = 5) -> float:
    """Mean coverage where both sets are from one continuous distribution, by their sizes (Naeem et al. 2020)."""
    return 1 - math.prod((real - j) / (real + generated - j) for j in range(1, neighbours + 1))


class _Nearest:
    """The nearest `wanted` samples of a set to each of `count` samples, of those that were looked at so far."""

    def __init__(self, count: int, wanted: int, device: torch.device):
        self._distances = torch.full((count, wanted), math.inf, dtype=torch.float64, device=device)
        self._names = torch.zeros(count, wanted, dtype=torch.int64, device=device)

    def update(self, start: int, end: int, distances: Tensor, first: int) -> None:
        """Take in the distances [end - start, s] of samples start, ..., end - 1 to samples first, first + 1, ... of the set."""
        wanted = self._names.shape[1]
        values, found = distances.topk(min(wanted, distances.shape[1]), largest=False)
        values = torch.cat([self._distances[start:end], values], 1)
        found = torch.cat([self._names[start:end], found + first], 1)
        self._distances[start:end], order = values.topk(wanted, largest=False)
        self._names[start:end] = found.gather(1, order)

    def exact(self, features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances, float64 [count, wanted], rising; and numbers in the set, int64."""
        count, wanted = self._names.shape
        rows = torch.arange(count, device=self._names.device).repeat_interleave(wanted)
        exact = _exact_distances(features, rows, others, self._names.flatten()).view(count, wanted)
        exact, order = exact.sort(dim=1, stable=True)
        return exact, self._names.gather(1, order)


class _Samples(NamedTuple):
    """Features [n, d] and their squared norms, float64 [n]."""

    features: Tensor
    norms: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Samples:
        norms = [features[start:end].double().square().sum(1) for start, end in pieces(*features.shape)]
        return cls(features, torch.cat(norms))

    def part(self, start: int, end: int) -> _Samples:
        """Samples start, ..., end - 1."""
        return _Samples(self.features[start:end], self.norms[start:end])


class _Tile:
    """Squared distances of samples a to samples b: float64 [r, s]."""

    def __init__(self, a: _Samples, b: _Samples):
        self._a, self._b = a.features, b.features
        self._norms = a.norms[:, None] + b.norms[None, :]
        self.distances = torch.sub(self._norms, self._a.double() @ self._b.double().T, alpha=2)
        # Twice the bound of the error of a sum of d + 2 terms, of the three sums in a distance.
        self._relative = 2 * (self._a.shape[1] + 2) * torch.finfo(torch.float64).eps

    def within(self, radii: Tensor) -> Tensor:
        """Which pairs are at most the distance `radii` apart, squared radii [r, 1] or [1, s]: bool [r, s]."""
        off = self.distances - radii
        inside = off <= 0
        unsure = (off.abs_() <= self._norms * self._relative).nonzero()
        if len(unsure):
            rows, columns = unsure.unbind(1)
            exact = _exact_distances(self._a, rows, self._b, columns)
            inside[rows, columns] = exact <= radii.expand_as(off)[rows, columns]
        return inside


def _exact_distances(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """Squared distances of pairs a[rows[i]], b[columns[i]], from their differences: float64 [p]."""
    count, step = len(rows), max(1, _EXACT // a.shape[1])
    padded = -(-count // step) * step  # the order of a sum may depend on the number of sums
    result = torch.empty(padded, dtype=torch.float64, device=a.device)
    rows, columns = (torch.nn.functional.pad(index, (0, padded - count)) for index in (rows, columns))
    for i in range(0, padded, step):
        off = a[rows[i:i + step]].double() - b[columns[i:i + step]].double()
        result[i:i + step] = off.square_().sum(1)
    return result[:count]


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)
