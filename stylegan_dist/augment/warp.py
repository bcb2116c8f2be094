"""An affine transform of images without aliasing: a linear map of fixed shapes.

The image is reflected at its borders for ever, up-sampled by two with the wavelet sym6, sampled bilinearly, and down-sampled by
the adjoint filter (Karras et al. 2020b, appendix B.2). The published code pads by as much as the transforms of a batch
ask for, which a GPU must tell the host, and shows black beyond its limit. A reflected image is periodic. One period is
enough here for any transform, and there is no limit.

All sums are made in one order, also those of the adjoint on GPUs. A run gives the same bits again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylegan_dist.augment.linear import Linear
from stylegan_dist.constants import constant

# The least asymmetric wavelet of Daubechies with six vanishing moments ("Ten lectures on wavelets", 1992, table 6.3).
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)
TAPS = tuple(tap / math.sqrt(2) for tap in SYM6)  # sum one
BEFORE = 5            # samples that the filter takes before the one that lies on a pixel
FRACTION_BITS = 40    # of sums in whole numbers


class Warp(Linear):
    """Args:
        inverse: [N, 3, 3], from the coordinates of the output to those of the input, as of `geometry`.
    """

    def __init__(self, inverse: Tensor):
        self.inverse = inverse

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, W, W] -> the same."""
        size, period = x.shape[3], 4 * (x.shape[3] - 1)
        up, down = upsampling(size, x.dtype, x.device), downsampling(size, x.dtype, x.device)
        finer = (up @ (x @ up.mT)).flatten(2)
        sampled = x.new_zeros(*x.shape[:2], (2 * size + 10)**2)
        for where, weight in self._corners(size, period):
            sampled += finer.gather(2, where[:, None].expand(-1, x.shape[1], -1)).mul_(weight[:, None])
        return down @ (sampled.unflatten(2, (2 * size + 10, 2 * size + 10)) @ down.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        size, period = y.shape[3], 4 * (y.shape[3] - 1)
        up, down = upsampling(size, y.dtype, y.device), downsampling(size, y.dtype, y.device)
        sampled = (down.mT @ y @ down).flatten(2)
        # Float sums in memory come in any order on a GPU. Whole numbers have no rounding, so their order does not matter.
        largest = sampled.abs().amax(dim=(1, 2), keepdim=True).double().clamp(min=1e-200)
        unit = 2.0**FRACTION_BITS / largest
        corners = self._corners(size, period)
        planes = []
        for values in sampled.unbind(1):  # channel by channel, as whole numbers take much memory
            total = torch.zeros(len(y), period * period, dtype=torch.int64, device=y.device)
            for where, weight in corners:
                total.scatter_add_(1, where, ((values * weight) * unit[:, 0]).long())
            planes.append((total.double() / unit[:, 0]).to(y.dtype))
        return up.mT @ (torch.stack(planes, 1).unflatten(2, (period, period)) @ up)

    def _corners(self, size: int, period: int) -> list[tuple[Tensor, Tensor]]:
        """Where the four samples around each point lie in a flattened period, int64 [N, M], and their weights [N, M]."""
        g = self.inverse
        centre = (size - 1) / 2
        line = (torch.arange(2 * size + 10, device=g.device, dtype=g.dtype) - BEFORE) / 2 - centre  # pixels from the centre
        low, fraction = [], []
        for row in (0, 1):  # x, y: in samples from the first pixel
            position = g[:, row, 0, None, None] * line + g[:, row, 1, None, None] * line[:, None] + g[:, row, 2, None, None]
            position = (2 * (position + centre)).flatten(1)
            low.append(position.floor())
            fraction.append(position - low[-1])
        firsts = [value.remainder(period).long() for value in low]
        x, y = ((first, torch.where(first == period - 1, 0, first + 1)) for first in firsts)
        across, down = ((1 - value, value) for value in fraction)
        return [(y[j] * period + x[i], across[i] * down[j]) for j in (0, 1) for i in (0, 1)]


# Filters are matrices of whole rows: products are fast everywhere, and reflection costs nothing.


@constant
def upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From a row of pixels to one period of its reflection with twice the samples: [4 (size - 1), size].

    Sample 2i lies on pixel i. Zeros are put between the pixels, z[2i] = x[i], and convolved with the filter:
    u[j] = 2 sum_k taps[k] z[j + 5 - k].
    """
    up = torch.zeros(4 * (size - 1), size, dtype=torch.float64, device="cpu")
    sample = torch.arange(len(up), device="cpu")
    for k, tap in enumerate(TAPS):
        doubled = sample + BEFORE - k
        up[sample, reflected(doubled // 2, size)] += 2 * tap * (1 - doubled % 2).double()
    return up.to(device, dtype)


@constant
def downsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From a row of samples, the first of which lies `BEFORE` the first pixel, to pixels: [size, 2 size + 10].

    out[i] = sum_k taps[k] s[2i + k].
    """
    down = torch.zeros(size, 2 * size + len(TAPS) - 2, dtype=torch.float64, device="cpu")
    pixel = torch.arange(size, device="cpu")
    for k, tap in enumerate(TAPS):
        down[pixel, 2 * pixel + k] = tap
    return down.to(device, dtype)


def reflected(place: Tensor, size: int) -> Tensor:
    """The pixel of a row that mirrors on its first and last one show at any place: int64."""
    inside = place.remainder(2 * (size - 1))
    return torch.minimum(inside, 2 * (size - 1) - inside)
