"""Bias, activation, gain and clamp: the element-wise tail of almost every layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LRELU_SLOPE = 0.2

# name -> (function, gain that keeps the variance of a unit normal input roughly at one)
ACTIVATIONS = {
    "linear": (lambda x: x, 1.0),
    "lrelu": (lambda x: F.leaky_relu(x, LRELU_SLOPE), math.sqrt(2.0)),
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
        bias: [C], cast to the dtype of x; None for no bias.
        activation: "linear" or "lrelu" (slope 0.2, own gain sqrt(2); Karras et al. 2020, appendix B).
        gain: further factor on the output; it scales the clamp as well.
        clamp: bound of the output before `gain`; None for no bound.
    Returns: the shape and dtype of x.
    """
    function, act_gain = ACTIVATIONS[activation]
    if bias is not None:
        x = x + bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    x = function(x)
    if act_gain * gain != 1:
        x = x * (act_gain * gain)
    if clamp is not None:
        x = x.clamp(-clamp * gain, clamp * gain)
    return x
