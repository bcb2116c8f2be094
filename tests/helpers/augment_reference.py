"""Augmentation as the paper defines it, pixel by pixel in float64, without the library's code. Slow, for tiny images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# The scaling filter of sym6, as PyWavelets prints it.
SYM6 = np.array([0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
                 0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
                 0.0017677118642428036, -0.007800708325034148])
GREY = np.ones(3) / math.sqrt(3)


def mirrored(i: int, size: int) -> int:
    """The pixel that a mirror at the first and at the last one shows at place i."""
    while not 0 <= i < size:
        i = -i if i < 0 else 2 * (size - 1) - i
    return i


def warp(x: Tensor, inverse: np.ndarray) -> Tensor:
    """One image [C, W, W], by a matrix from output to input coordinates (pixels from the centre, x first)."""
    image, size = x.numpy(), x.shape[2]
    taps = SYM6 / SYM6.sum()
    centre = (size - 1) / 2
    samples: dict[tuple[int, int], np.ndarray] = {}

    def finer(row: int, column: int) -> np.ndarray:
        """Sample of the doubled image: zeros between pixels, convolved; number 2i lies on pixel i."""
        if (row, column) not in samples:
            total = np.zeros(len(image))
            for a in range(12):
                for b in range(12):
                    i, j = row + 5 - a, column + 5 - b
                    if i % 2 == 0 and j % 2 == 0:
                        total += 4 * taps[a] * taps[b] * image[:, mirrored(i // 2, size), mirrored(j // 2, size)]
            samples[row, column] = total
        return samples[row, column]

    def between(px: float, py: float) -> np.ndarray:
        j, i = math.floor(px), math.floor(py)
        fx, fy = px - j, py - i
        return ((1 - fy) * ((1 - fx) * finer(i, j) + fx * finer(i, j + 1))
                + fy * ((1 - fx) * finer(i + 1, j) + fx * finer(i + 1, j + 1)))

    fine = np.zeros((len(image), 2 * size + 10, 2 * size + 10))
    for row in range(2 * size + 10):
        for column in range(2 * size + 10):
            point = np.array([(column - 5) / 2 - centre, (row - 5) / 2 - centre, 1.0])
            px, py, _ = inverse @ point
            fine[:, row, column] = between(2 * (px + centre), 2 * (py + centre))
    out = np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            out[:, row, column] = np.einsum("a,b,cab->c", taps, taps, fine[:, 2 * row:2 * row + 12, 2 * column:2 * column + 12])
    return torch.from_numpy(out)


def matrix_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of images [C, W, W], column by column."""
    count = math.prod(shape)
    return torch.stack([function(unit.reshape(shape)).flatten() for unit in torch.eye(count, dtype=torch.float64)], 1)


def shifted(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def scaled(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def rotated(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])


def turned_hue(color: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' rotation of a colour about the grey axis."""
    return (color * math.cos(angle) + np.cross(GREY, color) * math.sin(angle) + GREY * (GREY @ color) * (1 - math.cos(angle)))


def bank() -> np.ndarray:
    """The four band filters [4, 43] from sym2 itself."""
    r = math.sqrt(3)
    sym2 = np.array([1 + r, 3 + r, 3 - r, 1 - r]) / (4 * math.sqrt(2))
    low = np.convolve(sym2, sym2[::-1]) / 2
    high = -low
    high[3] += 1
    rows = np.eye(4, 1)
    for i in range(1, 4):
        stretched = np.zeros((4, 2 * rows.shape[1] - 1))
        stretched[:, ::2] = rows
        rows = np.stack([np.convolve(row, low) for row in stretched])
        middle = rows.shape[1] // 2
        rows[i, middle - 3:middle + 4] += high
    return rows


def filtered(x: Tensor, taps: np.ndarray) -> Tensor:
    """One image [C, W, W], convolved in both directions (the filters are symmetric)."""
    image, size, reach = x.numpy(), x.shape[2], len(taps) // 2
    rows = np.zeros_like(image)
    for i in range(size):
        for k, tap in enumerate(taps):
            rows[:, i] += tap * image[:, mirrored(i + k - reach, size)]
    out = np.zeros_like(image)
    for j in range(size):
        for k, tap in enumerate(taps):
            out[:, :, j] += tap * rows[:, :, mirrored(j + k - reach, size)]
    return torch.from_numpy(out)
