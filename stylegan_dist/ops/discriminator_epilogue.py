"""What follows a convolution of the discriminator: bias, leaky ReLU, clamp, then a filter or the residual path."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stylegan_dist.ops import fused, native
from stylegan_dist.ops.bias_act import LRELU_GAIN, LRELU_SLOPE, bias_act, bias_act_reference
from stylegan_dist.ops.resample import TAPS, correlated, resample2d_reference

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
    if native.serves(x):
        line = correlated(TAPS) if filtered else ()
        wide = None if bias is None else bias.to(fused.wide(x))
        return fused.call("discriminator_epilogue", x, wide, residual, line, *(PADDING if filtered else (0, 0)), LRELU_SLOPE,
                          LRELU_GAIN * gain, fused.bound(clamp, gain))
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


def _filtered(u: Tensor, line: list[float], before: int, after: int) -> Tensor:
    room = before + after + 1 - len(line) if line else 0
    return fused.empty_like(u, (*u.shape[:2], *(size + room for size in u.shape[2:])))


def _fake(u: Tensor, bias: Tensor | None, residual: Tensor | None, *constants: Any) -> Tensor:
    return _filtered(u, *constants[:3])


def _backward(ctx: Any, g: Tensor) -> tuple:
    wants_u, wants_bias, *_ = ctx.needs_input_grad
    gu = gb = None
    if wants_u or wants_bias:
        gu, gb = fused.call("discriminator_epilogue_backward", g, *ctx.saved_tensors, *ctx.constants, wants_bias)
    return gu, gb, g


def _backward_fake(g: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return fused.empty_like(u), fused.empty_sum(u, rest[-1])


def _backward_backward(ctx: Any, h: Tensor, h_bias: Tensor) -> tuple:
    *constants, reduce = ctx.constants
    return fused.call("discriminator_epilogue_tangent", h, h_bias if reduce else None, *ctx.saved_tensors, *constants),


def _tangent_fake(h: Tensor, h_bias: Tensor | None, u: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    return _filtered(u, *constants[:3])


def _tangent_backward(ctx: Any, g: Tensor) -> tuple:
    wants_bias = ctx.needs_input_grad[1]
    return fused.call("discriminator_epilogue_backward", g, *ctx.saved_tensors, *ctx.constants, wants_bias)


fused.define("discriminator_epilogue", _fake, _backward, slice(0, 2))
fused.define("discriminator_epilogue_backward", _backward_fake, _backward_backward, slice(1, 3))
fused.define("discriminator_epilogue_tangent", _tangent_fake, _tangent_backward, slice(2, 4))
