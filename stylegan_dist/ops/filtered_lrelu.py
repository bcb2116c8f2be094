"""The filtered leaky ReLU of StyleGAN3: an activation between two low-pass filters, at a higher sampling rate.

A leaky ReLU makes frequencies that the sampling rate of its input cannot hold. Karras et al. 2021, "Alias-free generative
adversarial networks", therefore up-sample first, bend at the higher rate, where the new frequencies do fit, filter away those
that the output cannot hold, and drop samples (section 3.2 and figure 4b).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import convolution, fused, native
from stylegan_dist.ops.bias_act import LRELU_GAIN, LRELU_SLOPE
from stylegan_dist.ops.resample import padded

MOST_TAPS, MOST_FACTOR = 24, 4  # that native operators take; the filters of StyleGAN3 have 6 taps for each unit of a factor


class Filters(NamedTuple):
    """The low-pass filters around a leaky ReLU, and how they change the sampling rate, the same in both directions.

    Attributes:
        before, after: [taps] for both directions, one after the other, or [taps, taps]; on the device of the signal. They are
            used as they are, so that their sums should be one, and get no gradient. None: the filter [1].
        up, down: integer factors.
        padding: (lo, hi), zeros before and after, counted after the zero insertion; negative values crop.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    up: int = 1
    down: int = 1
    padding: tuple[int, int] = (0, 0)


def filtered_lrelu(x: Tensor, bias: Tensor | None, filters: Filters, gain: float = LRELU_GAIN, slope: float = LRELU_SLOPE,
                   clamp: float | None = None) -> Tensor:
    """Bias, up-sampling, leaky ReLU, clamp and down-sampling; natively in one pass over memory.

    In each direction, with s = x + bias, `up - 1` zeros behind each pixel, and zeros around:

        m[t] = up * sum_j before[j] s[t - lo + up_taps - 1 - j]
        y[o] = sum_k after[k] phi(m[o * down + down_taps - 1 - k])        phi(v) = clip(gain * lrelu(v), -clamp, clamp)

    Filters convolve: the first tap meets the last sample. It makes a difference for asymmetric filters only.

    Args:
        x: [N, C, H, W] in any floating dtype.
        bias: [C]; None for none.
        gain: factor behind the leaky ReLU, above zero.
        slope: of the leaky ReLU below zero, at least zero.
        clamp: bound of phi, at least zero; None for no bound.
    Returns: [N, C, (M - down_taps) // down + 1, likewise W], dtype of x, under autocast too;
        M = H * up + lo + hi - up_taps + 1 samples are between the filters.
    Raises: ValueError: that is less than one pixel.
    """
    before, after, up, down, padding = filters
    up_taps, down_taps = _taps(before, after)
    if min(x.shape[2:]) * up + sum(padding) < up_taps + down_taps - 1:
        raise ValueError(f"filtered_lrelu: {x.shape[2]}x{x.shape[3]} pixels with up {up} and padding {padding} are fewer than "
                         f"filters of {up_taps} and {down_taps} taps need")
    small = max(up_taps, down_taps) <= MOST_TAPS and max(up, down) <= MOST_FACTOR
    # On a CPU, float32 is faster in PyTorch's convolutions.
    if small and native.serves(x, faster_on_cpu=x.dtype.itemsize == 2):
        wide = fused.wide(x)
        bias = None if bias is None else bias.to(wide)
        if before is None and after is None and (up, down, *padding) == (1, 1, 0, 0):
            return fused.call("bias_act", x, bias, slope, gain, fused.bound(clamp))
        taps = (None if f is None else f.detach().to(wide) for f in (before, after))
        keep = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        constants = up, down, *padding, slope, gain * up**2, fused.bound(clamp), keep
        return fused.call("filtered_lrelu", x, bias, *taps, *constants)[0]
    return filtered_lrelu_reference(x, bias, filters, gain, slope, clamp)


def filtered_lrelu_reference(x: Tensor, bias: Tensor | None, filters: Filters, gain: float, slope: float,
                             clamp: float | None) -> Tensor:
    """The same in plain PyTorch, differentiable to any order. What is between the filters has the dtype of x, too."""
    dtype, (before, after, up, down, padding) = x.dtype, filters
    if convolution.is_slow(x):
        x = x.float()
    if bias is not None:
        x = x + bias.to(x.dtype)[:, None, None]
    with convolution.without_autocast(x):
        if before is not None or up > 1:
            for kernel, stride in _lines(x, before, up, up):
                # Zero insertion and full convolution in one, of which the padding then leaves a part.
                x = F.conv_transpose2d(x, kernel, stride=stride, groups=x.shape[1])
            taps, = _taps(before)
            padding = padding[0] - (taps - 1), padding[1] - (taps - up)
        x = F.leaky_relu(padded(x, *padding), slope) * gain
        if clamp is not None:
            x = x.clamp(-clamp, clamp)
        if after is None:
            return x[:, :, ::down, ::down].to(dtype)
        for kernel, stride in _lines(x, after, down, 1):
            x = F.conv2d(x, kernel.flip([2, 3]), stride=stride, groups=x.shape[1])  # which correlates
    return x.to(dtype)


def _lines(x: Tensor, f: Tensor | None, step: int, gain: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """Kernels [C, 1, ...] with their strides: one for both directions, or one for each; `gain` is of one direction."""
    f = x.new_ones(1) if f is None else f.detach().to(x.dtype)
    parts = [(f * gain**2, (step, step))] if f.ndim == 2 else [(f[:, None] * gain, (step, 1)), (f[None, :] * gain, (1, step))]
    return [(kernel.expand(x.shape[1], 1, -1, -1), stride) for kernel, stride in parts]


# Natively, with filters that correlate, `before` zeros in front, and 2 bits for each sample between the filters:
#
#     filtered_lrelu          (down(phi(up(x + b))), mask): on which side of zero and of the clamp each sample is
#     filtered_lrelu_linear   (down(phi' up(x + b)), its sum over each channel), phi' from the mask
#
# The second is the derivative of the first, and it is linear. Its adjoint is itself with filters, factors and paddings
# exchanged, so that no order of derivatives needs anything else. x is not kept.


def _taps(*filters: Tensor | None) -> list[int]:
    return [1 if f is None else f.shape[0] for f in filters]


def _sizes(x: Tensor, geometry: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Rows and columns of the output, and of the samples between the filters that it needs; of `Filters` as a flat list."""
    *filters, up, down, lo, hi = geometry
    up_taps, down_taps = _taps(*filters)
    sizes = [(size * up + lo + hi - up_taps + 1 - down_taps) // down + 1 for size in x.shape[2:]]
    return sizes, [(size - 1) * down + down_taps for size in sizes]


def _fake(x: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *geometry, _, _, _, keep = rest
    (height, width), (rows, columns) = _sizes(x, geometry)
    mask = (*x.shape[:2], rows, (columns + 3) // 4) if keep else (0,)
    return fused.empty_like(x, (*x.shape[:2], height, width)), x.new_empty(mask, dtype=torch.uint8)


def _save(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
    x, _, *geometry, slope, gain, _, _ = inputs
    up_filter, down_filter, up, down, lo, _ = geometry
    up_taps, down_taps = _taps(up_filter, down_filter)
    _, samples = _sizes(x, geometry)
    ctx.save_for_backward(outputs[1], down_filter, up_filter)
    ctx.adjoint = (down, up, down_taps - 1, up_taps - 1 - lo, *samples, *x.shape[2:], False, slope, gain)


def _backward(ctx: Any, g: Tensor | None, _: Any) -> tuple:
    wants_x, wants_bias, *_ = ctx.needs_input_grad
    if g is None or not (wants_x or wants_bias):
        return ()
    return fused.call("filtered_lrelu_linear", g, None, *ctx.saved_tensors, *ctx.adjoint, wants_bias)


def _linear_fake(x: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, height, width, _, _, _, reduce = rest
    return fused.empty_like(x, (*x.shape[:2], height, width)), fused.empty_sum(x, reduce)


def _linear_save(ctx: Any, inputs: tuple, outputs: Any) -> None:
    x, _, mask, up_filter, down_filter, up, down, up_before, down_before, *samples, _, _, flip, slope, gain, ctx.reduce = inputs
    up_taps, down_taps = _taps(up_filter, down_filter)
    before = down_taps - 1 - down_before, up_taps - 1 - up_before
    ctx.save_for_backward(mask, down_filter, up_filter)
    ctx.adjoint = (down, up, *before, *samples, *x.shape[2:], not flip, slope, gain)


def _linear_backward(ctx: Any, g: Tensor, g_sum: Tensor) -> tuple:
    wants_bias = ctx.needs_input_grad[1]
    if not (ctx.needs_input_grad[0] or wants_bias):
        return ()
    return fused.call("filtered_lrelu_linear", g, g_sum if ctx.reduce else None, *ctx.saved_tensors, *ctx.adjoint, wants_bias)


fused.define("filtered_lrelu", _fake, _backward, _save, materialize=False)
fused.define("filtered_lrelu_linear", _linear_fake, _linear_backward, _linear_save)
