"""Matrices, one an image, from numbers [N]: homogeneous in the plane, [N, 3, 3], and in the space of colours, [N, 4, 4]."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """[N, n, n] from n x n entries, each [N] or a number. `like` [N] gives dtype and device.

    No tensor is made from numbers of Python's, for which a GPU would wait.
    """
    zero = torch.zeros_like(like)
    entries = [entry if isinstance(entry, Tensor) else zero + entry for row in rows for entry in row]
    return torch.stack(entries, dim=-1).unflatten(-1, (len(rows), len(rows)))


def shift2d(x: Tensor, y: Tensor) -> Tensor:
    return matrix([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]], x)


def scale2d(x: Tensor, y: Tensor) -> Tensor:
    return matrix([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]], x)


def rotate2d(angle: Tensor) -> Tensor:
    """(x, y) -> (x cos - y sin, x sin + y cos)."""
    return turn2d(angle.cos(), angle.sin())


def turn2d(cos: Tensor, sin: Tensor) -> Tensor:
    return matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], cos)


def shift3d(by: Tensor) -> Tensor:
    """The same number added to all three colours."""
    return matrix([[1.0, 0.0, 0.0, by], [0.0, 1.0, 0.0, by], [0.0, 0.0, 1.0, by], [0.0, 0.0, 0.0, 1.0]], by)


def scale3d(by: Tensor) -> Tensor:
    return matrix([[by, 0.0, 0.0, 0.0], [0.0, by, 0.0, 0.0], [0.0, 0.0, by, 0.0], [0.0, 0.0, 0.0, 1.0]], by)


def along_luma3d(along: Tensor, across: Tensor) -> Tensor:
    """Grey is multiplied by `along`, what is orthogonal to it by `across`."""
    other = (along - across) / 3
    same = other + across
    return _symmetric3d(same, other, other)


def rotate_hue3d(angle: Tensor) -> Tensor:
    """A rotation about the grey axis (Rodrigues: cos I + (1 - cos) v v' + sin [v]x)."""
    cos, side = angle.cos(), angle.sin() / math.sqrt(3)
    other = (1 - cos) / 3
    return _symmetric3d(other + cos, other - side, other + side)


def _symmetric3d(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The circulant matrix with the first row a, b, c: all that treats the three colours alike."""
    return matrix([[a, b, c, 0.0], [c, a, b, 0.0], [b, c, a, 0.0], [0.0, 0.0, 0.0, 1.0]], a)
