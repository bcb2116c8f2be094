"""Equivariance of generators: whether what the input does, the image does (Karras et al. 2021, section 2.2, appendix E).

The peak signal-to-noise ratio of images in [-1, 1], 10 log10(2^2 / MSE), between the image of a moved input and the moved
image. MSE is the mean over all samples, channels and valid pixels.

EQ-T moves by whole pixels. EQ-T_frac moves by any amount, the image with a Lanczos filter of three lobes. EQ-R rotates. No
filter rotates a square of frequencies into itself, so both images are low-passed alike. The publication keeps the frequencies
that are in the square and in the rotated square. Here it is the disc inside both, which is one filter for all angles. Values
are near the published ones, and not equal to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.metrics.features import check_features

MOST_SHIFT = 1 / 8    # of the width
PEAK = 2.0            # largest difference of two images
LEAST = 1e-30         # mean squared difference
LOBES = 3             # of the Lanczos filter
REACH = 6             # pixels, radius of the filter that rotates
CUTOFF = 0.5          # cycles per pixel, radius of its pass band
KAISER_BETA = 5.65    # of its window: 60 decibel


@dataclass(frozen=True)
class Equivariance:
    """Attributes:
        value: decibel, at most 306.
        error: one standard error, from the spread over the samples.
    """

    value: float
    error: float


def equivariance_score(rows: Tensor) -> Equivariance:
    """The ratio of all samples.

    Args:
        rows: [n, 2], of `translation_errors` or `rotation_errors`, in any order.
    Raises:
        InputError: fewer than two samples, values that are not finite, or no valid pixel.
    """
    check_features(rows, "squared differences")
    squares, pixels = rows.double().unbind(1)
    if not pixels.any():
        raise InputError("the images are too small for this metric of equivariance: its filter never lies inside of them")
    mean = (squares.sum() / pixels.sum()).clamp_min(LEAST)
    error = (squares - mean * pixels).square().sum().sqrt() / pixels.sum()
    return Equivariance(10 * math.log10(PEAK**2 / float(mean)), 10 / math.log(10) * float(error / mean))


def translation_errors(images: Tensor, moved: Tensor, pixels: Tensor) -> Tensor:
    """Sums of squared differences, and how many values were compared: float32 [n, 2].

    Args:
        images: [n, C, R, R].
        moved: of inputs that are moved by `pixels`.
        pixels: [n, 2], to the right and down; whole ones are exact.
    """
    across, valid_across = _shift(pixels[:, 0], images.shape[3])
    down, valid_down = _shift(pixels[:, 1], images.shape[2])
    expected = down[:, None] @ images.float() @ across[:, None].mT
    return _compare(expected, moved, valid_down[:, :, None] & valid_across[:, None, :])


def rotation_errors(images: Tensor, rotated: Tensor, angle: Tensor) -> Tensor:
    """As `translation_errors`, for inputs that are rotated about the middle.

    Args:
        angle: [n], radians, counter-clockwise as one sees it.
    """
    expected, valid = rotate(images, angle)
    found, inside = rotate(rotated, torch.zeros_like(angle))
    return _compare(expected, found, valid & inside)


def rotate(images: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Low-passed and rotated images [n, C, R, R], and bool [n, R, R], where the filter has met the image alone.

    Each pixel is a sum over the 12 x 12 pixels around the point that it comes from, with a windowed jinc of their distances.
    """
    n, channels, size, _ = images.shape
    line = torch.arange(size, device=images.device, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    cos, sin = (part.double()[:, None, None] for part in (angle.cos(), angle.sin()))
    points = [cos * x - sin * y + (size - 1) / 2, sin * x + cos * y + (size - 1) / 2]  # x and y, [n, R, R]
    first = [point.floor() for point in points]
    part = [(point - whole).float() for point, whole in zip(points, first, strict=True)]
    low = [whole.long() - REACH + 1 for whole in first]
    valid = torch.ones_like(low[0], dtype=torch.bool)
    for start in low:
        valid &= (start >= 0) & (start + 2 * REACH <= size)
    flat, total = images.float().flatten(2), torch.zeros(n, 1, size * size, device=images.device)
    made = torch.zeros_like(flat)
    for j in range(2 * REACH):
        for i in range(2 * REACH):
            radius = torch.hypot(part[0] + REACH - 1 - i, part[1] + REACH - 1 - j)
            weight = _jinc(radius).flatten(1)[:, None]
            where = (low[1] + j).clamp(0, size - 1) * size + (low[0] + i).clamp(0, size - 1)
            made += weight * flat.gather(2, where.flatten(1)[:, None].expand(-1, channels, -1))
            total += weight
    return (made / total).unflatten(2, (size, size)), valid


def _jinc(radius: Tensor) -> Tensor:
    """J1(2 pi cutoff r) / r, in a radial Kaiser window."""
    radius = radius.clamp_min(1e-4)
    window = torch.special.i0(KAISER_BETA * (1 - (radius / REACH).square()).clamp_min(0).sqrt()) * (radius < REACH)
    return torch.special.bessel_j1(2 * math.pi * CUTOFF * radius) / radius * window


def _shift(pixels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lines of weights [n, size, size] that shift a line, and bool [n, size], where they have met the line alone."""
    place = torch.arange(size, device=pixels.device, dtype=torch.float64)
    source = place - pixels.double()[:, None]
    distance = source[:, :, None] - place
    weight = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    weight = torch.where(weight.abs() < 1e-12, 0, weight)  # of whole pixels one is left
    whole = source == source.round()
    before, after = (torch.where(whole, 0, count) for count in (LOBES - 1, LOBES))
    valid = (source.floor() - before >= 0) & (source.floor() + after <= size - 1)
    total = weight.sum(2, keepdim=True)
    return (weight / torch.where(total.abs() > 0.5, total, 1)).float(), valid


def _compare(expected: Tensor, found: Tensor, valid: Tensor) -> Tensor:
    """valid: [n, R, R]."""
    squares = (expected.double() - found.double()).square() * valid[:, None]
    pixels = valid.sum((1, 2)) * expected.shape[1]
    return torch.stack([squares.sum((1, 2, 3)), pixels.double()], 1).float()
