"""Amplifies or weakens bands of spatial frequencies (Karras et al. 2020b, appendix B.1: image-space filtering)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.linear import Linear
from stylegan_dist.augment.warp import reflected
from stylegan_dist.constants import constant

BANDS = 4
FILTER_UNIFORMS = tuple(f"band{i}?" for i in range(BANDS))
FILTER_NORMALS = tuple(f"band{i}" for i in range(BANDS))

STRENGTH = 1.0  # standard deviation, octaves
# How the power of natural images is spread over the bands (1 / f), the lowest first.
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
# The low pass of the orthogonal wavelet sym2, convolved with itself mirrored, divided by two.
LOW = tuple(tap / 32 for tap in (-1, 0, 9, 16, 9, 0, -1))


def gains(draws: Draws, p: Tensor) -> Tensor:
    """Of each band, [N, 4]: products of four draws, each of which changes one band and keeps the expected power."""
    total: list[Tensor | float] = [1.0] * BANDS
    for i in range(BANDS):
        changed = draws.gated(f"band{i}?", p, (STRENGTH * draws.normal(f"band{i}")).exp2(), 1.0)
        norm = (1 - POWER[i] + POWER[i] * changed.square()).sqrt()
        total = [factor * (changed if j == i else 1.0) / norm for j, factor in enumerate(total)]
    return torch.stack([factor for factor in total if isinstance(factor, Tensor)], 1)


class Filtered(Linear):
    """Images reflected at their borders, filtered in rows and columns by a filter of their own.

    Reflection and filter make one matrix, so that images may be smaller than the filter.

    Args:
        gains: of the bands, [N, 4].
    """

    def __init__(self, gains: Tensor):
        self.gains = gains

    def forward(self, x: Tensor) -> Tensor:
        m = self._matrix(x)
        return m @ x @ m.mT

    def adjoint(self, y: Tensor) -> Tensor:
        m = self._matrix(y)
        return m.mT @ y @ m

    def _matrix(self, x: Tensor) -> Tensor:
        """[N, 1, W, W]."""
        bands = band_matrices(x.shape[3], x.dtype, x.device)
        g = self.gains.to(x.dtype)
        return torch.stack([g[:, i, None, None] * bands[i] for i in range(BANDS)]).sum(0)[:, None]


def filter_bank() -> list[list[float]]:
    """The filters of the bands, the lowest first, each of 43 taps. Together they are the identity.

    A step splits off an upper band: what was there is stretched to half of its frequencies and low-passed, and the rest of the
    identity is the new band.
    """
    high = [-tap for tap in LOW]
    high[len(LOW) // 2] += 1.0
    bank = [[1.0], *([0.0] for _ in range(BANDS - 1))]
    for i in range(1, BANDS):
        bank = [_convolved(_stretched(row), LOW) for row in bank]
        middle, reach = len(bank[i]) // 2, len(high) // 2
        for k, tap in enumerate(high):
            bank[i][middle - reach + k] += tap
    return bank


@constant
def band_matrices(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[4, size, size]: the filter of each band for a row that is reflected at its ends, as often as it takes."""
    bank = torch.tensor(filter_bank(), dtype=torch.float64, device="cpu")
    reach = bank.shape[1] // 2
    matrices = torch.zeros(BANDS, size, size, dtype=torch.float64, device="cpu")
    row = torch.arange(size, device="cpu")
    for k in range(bank.shape[1]):
        matrices[:, row, reflected(row + k - reach, size)] += bank[:, k, None]
    return matrices.to(device, dtype)


def _stretched(row: Sequence[float]) -> list[float]:
    """Zeros between the taps."""
    return [tap for value in row for tap in (value, 0.0)][:-1]


def _convolved(a: Sequence[float], b: Sequence[float]) -> list[float]:
    total = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            total[i + j] += x * y
    return total
