"""Native operators as PyTorch sees them: what they return, their derivatives, and calls that cost the host little.

The modules of the operators declare them here. The derivative of each operator is another one, so that every order that
training needs stays native.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMESPACE = "stylegan_dist"


class _Operator(NamedTuple):
    fake: Callable
    backward: Callable | None
    saves: slice | Callable
    materialize: bool


_operators: dict[str, _Operator] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}


def define(
    name: str, fake: Callable, backward: Callable | None = None, saves: slice | Callable = slice(0), materialize: bool = True
) -> None:
    """Declare an operator of the native library, whose arguments are tensors, and constants behind them.

    Args:
        name: without the namespace.
        fake: as of torch.library.register_fake.
        backward: the gradients of the tensors, from `ctx` and the gradients of the results. What is missing at the end is None,
            and what is not wanted is dropped. `ctx.constants` are the constants. None: there is no derivative.
        saves: which of the arguments are `ctx.saved_tensors`; or a function of (ctx, arguments, results) that saves.
        materialize: whether the gradient of a result that nobody has used is zeros; else it is None.
    """
    _operators[name] = _Operator(fake, backward, saves, materialize)


def register() -> None:
    """Tell PyTorch what the library, which has been loaded, does not."""
    for name, (fake, backward, saves, materialize) in _operators.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
        if backward is not None:
            _register_derivative(name, backward, saves, materialize)


def _register_derivative(name: str, backward: Callable, saves: slice | Callable, materialize: bool) -> None:
    operator = getattr(torch.ops.stylegan_dist, name)
    arguments = operator.default._schema.arguments
    tensors = sum("Tensor" in str(argument.type) for argument in arguments)

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.constants = inputs[tensors:]
        ctx.set_materialize_grads(materialize)
        if isinstance(saves, slice):
            ctx.save_for_backward(*inputs[saves])
        else:
            saves(ctx, inputs, output)

    def gradients(ctx: Any, *g: Tensor | None) -> tuple:
        found = backward(ctx, *g)
        wanted = (gradient if needed else None for gradient, needed in zip(found, ctx.needs_input_grad, strict=False))
        return *wanted, *[None] * (len(arguments) - len(found))

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = operator(*inputs)
        setup(ctx, inputs, output)
        return output

    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=setup)
    members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
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


def wide(x: Tensor) -> torch.dtype:
    """The dtype of biases, weights and sums that go with x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def bound(clamp: float | None, gain: float = 1.0) -> float:
    """The operators' argument `clamp`, a bound of what has been multiplied by the gain: negative for none."""
    return -1.0 if clamp is None else clamp * gain


# For fake kernels


def empty(x: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def empty_like(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """In the layout of x, channels_last or contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return empty(x, x.shape if shape is None else shape, last)


def empty_sum(x: Tensor, reduce: bool) -> Tensor:
    """The sums over channels, if they are wanted."""
    return x.new_empty(x.shape[1] if reduce else 0, dtype=wide(x))
