"""The native operators: fake kernels, derivatives, and calls with the arguments of the public faces.

The derivative of each operator is another of them, so that every order that training needs stays native:

    bias_act            y = phi(x + b)
    bias_act_backward   M(g, gb) = (phi' (g + gb), its sum over each channel); linear and its own adjoint
    bias_act_curvature  phi'' (g + gb) (h + hb) and its sum: what tanh, sigmoid and SiLU need in addition
    resample2d          its adjoint is itself with up and down, and the filter's ends, exchanged

Piecewise linear activations know phi' from y, which the next layer keeps anyway: the sign bit of y is the branch (zero
counts as below), and a clamped y equals the clamp *rounded to its dtype*. The others know it from x + b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "stylegan_dist"
MAX_TAPS = 32
# activation -> (kind of csrc/math.h, slope below zero)
KINDS = {"linear": (0, 1.0), "lrelu": (0, 0.2), "relu": (0, 0.0), "tanh": (1, 1.0), "sigmoid": (2, 1.0), "silu": (3, 1.0)}


_functions: dict[str, type[torch.autograd.Function]] = {}


def define(name: str, fake: Callable, backward: Callable, setup: Callable | None = None) -> None:
    """Tell PyTorch what an operator returns, and its derivative.

    Args:
        name: without the namespace.
        fake, backward, setup: as of torch.library.register_fake and register_autograd.
    """
    operator = getattr(torch.ops.stylegan_dist, name)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup)

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = operator(*arguments)
        if setup is not None:
            setup(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _functions[name] = type(name, (torch.autograd.Function,), members)


def call(name: str, *arguments: Any) -> Any:
    """torch.ops.stylegan_dist.name(*arguments), differentiable.

    By a Function where nothing is traced: that of register_autograd reads the operator's schema again in every call, which
    takes longer than all the rest (docs/ops.md).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not any(map(_wants_gradient, arguments)):
        return getattr(torch.ops.stylegan_dist, name)(*arguments)
    return _functions[name].apply(*arguments)


def _wants_gradient(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.requires_grad


def bias_act(x: Tensor, bias: Tensor | None, activation: str, gain: float, clamp: float | None) -> Tensor:
    """clip(gain * activation(x + bias), -clamp, clamp); all gains are in `gain`, positive."""
    kind, slope = KINDS[activation]
    if bias is not None:
        bias = bias.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return call("bias_act", x, bias, kind, slope, gain, -1.0 if clamp is None else clamp)


def resample2d(x: Tensor, up: int, down: int, padding: tuple[int, int], gain: float, taps: tuple[float, ...]) -> Tensor:
    line = correlated(taps)
    height, width = ((size * up + sum(padding) - len(taps)) // down + 1 for size in x.shape[2:])
    return call("resample2d", x, line, up, down, padding[0], height, width, gain)


def can_resample2d(up: int, down: int, taps: tuple[float, ...]) -> bool:
    """Whether the native operator has such a filter."""
    return max(len(taps), up, down) <= MAX_TAPS


def correlated(taps: tuple[float, ...]) -> tuple[float, ...]:
    """The normalised filter in the order in which it meets the pixels."""
    total = sum(taps)
    return tuple(tap / total for tap in reversed(taps))


# Fake kernels: outputs have the layout of the last input, channels_last or contiguous


def empty_like(x: Tensor, shape: tuple[int, ...] | torch.Size | None = None) -> Tensor:
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape if shape is None else shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def empty_sum(x: Tensor, reduce: bool) -> Tensor:
    return x.new_empty(x.shape[1] if reduce else 0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _bias_act_fake(x: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    return empty_like(x)


def _backward_fake(
    g: Tensor, g_bias: Tensor | None, ref: Tensor | None, bias: Tensor | None, kind: int, slope: float, gain: float,
    clamp: float, reduce: bool,
) -> tuple[Tensor, Tensor]:
    ref = g if ref is None else ref
    return empty_like(ref), empty_sum(ref, reduce)


def _curvature_fake(
    g: Tensor, g_bias: Tensor | None, h: Tensor, h_bias: Tensor | None, x: Tensor, bias: Tensor | None, kind: int,
    gain: float, clamp: float, reduce: bool,
) -> tuple[Tensor, Tensor]:
    return empty_like(x), empty_sum(x, reduce)


def _resample2d_fake(
    x: Tensor, line: list[float], up: int, down: int, before: int, out_height: int, out_width: int, gain: float
) -> Tensor:
    return empty_like(x, (x.shape[0], x.shape[1], out_height, out_width))


# Derivatives


def _bias_act_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, bias, *ctx.constants = inputs
    kind, slope, _, clamp = ctx.constants
    if kind:
        ctx.save_for_backward(x, bias)
    elif slope == 1 and clamp < 0:
        ctx.save_for_backward(None, None)
    else:
        ctx.save_for_backward(output, None)


def _bias_act_backward(ctx: Any, g: Tensor) -> tuple:
    ref, bias = ctx.saved_tensors
    needs_bias = ctx.needs_input_grad[1]
    gx, gb = call("bias_act_backward", g, None, ref, bias, *ctx.constants, needs_bias)
    return gx, gb if needs_bias else None, None, None, None, None


def _backward_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    g, g_bias, ref, bias, *ctx.constants, ctx.reduce = inputs
    ctx.save_for_backward(*((g, g_bias) if ctx.constants[0] else (None, None)), ref, bias)


def _backward_backward(ctx: Any, h: Tensor, h_bias: Tensor) -> tuple:
    g, g_bias, ref, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    kind, _, gain, clamp = ctx.constants
    cotangent = h_bias if ctx.reduce else None
    dg = dg_bias = dx = dbias = None
    if needs[0] or needs[1]:
        dg, dg_bias = call("bias_act_backward", h, cotangent, ref, bias, *ctx.constants, needs[1])
    if kind and (needs[2] or needs[3]):
        dx, dbias = call("bias_act_curvature", g, g_bias, h, cotangent, ref, bias, kind, gain, clamp, needs[3])
    return dg, dg_bias if needs[1] else None, dx, dbias if needs[3] else None, None, None, None, None, None


def _curvature_backward(ctx: Any, *_: Tensor) -> tuple:
    raise NotImplementedError("third derivatives of tanh, sigmoid and SiLU: use the reference path (ops.using)")


def _resample2d_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, *ctx.constants = inputs
    ctx.size = x.shape[2:]


def _resample2d_backward(ctx: Any, g: Tensor) -> tuple:
    line, up, down, before, _, _, gain = ctx.constants
    gx = call("resample2d", g, list(line)[::-1], down, up, len(line) - 1 - before, *ctx.size, gain)
    return gx, None, None, None, None, None, None, None


def register() -> None:
    """Tell PyTorch what the loaded library does not."""
    define("bias_act", _bias_act_fake, _bias_act_backward, _bias_act_setup)
    define("bias_act_backward", _backward_fake, _backward_backward, _backward_setup)
    define("bias_act_curvature", _curvature_fake, _curvature_backward)
    define("resample2d", _resample2d_fake, _resample2d_backward, _resample2d_setup)
