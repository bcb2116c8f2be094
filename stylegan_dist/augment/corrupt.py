"""Noise and cutout (Karras et al. 2020b, appendix B.1: image-space corruptions)."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.augment.draws import Draws

NOISE_UNIFORMS, NOISE_NORMALS = ("noise?",), ("noise",)
CUTOUT_UNIFORMS = ("cutout?", "cutout.x", "cutout.y")

NOISE = 0.1   # standard deviation of the standard deviation
CUTOUT = 0.5  # side of the square, of that of the image


def noisy(x: Tensor, draws: Draws, p: Tensor) -> Tensor:
    """Images [N, C, H, W] with noise of a strength of their own."""
    sigma = draws.gated("noise?", p, (NOISE * draws.normal("noise")).abs(), 0.0)
    return x + sigma[:, None, None, None] * draws.field(x.shape[1:], x)


def cut_out(x: Tensor, draws: Draws, p: Tensor) -> Tensor:
    """Images [N, C, W, W] with a square of zeros, whose centre may be anywhere in the image."""
    size = x.shape[3]
    line = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size
    columns, rows = (((line - draws.uniform(name)[:, None]).abs() < CUTOUT / 2) for name in ("cutout.x", "cutout.y"))
    hidden = (rows[:, :, None] & columns[:, None]) & draws.gate("cutout?", p)[:, None, None]
    return x * (~hidden)[:, None].to(x.dtype)
