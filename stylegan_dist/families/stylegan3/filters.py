"""Low-pass filters with a Kaiser window (Karras et al. 2021, appendix C; Kaiser 1974), as constants on the device.

They are designed in NumPy, so that an exported network has their values and not their design.
"""

from __future__ import annotations

import math

import numpy as np
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
    line = np.sinc(2 * cutoff / rate * _places(taps)) * _window(taps, half_width, rate)
    return torch.tensor((line / line.sum()).tolist(), dtype=torch.float32, device=device)


@constant
def radial_low_pass(taps: int, cutoff: float, half_width: float, rate: int, device: torch.device) -> Tensor:
    """A windowed jinc of sum one, J1(2 pi cutoff r) / (pi r): float32 [taps, taps].

    Its pass band is a disc, so that it commutes with rotations. The window is a product of two lines, as in the paper.

    Args:
        taps: even, so that no tap has r = 0.
    """
    place = _places(taps)
    radius, window = np.hypot(place[:, None], place[None]) / rate, _window(taps, half_width, rate)
    plane = _bessel_j1(2 * math.pi * cutoff * radius) / radius * np.outer(window, window)
    return torch.tensor((plane / plane.sum()).tolist(), dtype=torch.float32, device=device)


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


def _window(taps: int, half_width: float, rate: int) -> np.ndarray:
    return np.kaiser(taps, kaiser_beta(attenuation(taps, half_width, rate)))


def _bessel_j1(x: np.ndarray) -> np.ndarray:
    """J1, the mean of cos(t - x sin t) over a turn: to the last digits with more angles than 2 x."""
    angle = 2 * math.pi / 128 * np.arange(128)
    return np.cos(angle - x[..., None] * np.sin(angle)).mean(-1)


def _places(taps: int) -> np.ndarray:
    """Of the taps, in samples from the middle."""
    return np.arange(taps) - (taps - 1) / 2
