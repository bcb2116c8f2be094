"""Fréchet distances of Gaussians fitted to features (Heusel et al. 2017, "GANs trained by a two time-scale update rule").

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

The last trace is the nuclear norm of F1 F2^T, for any factors S = F^T F: its squared singular values are the eigenvalues of
S1^1/2 S2 S1^1/2. Singular values are exact to rounding, whereas the root of an eigenvalue has half of the digits where that is
near zero: always with n <= d samples, whose covariance has d - n + 1 eigenvalues of zero. Factors of n rows make few samples
quick, too.

With n <= d samples the distance is dominated by its bias. It is exact here, and hardly ever useful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.metrics.features import check_features, check_pair, halves, subset
from stylegan_dist.metrics.moments import Moments


@dataclass(frozen=True)
class ClassDistance:
    """Of the samples of one class.

    Attributes:
        value: the Fréchet distance; None where a set has fewer than 2 samples.
        real, generated: numbers of samples.
        floor: the distance of two halves of the real ones; None where they are fewer than 4.
    """

    value: float | None
    real: int
    generated: int
    floor: float | None


@dataclass(frozen=True)
class FrechetLine:
    """A line through the distances of several numbers of samples.

    Attributes:
        value: its height at 1/n = 0, the distance without the bias of the generated samples.
        slope: its slope over 1/n, the bias of n samples times n.
        residual: root mean square of the distances from the line, in the units of the distance.
        sizes: numbers of samples.
        distances: their Fréchet distances.
    """

    value: float
    slope: float
    residual: float
    sizes: list[int]
    distances: list[float]


def frechet_distance(real: Moments | Tensor, generated: Moments | Tensor) -> float:
    """The squared Fréchet distance of two sets, in the units of squared features ("FID" with Inception's).

    Args:
        real, generated: their moments, or features [n, d]. With n <= d features are much quicker than moments, and equal to
            rounding; otherwise their moments are computed.
    Raises:
        ValueError: different lengths of vectors.
        InputError: fewer than 2 samples; values that are not finite.
    """
    return _distance(_Gaussian.of(real, "real"), _Gaussian.of(generated, "generated"))


def few_samples(count: int, width: int) -> str:
    """A note for people where a distance of `count` samples is dominated by its bias; empty where it is not.

    Args:
        width: numbers of a feature vector, d.
    """
    if count > width:
        return ""
    return (f"{count} samples do not determine a covariance of {width} features: the Fréchet distance is mostly bias; use more "
            f"than {width} samples, or the kernel distance")


def frechet_bias(moments: Moments, counts: Sequence[int]) -> float:
    """What the Fréchet distance of two sets from one Gaussian is in the mean, for n much larger than d.

    B (1/n1 + 1/n2) with B = Σ λ + Σ_ij λi λj / (2 (λi + λj)) + Σ λ / 4, where λ are the eigenvalues of the covariance: by
    second order perturbation of the distance in the errors of mean and covariance. Features are no Gaussians, so that it is
    right to some tens of percent.

    Args:
        moments: of the distribution.
        counts: of samples in the sets; a set whose moments are exact is left out.
    """
    values = torch.linalg.eigvalsh(moments.covariance).clamp(min=0)
    sums = values[:, None] + values
    pairs = torch.where(sums > 0, values[:, None] * values / (2 * sums), 0.0)
    return float(1.25 * values.sum() + pairs.sum()) * sum(1 / count for count in counts)


def frechet_infinity(real: Moments | Tensor, generated: Tensor, seed: int = 0, points: int = 15,
                     smallest: int | None = None) -> FrechetLine:
    """The Fréchet distance for infinitely many generated samples (Chong and Forsyth 2020, "Effectively unbiased FID and
    inception score and where to find them"): a line through distances over 1/n.

    The sizes are evenly spaced in n, as in the paper. The bias is a line over 1/n only for n well above d: so should be
    `smallest`. The bias of the real samples stays.

    Args:
        real: moments, or features [n, d].
        generated: features [N, d].
        seed: of the subsets; each has a draw of its own.
        points: number of sizes, at least 2.
        smallest: size; the largest is N. None: N / 10, as in the paper.
    Raises:
        ValueError: fewer than 2 points.
        InputError: too few samples; values that are not finite.
    """
    if points < 2:
        raise ValueError(f"a line needs 2 points, not {points}")
    check_features(generated, "generated", 3)
    most = len(generated)
    least = max(2, most // 10) if smallest is None else smallest
    if not 2 <= least < most:
        raise InputError(f"subsets from {least} to all {most} generated samples make no line: generate more, or choose smaller "
                         "subsets")
    sizes = sorted({least + round(i * (most - least) / (points - 1)) for i in range(points)})
    reference = _Gaussian.of(real, "real")
    distances = []
    for number, size in enumerate(sizes):
        rows = subset(most, size, seed, number).sort().values  # in their order: neighbours in memory, and one order of sums
        distances.append(_distance(reference, _Gaussian.of(generated[rows.to(generated.device)], "generated")))
    inverse = torch.tensor([1 / size for size in sizes], dtype=torch.float64)
    heights = torch.tensor(distances, dtype=torch.float64)
    off = inverse - inverse.mean()
    slope = float(off @ heights / (off @ off))
    value = float(heights.mean()) - slope * float(inverse.mean())
    residual = float((heights - value - slope * inverse).square().mean().sqrt())
    return FrechetLine(value, slope, residual, sizes, distances)


def frechet_by_class(real: Tensor, real_labels: Tensor, generated: Tensor, generated_labels: Tensor, classes: int,
                     seed: int = 0) -> list[ClassDistance]:
    """The Fréchet distance of each class.

    Classes often have few samples, and so a large bias: compare classes with their floors, and runs with equal counts.

    Args:
        real, generated: features [n, d].
        real_labels, generated_labels: int64 [n], values in [0, classes).
        seed: of the halves of the floors.
    Returns: one for each class, in their order.

    Raises:
        ValueError: shapes that do not fit; labels out of their range.
        InputError: values that are not finite.
    """
    check_pair(real, generated, 0)
    for name, features, labels in (("real", real, real_labels), ("generated", generated, generated_labels)):
        if labels.shape != (len(features),) or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise ValueError(f"{name}: labels must be [{len(features)}] with values from 0 to {classes - 1}")
    result = []
    for ours, theirs in zip(_by_class(real, real_labels, classes), _by_class(generated, generated_labels, classes),
                            strict=True):
        value = frechet_distance(ours, theirs) if min(len(ours), len(theirs)) >= 2 else None
        floor = None
        if len(ours) >= 4:
            first, second = (ours[rows.to(ours.device)] for rows in halves(len(ours), seed))
            floor = frechet_distance(first, second)
        result.append(ClassDistance(value, len(ours), len(theirs), floor))
    return result


def _by_class(features: Tensor, labels: Tensor, classes: int) -> Sequence[Tensor]:
    """The features of each class, in their order. One sort, because there may be as many classes as samples."""
    return features[labels.argsort(stable=True)].split(torch.bincount(labels, minlength=classes).tolist())


@dataclass(frozen=True)
class _Gaussian:
    """Mean, and a factor F of the covariance S = F^T F, [r, d] with r <= d; on the CPU."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, source: Moments | Tensor, name: str) -> _Gaussian:
        if isinstance(source, Moments):
            return cls(source.mean, _factor(source))
        check_features(source, name)
        if len(source) > source.shape[1]:
            return cls.of(Moments.of(source), name)
        rows = source.to("cpu", torch.float64)  # the smaller factor, without a decomposition
        mean = rows.mean(0)
        return cls(mean, (rows - mean) / math.sqrt(len(rows) - 1))


def _factor(moments: Moments) -> Tensor:
    """A factor F of the covariance, [r, d]: r is its rank where n <= d."""
    rank = min(moments.width, moments.count - 1)
    if rank == moments.width:
        triangle, failed = torch.linalg.cholesky_ex(moments.covariance)
        if not failed:  # as it does where features are constant or depend on each other
            return triangle.T
    values, vectors = torch.linalg.eigh(moments.covariance)  # rising; the first d - r are zeros with rounding errors
    return (vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()).T


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared")
    off = a.mean - b.mean
    traces = a.factor.square().sum() + b.factor.square().sum()
    nuclear_norm = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return max(0.0, float(off @ off + traces - 2 * nuclear_norm))  # below zero by rounding alone
