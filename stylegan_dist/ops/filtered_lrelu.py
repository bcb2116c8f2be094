"""The leaky ReLU of StyleGAN3: between an up-sampling and a down-sampling filter (Karras et al. 2021, section 3.2).

A pointwise nonlinearity of a continuous signal makes frequencies that the samples cannot hold. It is therefore computed on a
finer grid, and what does not fit is filtered off before that is given up.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import convolution
from stylegan_dist.ops.resample import padded


def filtered_lrelu(
    x: Tensor, bias: Tensor | None, up_filter: Tensor | None, down_filter: Tensor | None, up: int, down: int,
    padding: tuple[int, int], gain: float = math.sqrt(2), slope: float = 0.2, clamp: float | None = None,
) -> Tensor:
    """Add the bias, insert zeros and pad, filter, leaky ReLU, clamp, filter, keep every `down`-th sample.

    Args:
        x: [N, C, H, W] in any floating dtype.
        bias: [C]; None for no bias.
        up_filter, down_filter: [k], taken in both directions, or [k, k]; float32; None for no filter. The first one is
            multiplied by up^2.
        up, down: integer factors, the same in both directions.
        padding: zeros before and after, in both directions, counted after the zero insertion; negative values crop.
        gain, slope: of the leaky ReLU.
        clamp: bound of the values after gain; None for no bound.
    Returns: [N, C, (H * up + padding - taps of both filters + 2 - 1) // down + 1, likewise W], dtype of x.
    """
    dtype = x.dtype
    with convolution.without_autocast(x):
        x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        if bias is not None:
            x = x + bias.to(x.dtype).reshape(1, -1, 1, 1)
        x = _up(x, up_filter, up, padding)
        x = F.leaky_relu(x, slope) * gain
        if clamp is not None:
            x = x.clamp(-clamp, clamp)
        return _down(x, down_filter, down).to(dtype)


def _up(x: Tensor, kernel: Tensor | None, up: int, padding: tuple[int, int]) -> Tensor:
    """Zero insertion, padding and the filter with gain up^2."""
    taps = 1 if kernel is None else kernel.shape[-1]
    for weight in _kernels(kernel, x, up):
        stride = (up if weight.shape[2] > 1 else 1, up if weight.shape[3] > 1 else 1)
        x = F.conv_transpose2d(x, weight, stride=stride, groups=x.shape[1])
    return padded(x, padding[0] - (taps - 1), padding[1] - (taps - 1) + (up - 1))


def _down(x: Tensor, kernel: Tensor | None, down: int) -> Tensor:
    """The filter, and every down-th sample."""
    for weight in _kernels(kernel, x, 1):
        stride = (down if weight.shape[2] > 1 else 1, down if weight.shape[3] > 1 else 1)
        x = F.conv2d(x, weight.flip([2, 3]), stride=stride, groups=x.shape[1])
    return x[:, :, ::down, ::down] if kernel is None else x


def _kernels(kernel: Tensor | None, x: Tensor, up: int) -> list[Tensor]:
    """Depthwise weights, one in each direction where that is possible."""
    if kernel is None:
        return []
    kernel, channels = kernel.to(x.dtype), x.shape[1]
    lines = [kernel[:, None] * up, kernel[None, :] * up] if kernel.ndim == 1 else [kernel * up**2]
    return [line.expand(channels, 1, *line.shape) for line in lines]
