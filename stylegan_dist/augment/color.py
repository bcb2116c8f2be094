"""Transforms of colour (Karras et al. 2020b, appendix B.1): one affine map of the channels an image."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.matrices import along_luma3d, rotate_hue3d, scale3d, shift3d

COLOR_UNIFORMS = ("brightness?", "contrast?", "lumaflip?", "lumaflip", "hue?", "hue", "saturation?")
COLOR_NORMALS = ("brightness", "contrast", "saturation")

BRIGHTNESS = 0.2  # standard deviation, for images in [-1, 1]
CONTRAST = 0.5    # standard deviation, octaves
SATURATION = 1.0  # standard deviation, octaves


def color(draws: Draws, p: Tensor) -> Tensor:
    """The map of homogeneous colours, [N, 4, 4]; p [] is the probability of each of its five steps."""
    c = shift3d(draws.gated("brightness?", p, BRIGHTNESS * draws.normal("brightness"), 0.0))
    c = scale3d(draws.gated("contrast?", p, (CONTRAST * draws.normal("contrast")).exp2(), 1.0)) @ c
    flipped = draws.gated("lumaflip?", p, draws.integer("lumaflip", 2), 0.0)
    c = along_luma3d(1 - 2 * flipped, torch.ones_like(flipped)) @ c
    c = rotate_hue3d(draws.gated("hue?", p, draws.angle("hue"), 0.0)) @ c
    saturation = draws.gated("saturation?", p, (SATURATION * draws.normal("saturation")).exp2(), 1.0)
    return along_luma3d(torch.ones_like(saturation), saturation) @ c


def recolored(x: Tensor, c: Tensor) -> Tensor:
    """Images with mapped colours. Those of one channel are taken as grey: the mean of the mapped red, green and blue.

    Args:
        x: [N, 1 or 3, H, W].
        c: [N, 4, 4].
    """
    linear, constant = c[:, :3, :3], c[:, :3, 3]
    if x.shape[1] == 1:
        linear, constant = linear.mean(1).sum(1)[:, None, None], constant.mean(1, keepdim=True)
    # Not a matrix product: a GPU would round it to TF32.
    rows = []
    for row, more in zip(linear.unbind(1), constant.unbind(1), strict=True):
        mapped = more[:, None, None]
        for j in range(x.shape[1]):
            mapped = mapped + x[:, j] * row[:, j, None, None]
        rows.append(mapped)
    return torch.stack(rows, 1)
