"""Low-pass filters with a Kaiser window (Karras et al. 2021, appendix C; Kaiser 1974), as constants on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylegan_dist.constants import constant


@constant
def low_pass(taps: int, cutoff: float, half_width: float, rate: int, device: torch.device) -> Tensor:
    """A windowed sinc of sum one: float32 [taps].

    Args:
        cutoff, half_width: the transition band is cutoff +- half_width.
        rate: samples per unit of length.
    """
    line = torch.sinc(2 * cutoff / rate * _places(taps)) * _window(taps, half_width, rate)
    return (line / line.sum()).to(device, torch.float32)


@constant
def radial_low_pass(taps: int, cutoff: float, half_width: float, rate: int, device: torch.device) -> Tensor:
    """A windowed jinc of sum one, J1(2 pi cutoff r) / (pi r): float32 [taps, taps].

    Its pass band is a disc, so that it commutes with rotations. The window is a product of two lines, as in the paper.

    Args:
        taps: even, so that no tap has r = 0.
    """
    place = _places(taps)
    radius = torch.hypot(place[:, None], place[None, :]) / rate
    window = _window(taps, half_width, rate)
    plane = torch.special.bessel_j1(2 * math.pi * cutoff * radius) / (math.pi * radius) * window[:, None] * window[None, :]
    return (plane / plane.sum()).to(device, torch.float32)


def attenuation(taps: int, half_width: float, rate: int) -> float:
    """Of the stop band, in decibel (Kaiser 1974)."""
    return 2.285 * (taps - 1) * math.pi * 2 * half_width / (rate / 2) + 7.95


def kaiser_beta(decibel: float) -> float:
    """The shape of the window with this attenuation (Kaiser 1974)."""
    if decibel > 50:
        return 0.1102 * (decibel - 8.7)
    if decibel > 21:
        return 0.5842 * (decibel - 21) ** 0.4 + 0.07886 * (decibel - 21)
    return 0.0


def _window(taps: int, half_width: float, rate: int) -> Tensor:
    beta = kaiser_beta(attenuation(taps, half_width, rate))
    place = _places(taps) / ((taps - 1) / 2)
    shape = torch.special.i0(beta * (1 - place.square()).clamp_min(0).sqrt())
    return shape / torch.special.i0(torch.tensor(beta, dtype=torch.float64))


def _places(taps: int) -> Tensor:
    """Of the taps, in samples from the middle: float64 [taps], always on the CPU."""
    return torch.arange(taps, dtype=torch.float64, device="cpu") - (taps - 1) / 2
