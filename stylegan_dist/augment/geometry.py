"""Which part of an image is seen: pixel blitting and general geometric transforms (Karras et al. 2020b, appendix B.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.matrices import rotate2d, scale2d, shift2d, turn2d

BLIT_UNIFORMS = ("xflip?", "xflip", "rotate90?", "rotate90", "xint?", "xint.x", "xint.y")
GEOM_UNIFORMS = ("scale?", "rotate?", "rotate", "aniso?", "rotate_after?", "rotate_after", "xfrac?")
GEOM_NORMALS = ("scale", "aniso", "xfrac.x", "xfrac.y")

INTEGER_SHIFT = 0.125  # of the size, at most
SCALE = 0.2            # standard deviation, octaves
FRACTIONAL_SHIFT = 0.125  # of the size, standard deviation


def blit(draws: Draws, p: Tensor, size: int) -> Tensor:
    """Flips, quarter turns and shifts by whole pixels.

    Args:
        p: [], the probability of each.
        size: of the image, pixels.
    Returns: [N, 3, 3], from the coordinates of the output to those of the input: pixels from the centre of the image, x before
        y. So do all functions here.
    """
    one = torch.ones_like(draws.uniform("xflip"))
    flipped = draws.gated("xflip?", p, draws.integer("xflip", 2), 0.0)
    inverse = scale2d(1 - 2 * flipped, one)

    turns = draws.gated("rotate90?", p, draws.integer("rotate90", 4), 0.0)
    # Exact cosines and sines, back by `turns` quarters: 1, 0, -1, 0 and 0, -1, 0, 1.
    cos, sin = (turns - 2).abs() - 1, (turns - 1).abs() - 1
    inverse = inverse @ turn2d(cos, sin)

    x, y = (draws.gated("xint?", p, (draws.uniform(name, -INTEGER_SHIFT, INTEGER_SHIFT) * size).round(), 0.0)
            for name in ("xint.x", "xint.y"))
    return inverse @ shift2d(-x, -y)


def geom(draws: Draws, p: Tensor, size: int) -> Tensor:
    """Scaling, rotation and shifts by any amount. Together the two rotations take place with probability p."""
    scale = draws.gated("scale?", p, (SCALE * draws.normal("scale")).exp2(), 1.0)
    inverse = scale2d(1 / scale, 1 / scale)

    turning = 1 - (1 - p).clamp(min=0).sqrt()
    inverse = inverse @ rotate2d(-draws.gated("rotate?", turning, draws.angle("rotate"), 0.0))
    aniso = draws.gated("aniso?", p, (SCALE * draws.normal("aniso")).exp2(), 1.0)
    inverse = inverse @ scale2d(1 / aniso, aniso)
    inverse = inverse @ rotate2d(-draws.gated("rotate_after?", turning, draws.angle("rotate_after"), 0.0))

    x, y = (draws.gated("xfrac?", p, FRACTIONAL_SHIFT * size * draws.normal(name), 0.0) for name in ("xfrac.x", "xfrac.y"))
    return inverse @ shift2d(-x, -y)
