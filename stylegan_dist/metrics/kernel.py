"""The kernel distance (Binkowski et al. 2018, "Demystifying MMD GANs"; "KID" with Inception's features).

The squared maximum mean discrepancy with the cubic kernel k(x, y) = (x . y / d + 1)^3, in its unbiased form. It may be
negative. All pairs of samples count, each once: no subsets are drawn.

Its error is that of the jackknife: the value is computed again without each sample in turn. These parts are disjoint. The usual
standard deviation over random subsets says little about the value, as the subsets overlap and are smaller than the set. A mean
over disjoint blocks of samples has an honest error, too, but a larger one where the sets are alike: it leaves out the pairs of
samples in different blocks. There the jackknife counts the noise of pairs twice (Efron and Stein 1981, "The jackknife estimate
of variance"). That part is known from the same kernel values, and is taken out once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.metrics.features import check_pair, pieces


@dataclass(frozen=True)
class KernelDistance:
    """A squared maximum mean discrepancy. People often print 1000 times the value.

    Attributes:
        value: unbiased; negative by chance where the sets are alike.
        error: its standard error, for other samples of both distributions.
    """

    value: float
    error: float


@dataclass(frozen=True)
class _Sums:
    """Kernel values of the samples of a set with those of another, or with the others of its own.

    Attributes:
        rows, columns: sums for each sample, float64 [m] and [n].
        squares: sum of all squared values.
    """

    rows: Tensor
    columns: Tensor
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())


def kernel_distance(real: Tensor, generated: Tensor) -> KernelDistance:
    """Compare features [m, d] and [n, d] on one device. Time goes with (m + n)^2 d, memory beside the features is fixed.

    Raises:
        ValueError: features that cannot be compared.
        InputError: fewer than 4 samples; values that are not finite.
    """
    check_pair(real, generated, 4)
    m, n = len(real), len(generated)
    own, other, across = _own_sums(real), _own_sums(generated), _cross_sums(real, generated)
    own_mean, other_mean = own.total / (m * (m - 1)), other.total / (n * (n - 1))
    value = own_mean + other_mean - 2 * across.total / (m * n)
    # The value without each sample: sums without its row and its column.
    without_real = (own.total - 2 * own.rows) / ((m - 1) * (m - 2)) - 2 * (across.total - across.rows) / ((m - 1) * n)
    without_other = (other.total - 2 * other.rows) / ((n - 1) * (n - 2)) - 2 * (across.total - across.columns) / (m * (n - 1))
    jackknife = float((m - 1) * without_real.var(correction=0) + (n - 1) * without_other.var(correction=0))
    pairs = (2 * _own_noise(own, m) / (m * (m - 1)) + 2 * _own_noise(other, n) / (n * (n - 1))
             + 4 * _cross_noise(across, m, n) / (m * n))
    return KernelDistance(value, math.sqrt(max(jackknife - pairs, pairs, 0.0)))


def _own_noise(sums: _Sums, n: int) -> float:
    """Variance of a kernel value that is not the sum of a number for each of its two samples, by least squares; unbiased."""
    mean = sums.total / (n * (n - 1))
    effects = (sums.rows - (n - 1) * mean) / (n - 2)
    left = sums.squares - n * (n - 1) * mean**2 - 2 * (n - 2) * float(effects.square().sum())
    return left / (n * (n - 3))


def _cross_noise(sums: _Sums, m: int, n: int) -> float:
    """The same of two sets."""
    effects = float(sums.rows.square().sum()) / n + float(sums.columns.square().sum()) / m - sums.total**2 / (m * n)
    return (sums.squares - effects) / ((m - 1) * (n - 1))


def _own_sums(features: Tensor) -> _Sums:
    """Without the values of samples with themselves."""
    count, width = features.shape
    sums, squares = torch.zeros(count, dtype=torch.float64, device=features.device), []
    for start, end in pieces(count, width):
        rows = features[start:end].double()
        for first, last in pieces(count, width, start):  # the kernel is symmetric: each pair once
            values = _kernel(rows, features[first:last])
            if first == start:
                values.fill_diagonal_(0)
            else:
                sums[first:last] += values.sum(0)
            sums[start:end] += values.sum(1)
            squares.append(values.square_().sum() * (1 if first == start else 2))
    return _Sums(sums, sums, float(torch.stack(squares).sum()))


def _cross_sums(a: Tensor, b: Tensor) -> _Sums:
    width = a.shape[1]
    of_a, of_b = (torch.zeros(len(features), dtype=torch.float64, device=a.device) for features in (a, b))
    squares = []
    for start, end in pieces(len(a), width):
        rows = a[start:end].double()
        for first, last in pieces(len(b), width):
            values = _kernel(rows, b[first:last])
            of_a[start:end] += values.sum(1)
            of_b[first:last] += values.sum(0)
            squares.append(values.square_().sum())
    return _Sums(of_a, of_b, float(torch.stack(squares).sum()))


def _kernel(rows: Tensor, features: Tensor) -> Tensor:
    """(x . y / d + 1)^3 of all pairs: float64 [r, s]."""
    base = (rows @ features.double().T).div_(rows.shape[1]).add_(1)
    return base * base * base
