"""Convolutions that are closed under differentiation.

PyTorch differentiates a convolution's backward pass by a formula of its own. In it, the gradient of the weights is a
convolution whose *kernel is a whole feature map*, the slowest shape for a GPU's libraries. A gradient penalty needs it in
every layer. Here every derivative is one of three operations, which the first-order passes of layers use, too:

    C(x, w)    convolution
    T(y, w)    transposed convolution, the adjoint of C(., w)
    W(x, y)    gradient of the weights, the adjoint of C(x, .)

Because <y, C(x, w)> = <x, T(y, w)> = <W(x, y), w>, all derivatives of these trilinear forms are again C, T and W:

    C(x, w):  x <- T(g, w),  w <- W(x, g)
    T(y, w):  y <- C(g, w),  w <- W(g, y)
    W(x, y):  x <- T(y, g),  y <- C(x, g)
"""

from __future__ import annotations

import contextlib
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import native, winograd

AUTO: tuple[str, ...] = ("cuda",)  # device types on which the closed form is always taken (docs/ops.md)

# Whether this CPU convolves in 16 bits at a useful speed. Without AVX-512 oneDNN takes 10 to 50 times as long as in float32.
CPU_HAS_16_BITS = platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() == "AVX512"

Pair = tuple[int, int]
Form = tuple[int, int, int]  # stride, padding, groups


def conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """F.conv2d, with derivatives of every order that are layers' own operations.

    Args:
        x: [N, I, H, W], any floating dtype.
        weight: [O, I / groups, k, k], in the dtype of x.
    Returns: [N, O, (H + 2 padding - k) // stride + 1, likewise W], dtype of x or of autocast, in the memory format that
        PyTorch chooses.
    """
    return _convolve(x, weight, (stride, padding, groups), False)


def conv_transpose2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """F.conv_transpose2d in the same way.

    Args:
        x: [N, I, H, W], any floating dtype.
        weight: [I, O / groups, k, k], in the dtype of x.
    Returns: [N, O, (H - 1) stride - 2 padding + k, likewise W].
    """
    return _convolve(x, weight, (stride, padding, groups), True)


def _convolve(x: Tensor, weight: Tensor, form: Form, transposed: bool) -> Tensor:
    if is_slow(x):
        with without_autocast(x):
            return _convolve(x.float(), weight.float(), form, transposed).to(x.dtype)
    stride, padding, groups = form
    if not _closed(x, weight, stride, groups):
        convolution = F.conv_transpose2d if transposed else F.conv2d
        return convolution(x, weight, stride=stride, padding=padding, groups=groups)
    x, weight = _autocast(x, weight)
    return _apply(x, weight, form, transposed, (0, 0))


def is_slow(x: Tensor) -> bool:
    """Whether x is convolved faster in float32, and rounded to its dtype afterwards. Sums are in float32 either way."""
    return not CPU_HAS_16_BITS and x.dtype in (torch.bfloat16, torch.float16) and x.device.type == "cpu"


def _closed(x: Tensor, weight: Tensor, stride: int, groups: int) -> bool:
    # Dynamo loses second derivatives of a Function, so that compiled code takes PyTorch's convolutions, of the same values.
    # Training compiles only what is differentiated once, where the kernels are the same, too.
    if torch.compiler.is_compiling():
        return False
    selected = native.selected()
    if selected == "reference":
        return False
    return selected in ("closed", "everywhere") or native.device_type(x) in AUTO or winograd.serves(x, weight, stride, groups)


def _has_autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Inside, operators on the device of x compute in the dtypes of their inputs."""
    return torch.autocast(x.device.type, enabled=False) if _has_autocast(x) else contextlib.nullcontext()


def _autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What PyTorch does to the inputs of a convolution under autocast."""
    if not _has_autocast(x) or x.dtype == torch.float64:
        return x, weight
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype)


def _convolution(x: Tensor, weight: Tensor, form: Form, transposed: bool, extra: Pair) -> Tensor:
    """C, or T with `extra` rows and columns at its end that the stride has left out; without derivatives."""
    stride, padding, groups = form
    with without_autocast(x):  # inputs have been cast, and a backward pass keeps to their dtype
        if winograd.serves(x, weight, stride, groups):
            return winograd.convolution(x, weight, padding, transposed)
        return torch.ops.aten.convolution(
            x, weight, None, (stride, stride), (padding, padding), (1, 1), transposed, extra, groups)


def _apply(x: Tensor, weight: Tensor, form: Form, transposed: bool, extra: Pair) -> Tensor:
    """C or T, differentiable."""
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return _Convolution.apply(x, weight, None, None, form, transposed, extra)
    output_gradient: list[Tensor] = []
    token = _OfWeight.apply(weight, (x,), output_gradient, form, transposed)
    return _Convolution.apply(x, (weight,), token, output_gradient, form, transposed, extra)


class _Convolution(torch.autograd.Function):
    """C or T.

    Its weights are an input like x, or a tuple that hides them, next to the `token` of the node that differentiates by them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | tuple[Tensor], token: Tensor | None,
                output_gradient: list[Tensor] | None, form: Form, transposed: bool, extra: Pair) -> Tensor:
        if isinstance(weight, tuple):
            weight = weight[0]
        ctx.save_for_backward(x, weight)
        ctx.constants = output_gradient, form, transposed
        return _convolution(x, weight, form, transposed, extra)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        output_gradient, form, transposed = ctx.constants
        x, weight = ctx.saved_tensors
        gx = gw = token = None
        if ctx.needs_input_grad[0]:
            extra = (0, 0) if transposed else _left_out(x, g, weight, form)
            gx = _apply(g, weight, form, not transposed, extra)
        if output_gradient is not None:
            output_gradient[:] = [g]
            token = g.new_empty(0)
        elif ctx.needs_input_grad[1]:
            gw = _WeightGradient.apply(*((g, x) if transposed else (x, g)), weight, form)
        return gx, gw, token, None, None, None, None


class _OfWeight(torch.autograd.Function):
    """The gradient of a convolution's weights, in a node of its own.

    The autograd engine does not tell a Python node which gradients are wanted, but it skips nodes that lead to none. The
    inner gradients of R1 and of path lengths are of images and styles; the gradient of the weights would be half of the work.
    The value of this node is an empty token. In the backward pass the convolution's node runs first, and stores the gradient
    of the output in `output_gradient`.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: tuple[Tensor], output_gradient: list[Tensor], form: Form,
                transposed: bool) -> Tensor:
        ctx.save_for_backward(*x, weight)  # x is hidden in a tuple, so that it is no input: no gradient flows to it from here
        ctx.constants = output_gradient, form, transposed
        return weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple:
        output_gradient, form, transposed = ctx.constants
        x, weight = ctx.saved_tensors
        g = output_gradient.pop()
        return _WeightGradient.apply(*((g, x) if transposed else (x, g)), weight, form), None, None, None, None


class _WeightGradient(torch.autograd.Function):
    """W. Of `weight` only shape and memory format count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, form: Form) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.constants = form
        stride, padding, groups = form
        with without_autocast(x):
            if winograd.serves(x, weight, stride, groups) and winograd.serves(y, weight, stride, groups):
                return winograd.weight_gradient(x, y, weight, padding)
            return torch.ops.aten.convolution_backward(
                y, x, weight, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), groups,
                (False, True, False))[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        form = ctx.constants
        x, y = ctx.saved_tensors
        gx = gy = None
        if ctx.needs_input_grad[0]:
            gx = _apply(y, g, form, True, _left_out(x, y, g, form))
        if ctx.needs_input_grad[1]:
            gy = _apply(x, g, form, False, (0, 0))
        return gx, gy, None, None


def _left_out(x: Tensor, y: Tensor, weight: Tensor, form: Form) -> Pair:
    """Rows and columns at the end of x that y = C(x, weight) has not seen."""
    stride, padding, _ = form
    height, width = (x.shape[k] - ((y.shape[k] - 1) * stride - 2 * padding + weight.shape[k]) for k in (2, 3))
    return height, width
