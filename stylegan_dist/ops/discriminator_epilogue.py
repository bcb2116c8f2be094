"""What follows a convolution of the discriminator: bias, leaky ReLU, clamp, then a filter or the residual path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_dist.ops import fused, native
from stylegan_dist.ops.bias_act import ACTIVATIONS, LRELU_SLOPE, bias_act, bias_act_reference
from stylegan_dist.ops.resample import TAPS, resample2d_reference

PADDING = (2, 2)  # before the filter: that of a 3x3 convolution that halves the size, which comes next


def discriminator_epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    gain: float = 1.0,
    clamp: float | None = None,
    residual: Tensor | None = None,
    filtered: bool = False,
) -> Tensor:
    """filter(phi(x + bias)) or phi(x + bias) + residual, phi = `bias_act` with "lrelu", in one pass over memory.

    The filter is the low-pass [1, 3, 3, 1] behind a padding by two pixels, after which a 3x3 convolution of stride 2 without
    padding is a down-sampling one (`conv2d_resample`). Natively, phi reaches filter and sum unrounded.

    Args:
        x: [N, C, H, W] in any floating dtype.
        bias, gain, clamp: as of `bias_act`.
        residual: shape and dtype of the output; None for none.
        filtered: whether the filter follows; not with a residual.
    Returns: [N, C, H + 1, W + 1] if filtered, else [N, C, H, W], dtype of x.
    """
    assert not (filtered and residual is not None)
    if not filtered and residual is None:
        return bias_act(x, bias, "lrelu", gain, clamp)
    if native.serves(x, faster_on_cpu=True) and gain > 0 and (clamp is None or clamp >= 0):
        line = fused.correlated(TAPS) if filtered else ()
        before, after = PADDING if filtered else (0, 0)
        if bias is not None:
            bias = bias.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return fused.call(
            "discriminator_epilogue", x, bias, residual, line, before, after, LRELU_SLOPE, ACTIVATIONS["lrelu"][1] * gain,
            -1.0 if clamp is None else clamp * gain)
    return discriminator_epilogue_reference(x, bias, gain, clamp, residual, filtered)


def discriminator_epilogue_reference(
    x: Tensor, bias: Tensor | None, gain: float, clamp: float | None, residual: Tensor | None, filtered: bool
) -> Tensor:
    """The same in plain PyTorch."""
    x = bias_act_reference(x, bias, "lrelu", gain, clamp)
    if filtered:
        return resample2d_reference(x, 1, 1, PADDING, 1.0, TAPS)
    return x if residual is None else residual + x


# Natively:
#
#     discriminator_epilogue            filter(phi(u + b)) + residual
#     discriminator_epilogue_backward   (phi' filter^T(g), its sum over each channel)
#     discriminator_epilogue_tangent    filter(phi' (h + h_bias)): its adjoint, and it is the adjoint of that one
#
# phi' comes from u, which the convolution has made and nobody else keeps; y need not be stored. It is constant where it
# is defined, so that no order of derivatives needs anything else.


def _shape(u: Tensor, line: list[float], before: int, after: int) -> tuple[int, ...]:
    room = before + after + 1 - len(line) if line else 0
    return (*u.shape[:2], *(size + room for size in u.shape[2:]))


def _fake(
    u: Tensor, bias: Tensor | None, residual: Tensor | None, line: list[float], before: int, after: int, *_: Any
) -> Tensor:
    return fused.empty_like(u, _shape(u, line, before, after))


def _backward_fake(
    g: Tensor, u: Tensor, bias: Tensor | None, line: list[float], before: int, after: int, slope: float, gain: float,
    clamp: float, reduce: bool,
) -> tuple[Tensor, Tensor]:
    return fused.empty_like(u), fused.empty_sum(u, reduce)


def _tangent_fake(
    h: Tensor, h_bias: Tensor | None, u: Tensor, bias: Tensor | None, line: list[float], before: int, after: int, *_: Any
) -> Tensor:
    return fused.empty_like(u, _shape(u, line, before, after))


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    u, bias, _, *ctx.constants = inputs
    ctx.save_for_backward(u, bias)


def _backward(ctx: Any, g: Tensor) -> tuple:
    u, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gu = gb = None
    if needs[0] or needs[1]:
        gu, gb = fused.call("discriminator_epilogue_backward", g, u, bias, *ctx.constants, needs[1])
    return gu, gb if needs[1] else None, g if needs[2] else None, None, None, None, None, None, None


def _backward_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, u, bias, *ctx.constants, ctx.reduce = inputs
    ctx.save_for_backward(u, bias)


def _backward_backward(ctx: Any, h: Tensor, h_bias: Tensor) -> tuple:
    u, bias = ctx.saved_tensors
    dg = fused.call("discriminator_epilogue_tangent", h, h_bias if ctx.reduce else None, u, bias, *ctx.constants)
    return dg, None, None, None, None, None, None, None, None, None


def _tangent_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, u, bias, *ctx.constants = inputs
    ctx.save_for_backward(u, bias)


def _tangent_backward(ctx: Any, g: Tensor) -> tuple:
    u, bias = ctx.saved_tensors
    reduce = ctx.needs_input_grad[1]
    dh, dh_bias = fused.call("discriminator_epilogue_backward", g, u, bias, *ctx.constants, reduce)
    return dh, dh_bias if reduce else None, None, None, None, None, None, None, None, None


def register() -> None:
    """Tell PyTorch what the loaded library does not."""
    fused.define("discriminator_epilogue", _fake, _backward, _setup)
    fused.define("discriminator_epilogue_backward", _backward_fake, _backward_backward, _backward_setup)
    fused.define("discriminator_epilogue_tangent", _tangent_fake, _tangent_backward, _tangent_setup)
