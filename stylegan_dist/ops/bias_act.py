"""Bias, activation, gain and clamp: the element-wise tail of almost every layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from stylegan_dist.ops import fused, native

LRELU_SLOPE = 0.2

# name -> (function, gain that keeps the variance of a unit normal input roughly at one, or 1 where saturation is meant)
ACTIVATIONS = {
    "linear": (lambda x: x, 1.0),
    "lrelu": (lambda x: F.leaky_relu(x, LRELU_SLOPE), math.sqrt(2.0)),
    "relu": (F.relu, math.sqrt(2.0)),
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "silu": (F.silu, math.sqrt(2.0)),
}


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "linear",
    gain: float = 1.0,
    clamp: float | None = None,
) -> torch.Tensor:
    """clamp(gain * act_gain * act(x + bias), -clamp * gain, clamp * gain).

    Args:
        x: [N, C, ...] in any floating dtype.
        bias: [C]; None for no bias.
        activation: a name of ACTIVATIONS; "lrelu" has slope 0.2 and its own gain sqrt(2) (Karras et al. 2020, appendix B).
        gain: further factor on the output; it scales the clamp as well.
        clamp: bound of the output before `gain`; None for no bound.
    Returns: the shape and dtype of x.
    """
    # On a CPU: worth it if there are several steps to fuse that vectorise, and more pixels than the call costs.
    faster_on_cpu = x.ndim > 2 and (activation in ("lrelu", "relu") or (activation == "linear" and clamp is not None))
    if native.serves(x, faster_on_cpu) and x.ndim >= 2 and gain > 0 and (clamp is None or clamp >= 0):
        return fused.bias_act(x, bias, activation, ACTIVATIONS[activation][1] * gain, None if clamp is None else clamp * gain)
    return bias_act_reference(x, bias, activation, gain, clamp)


def bias_act_reference(
    x: torch.Tensor, bias: torch.Tensor | None, activation: str, gain: float, clamp: float | None
) -> torch.Tensor:
    """The same in plain PyTorch; the bias is cast to the dtype of x."""
    function, act_gain = ACTIVATIONS[activation]
    if bias is not None:
        x = x + bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    x = function(x)
    if act_gain * gain != 1:
        x = x * (act_gain * gain)
    if clamp is not None:
        x = x.clamp(-clamp * gain, clamp * gain)
    return x
