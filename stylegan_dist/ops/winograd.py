"""Convolutions of 3x3 kernels on a CPU with 2.25 times fewer multiplications (Winograd; Lavin and Gray 2016, "Fast algorithms
for convolutional neural networks").

Tiles of 2x2 outputs, from 4x4 inputs each, cost 16 multiplications a pair of channels instead of 36:

    y = A^T [(K w) . (B^T d B)] A,      summed over input channels

where "." is element by element, so that each of the 16 elements is one matrix product of tiles and channels. The gradient of w
goes the same way back, K^T [(A g A^T) . (B^T d B)], summed over tiles; that of d is a convolution with the mirrored kernel.
All numbers of A and B are 0 and 1 up to the sign, those of K are 1/4 to 1: the result is as exact as the direct sum, to a small
factor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import fused, native

MIN_CHANNELS = 128   # with fewer, or smaller images, the maps cost more than the multiplications that they save
MIN_SIZE = 16
CHUNK = 2**23        # numbers of one of the two large temporary tensors


def serves(x: Tensor, weight: Tensor, stride: int, groups: int) -> bool:
    """Whether a convolution of x, or the transposed one, is faster this way. Depends on no batch size."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and weight.shape[2:] == (3, 3) and stride == 1 and groups == 1
            and min(weight.shape[:2]) >= MIN_CHANNELS and min(x.shape[2:]) >= MIN_SIZE and _is_channels_last(x)
            and native.selected() != "closed" and "cpu" in native.native().devices)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def convolution(x: Tensor, weight: Tensor, padding: int, transposed: bool) -> Tensor:
    """F.conv2d or F.conv_transpose2d, without derivatives.

    Args:
        x: [N, I, H, W], channels_last.
        weight: [O, I, 3, 3], transposed [I, O, 3, 3], in any format.
    """
    if transposed:
        weight, padding = weight.flip(2, 3).transpose(0, 1), 2 - padding
    outputs, inputs = weight.shape[:2]
    kernels = (_transform() @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(16, outputs, inputs, 1, 1)
    height, width = (size + 2 * padding - 2 for size in x.shape[2:])
    rows, columns = (height + 1) // 2, (width + 1) // 2
    parts = []
    for part in _parts(x, rows * columns * max(inputs, outputs)):
        tiles = _tiles(torch.ops.stylegan_dist.winograd_input, part, rows, columns, padding)
        products = [F.conv2d(t, k) for t, k in zip(tiles, kernels, strict=True)]
        parts.append(torch.ops.stylegan_dist.winograd_output(products, height, width))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Of F.conv2d, for channels_last x: [N, I, H, W] and g: [N, O, ...]; in the format of `weight`, [O, I, 3, 3]."""
    rows, columns = (g.shape[2] + 1) // 2, (g.shape[3] + 1) // 2
    like = weight.new_empty(*weight.shape[:2], 1, 1)
    total = None
    numbers = rows * columns * max(weight.shape[:2])
    for part, part_g in zip(_parts(x, numbers), _parts(g, numbers), strict=True):
        tiles = _tiles(torch.ops.stylegan_dist.winograd_input, part, rows, columns, padding)
        slopes = _tiles(torch.ops.stylegan_dist.winograd_gradient, part_g, rows, columns)
        found = torch.stack([
            torch.ops.aten.convolution_backward(
                s, t, like, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False))[1]
            for s, t in zip(slopes, tiles, strict=True)])
        total = found if total is None else total + found
    assert total is not None
    gradient = (_transform().t() @ total.view(16, -1)).view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
    last = _is_channels_last(weight) and not weight.is_contiguous()
    return gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _parts(x: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Images that are worked on at once, each of 16 times `numbers`, so that temporary tensors stay small."""
    return x.split(max(1, CHUNK // (16 * numbers)))


# One temporary tensor for each of the maps is reused: to allocate this much costs more than what is computed in it.
_workspace = threading.local()


def _tiles(function: Callable, image: Tensor, rows: int, columns: int, *options: int) -> Tensor:
    """All tiles of an image as 16 channels_last images [N, C, rows, columns], until the next call.

    In this form products of matrices are convolutions with 1x1 kernels, which are fast.
    """
    count, channels = len(image) * rows * columns, image.shape[1]
    real = type(image) is Tensor  # memory of a fake one is none
    memory = getattr(_workspace, function.__name__, None) if real else None
    if memory is None or len(memory) < 16 * count * channels:
        with torch.inference_mode(False):  # later calls reuse it, also those outside of inference mode
            memory = image.new_empty(16 * count * channels)
        if real:
            setattr(_workspace, function.__name__, memory)
    tiles = memory[:16 * count * channels].view(16, count, channels)
    function(image, rows, columns, *options, tiles)
    return tiles.view(16, -1, rows, columns, channels).permute(0, 1, 4, 2, 3)


def _transform() -> Tensor:
    """K: [16, 9]."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float32, device="cpu")
    return torch.kron(g, g)


# Fake kernels


def _tiles_fake(*_: Any) -> None:
    """Of the maps that fill a tensor they are given."""


def _output_fake(products: list[Tensor], height: int, width: int) -> Tensor:
    shape = (*products[0].shape[:2], height, width)
    return torch.empty(shape, dtype=torch.float32, device=products[0].device, memory_format=torch.channels_last)


# There are no derivatives: `convolution.py` has them.
fused.define("winograd_input", _tiles_fake)
fused.define("winograd_gradient", _tiles_fake)
fused.define("winograd_output", _output_fake)
