"""Resampling with a separable low-pass filter, alone and together with a convolution.

The filter of StyleGAN2 is [1, 3, 3, 1] in both directions (Karras et al. 2020, section 4.1, after
Zhang 2019, "Making convolutional networks shift-invariant again"). Up-sampling by two means: put a
zero behind every pixel, filter, multiply by four so that the mean stays. Down-sampling means: filter,
keep every second pixel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.constants import constant
from stylegan_dist.ops import convolution, fused, native

TAPS = (1.0, 3.0, 3.0, 1.0)


def resample2d(
    x: Tensor,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
    gain: float = 1.0,
    taps: tuple[float, ...] = TAPS,
) -> Tensor:
    """Insert `up - 1` zeros behind each pixel, pad, convolve with the filter, keep every `down`-th pixel.

    Args:
        x: [N, C, H, W].
        up, down: integer factors, the same in both directions.
        padding: zeros before and after, in both directions, counted after the zero insertion;
            negative values crop, zeros of the other side too where pixels do not suffice.
        gain: factor on the output.
        taps: the one-dimensional filter; normalised to sum one here.
    Returns: [N, C, (H * up + padding - len(taps)) // down + 1, likewise W], dtype of x, under autocast too.
    Raises: ValueError: that is less than one pixel.
    """
    if min(x.shape[2:]) * up + sum(padding) < len(taps):
        raise ValueError(f"resample2d: {x.shape[2]}x{x.shape[3]} pixels with up {up} and padding {padding} are fewer than the "
                         f"{len(taps)} taps of the filter")
    if native.serves(x):
        height, width = ((size * up + sum(padding) - len(taps)) // down + 1 for size in x.shape[2:])
        return fused.call("resample2d", x, correlated(taps), up, down, padding[0], height, width, gain)
    return resample2d_reference(x, up, down, padding, gain, taps)


def resample2d_reference(
    x: Tensor, up: int, down: int, padding: tuple[int, int], gain: float, taps: tuple[float, ...]
) -> Tensor:
    """The same in plain PyTorch."""
    channels, length = x.shape[1], len(taps)
    kernel = low_pass(taps, gain, x.dtype, x.device).expand(channels, 1, length, length)
    before, after = padding
    with convolution.without_autocast(x):  # a filter has no weights that were learned: images keep their precision
        if up == 1:
            # conv2d correlates: flipping the kernel makes it the convolution that is meant.
            return convolution.conv2d(padded(x, before, after), kernel.flip([2, 3]), stride=down, groups=channels)
        # A transposed convolution is zero insertion and full convolution in one; crop to the wanted padding.
        x = convolution.conv_transpose2d(x, kernel, stride=up, groups=channels)
    return padded(x, before - (length - 1), after - (length - up))[:, :, ::down, ::down]


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros in both directions, or where negative a crop, which may take away zeros of the other side."""
    if min(before, after) >= 0 or max(before, after) <= 0:
        return F.pad(x, (before, after, before, after))
    before_zeros, after_zeros = max(before, 0), max(after, 0)
    x = F.pad(x, (before_zeros, after_zeros, before_zeros, after_zeros))
    return F.pad(x, (before - before_zeros, after - after_zeros, before - before_zeros, after - after_zeros))


@constant
def low_pass(taps: tuple[float, ...], gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two-dimensional filter."""
    line = torch.tensor(taps, dtype=dtype, device=device)
    line = line / line.sum()
    return line[:, None] * line[None, :] * gain


def upsample2d(x: Tensor) -> Tensor:
    """Twice the size, centred: [N, C, H, W] -> [N, C, 2H, 2W]."""
    return resample2d(x, up=2, padding=(2, 1), gain=4.0)


def downsample2d(x: Tensor) -> Tensor:
    """Half the size, centred: [N, C, H, W] -> [N, C, H/2, W/2]."""
    return resample2d(x, down=2, padding=(1, 1))


def conv2d_resample(x: Tensor, weight: Tensor, down: int = 1) -> Tensor:
    """A "same" convolution, or one before down-sampling by two in fewer FLOPs.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k], k = 1 or 3, in the dtype of x.
        down: 1 or 2.
    Returns: [N, O, H / down, W / down].
    """
    pad = weight.shape[-1] // 2
    weight = in_format_of(x, weight)
    if down == 2:
        if pad == 0:  # a 1x1 convolution commutes with dropping pixels: drop them first
            return convolution.conv2d(downsample2d(x), weight)
        return convolution.conv2d(resample2d(x, padding=(2, 2)), weight, stride=2)
    return convolution.conv2d(x, weight, padding=pad)


def conv2d_up(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution after up-sampling by two, in fewer FLOPs: without the filter of `generator_epilogue`, which comes next.

    The kernel is mirrored, as in any transposed convolution; elsewhere it is not (F.conv2d). Which way round learned kernels
    are stored is a convention, but checkpoints depend on it.

    Args:
        x: [N, I, H, W].
        weight: [O, I, 3, 3], in the dtype of x.
    Returns: [N, O, 2H + 1, 2W + 1].
    """
    return convolution.conv_transpose2d(x, in_format_of(x, weight.transpose(0, 1)), stride=2)


def in_format_of(x: Tensor, weight: Tensor) -> Tensor:
    """The weight in the memory format of x.

    Here and once: else each pass, forward and backward, brings it into that format for itself.
    """
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return weight.contiguous(memory_format=torch.channels_last)
    return weight


def correlated(taps: tuple[float, ...]) -> tuple[float, ...]:
    """The normalised filter in the order in which it meets the pixels."""
    total = sum(taps)
    return tuple(tap / total for tap in reversed(taps))


# Natively, the adjoint is resample2d itself with up and down, and the ends of the filter, exchanged.


def _fake(
    x: Tensor, line: list[float], up: int, down: int, before: int, height: int, width: int, gain: float
) -> Tensor:
    return fused.empty_like(x, (*x.shape[:2], height, width))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _backward(ctx: Any, g: Tensor) -> tuple:
    line, up, down, before, _, _, gain = ctx.constants
    return fused.call("resample2d", g, list(line)[::-1], down, up, len(line) - 1 - before, *ctx.size, gain),


fused.define("resample2d", _fake, _backward, _save)
