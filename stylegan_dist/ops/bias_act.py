"""Bias, activation, gain and clamp: the element-wise tail of almost every layer."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import fused, native

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2.0)  # keeps the variance of a unit normal input roughly at one

ACTIVATIONS = {  # name -> slope below zero, gain
    "linear": (1.0, 1.0), "lrelu": (LRELU_SLOPE, LRELU_GAIN), "lrelu_unscaled": (LRELU_SLOPE, 1.0),
}


def bias_act(
    x: Tensor, bias: Tensor | None = None, activation: str = "linear", gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """clamp(gain * act_gain * act(x + bias), -clamp * gain, clamp * gain).

    Args:
        x: [N, C, ...] in any floating dtype.
        bias: [C]; None for no bias.
        activation: a name of ACTIVATIONS; "lrelu" has slope 0.2 and its own gain sqrt(2) (Karras et al. 2020, appendix B);
            "lrelu_unscaled" has none.
        gain: further factor on the output, above zero; it scales the clamp as well.
        clamp: bound of the output before `gain`, at least zero; None for no bound.
    Returns: the shape and dtype of x.
    """
    # On a CPU: worth it if there are several steps to fuse, and more pixels than the call costs.
    if native.serves(x, faster_on_cpu=x.ndim > 2 and (activation != "linear" or clamp is not None)):
        slope, act_gain = ACTIVATIONS[activation]
        wide = None if bias is None else bias.to(fused.wide(x))
        return fused.call("bias_act", x, wide, slope, act_gain * gain, fused.bound(clamp, gain))
    return bias_act_reference(x, bias, activation, gain, clamp)


def bias_act_reference(x: Tensor, bias: Tensor | None, activation: str, gain: float, clamp: float | None) -> Tensor:
    """The same in plain PyTorch; the bias is cast to the dtype of x."""
    slope, act_gain = ACTIVATIONS[activation]
    if bias is not None:
        x = x + bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    if slope != 1:
        x = F.leaky_relu(x, slope)
    if act_gain * gain != 1:
        x = x * (act_gain * gain)
    if clamp is not None:
        x = x.clamp(-clamp * gain, clamp * gain)
    return x


# Natively:
#
#     bias_act            y = phi(x + b)
#     bias_act_backward   M(g, gb) = (phi' (g + gb), its sum over each channel); linear and its own adjoint
#
# phi' is known from y, which the next layer keeps anyway: the sign bit of y is the branch (zero counts as below), and a clamped
# y equals the clamp *rounded to its dtype*.


def _fake(x: Tensor, *_: Any) -> Tensor:
    return fused.empty_like(x)


def _save(ctx: Any, inputs: tuple, y: Tensor) -> None:
    _, _, slope, _, clamp = inputs
    ctx.save_for_backward(None if slope == 1 and clamp < 0 else y)


def _backward(ctx: Any, g: Tensor) -> tuple:
    return fused.call("bias_act_backward", g, None, *ctx.saved_tensors, *ctx.constants, ctx.needs_input_grad[1])


def _backward_fake(g: Tensor, g_bias: Tensor | None, y: Tensor | None, *constants: Any) -> tuple[Tensor, Tensor]:
    y = g if y is None else y
    return fused.empty_like(y), fused.empty_sum(y, constants[-1])


def _backward_backward(ctx: Any, h: Tensor, h_bias: Tensor) -> tuple:
    *constants, reduce = ctx.constants
    wants_g, wants_bias, _, *_ = ctx.needs_input_grad
    if not (wants_g or wants_bias):
        return ()
    cotangent = h_bias if reduce else None
    return fused.call("bias_act_backward", h, cotangent, *ctx.saved_tensors, *constants, wants_bias)


fused.define("bias_act", _fake, _backward, _save)
fused.define("bias_act_backward", _backward_fake, _backward_backward, slice(2, 3))
