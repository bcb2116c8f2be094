"""PyTorch's own checks of every operator that is registered: schema, derivatives, fake kernels, tracing with dynamic sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native_cases import DTYPES, LAYOUTS, laid_out, needs_native_operators, numbers, wide
from torch import Tensor

from stylegan_dist import randomness

needs_native_operators()

LINE = [0.1, 0.3, 0.4, 0.2]
TILED = (2, 4, 6, 5)  # of a Winograd convolution
Make = Callable[..., Tensor]


def bias_act(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0), c(1, 3), 0.2, 1.4, 0.8), (x(0), None, 1.0, 1.4, -1.0)]


def bias_act_backward(x: Make, c: Make, last: bool) -> list[tuple]:
    # What decides on the slope alone has no derivative, here and below.
    return [(x(0), c(1, 3), x(2).detach(), 0.2, 1.4, 0.8, True), (x(0), None, None, 1.0, 1.4, -1.0, False)]


def resample2d(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0), LINE, up, down, 1, 4, 3, 0.5) for up, down in ((1, 1), (2, 1), (1, 2))]


FILTERED, ADDED = (LINE, 2, 2, 0.2, 1.4, 0.8), ([], 0, 0, 0.2, 1.4, 0.8)


def discriminator_epilogue(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0), c(1, 3), None, *FILTERED), (x(0), c(1, 3), x(2), *ADDED)]


def discriminator_epilogue_backward(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0, 2, 3, 6, 5), x(1).detach(), c(2, 3).detach(), *FILTERED, True),
            (x(0), x(1).detach(), None, *ADDED, False)]


def discriminator_epilogue_tangent(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0), c(1, 3), x(2).detach(), c(3, 3).detach(), *FILTERED), (x(0), c(1, 3), x(2).detach(), None, *ADDED)]


def fromrgb(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0, 2, k, 5, 4), c(1, 5, k + 1), last, 0.2, 1.4, 0.8) for k in (1, 3)]


def fromrgb_backward(x: Make, c: Make, last: bool) -> list[tuple]:
    given = x(0, 2, 5, 5, 4), x(1).detach(), c(2, 5, 4).detach()
    constants = last, 0.2, 1.4, 0.8
    return [(*given, c(3, 5, 4), x(4), *constants), (*given, None, x(4), *constants), (*given, c(3, 5, 4), None, *constants)]


def fromrgb_tangent(x: Make, c: Make, last: bool) -> list[tuple]:
    given, constants = (x(0).detach(), c(1, 5, 4).detach()), (last, 0.2, 1.4, 0.8)
    return [(*given, c(2, 5, 4), x(3), c(4, 5, 4), x(5), *constants), (*given, c(2, 5, 4), x(3), None, None, *constants)]


def of_generator(x: Make, c: Make) -> list[tuple]:
    """(features, table, gradients of the results, constants): noise that is drawn, a map with a filter, neither."""
    address, z, rgb = randomness.noise_address(0, "a", torch.arange(2)), (2, 3, 5, 4), (2, 2, 5, 4)
    return [(x(0), c(1, 2, 6, 3), x(2, *z), c(3, *rgb), (address, 3, [], 0.2, 1.4, 0.8)),
            (x(0, 2, 3, 6, 5), c(1, 2, 6, 3), x(2, *z), c(3, *rgb), (c(4, 1, 1, 5, 4).detach(), 3, LINE, 0.2, 1.4, -1.0)),
            (x(0), c(1, 2, 6, 3), None, c(3, *rgb), (None, 0, [], 0.2, 1.4, -1.0))]


def generator_epilogue(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(t, table, *constants, gz is not None) for t, table, gz, _, constants in of_generator(x, c)]


def generator_epilogue_backward(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(gz, g, t, table, *constants) for t, table, gz, g, constants in of_generator(x, c)]


def generator_epilogue_double_backward(x: Make, c: Make, last: bool) -> list[tuple]:
    return [detached(x(8, *t.shape), c(9, *table.shape), gz, g, t, table, *constants)
            for t, table, gz, g, constants in of_generator(x, c)]


def filtered_lrelu(x: Make, c: Make, last: bool) -> list[tuple]:
    line, plane = c(4, 5).detach(), c(5, 4, 4).detach()
    return [(x(0), c(1, 3), line, plane, 2, 2, 3, 2, 0.2, 1.4, 0.8, True),
            (x(0), None, None, line, 1, 1, 1, 0, 0.2, 1.4, -1.0, True),
            detached(x(0), None, None, None, 2, 1, 0, 0, 0.2, 1.4, -1.0, False)]


def filtered_lrelu_linear(x: Make, c: Make, last: bool) -> list[tuple]:
    line, plane = c(4, 5).detach(), c(5, 4, 4).detach()
    mask = torch.arange(2 * 3 * 10 * 2).remainder(200).byte().reshape(2, 3, 10, 2)
    return [(x(0), c(1, 3), mask, line, plane, 2, 2, 3, 0, 10, 8, 4, 3, True, 0.2, 1.4, True),
            (x(0), None, mask, line, None, 2, 1, 3, 1, 10, 8, 11, 7, False, 0.2, 1.4, False)]


def layer_noise(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(randomness.noise_address(0, "a", torch.arange(2)), 1, 3, 5)]


def winograd_input(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0, *TILED).detach(), 3, 3, 1, torch.zeros(16, 2 * 9, 4))]


def winograd_gradient(x: Make, c: Make, last: bool) -> list[tuple]:
    return [(x(0, *TILED).detach(), 3, 3, torch.zeros(16, 2 * 9, 4))]


def winograd_output(x: Make, c: Make, last: bool) -> list[tuple]:
    return [([x(k, 2, 4, 3, 3).detach() for k in range(16)], 6, 5)]


def detached(*arguments: Any) -> tuple:
    """Of an operator that has no derivative of its own."""
    return tuple(t.detach() if isinstance(t, Tensor) else t for t in arguments)


OPERATORS = {function.__name__: function for function in (
    bias_act, bias_act_backward, resample2d, discriminator_epilogue, discriminator_epilogue_backward,
    discriminator_epilogue_tangent, fromrgb, fromrgb_backward, fromrgb_tangent, generator_epilogue, generator_epilogue_backward,
    generator_epilogue_double_backward, filtered_lrelu, filtered_lrelu_linear, layer_noise, winograd_input, winograd_gradient,
    winograd_output)}
# The traced passes are nearly all of the time: they are checked where a dtype meets this layout, the rest everywhere.
TRACED = {torch.float64: "nchw", torch.float32: "nhwc", torch.bfloat16: "strided", torch.float16: "nhwc"}


def cases() -> Iterator:
    """(name, dtype, layout); `full` but for the quick ones."""
    for name, dtype, layout in itertools.product(OPERATORS, DTYPES, LAYOUTS):
        if not name.startswith(("winograd", "layer_noise")) or (dtype, layout) == (torch.float32, "nhwc"):
            quick = (dtype, layout) == (torch.float32, "nchw")
            yield pytest.param(name, dtype, layout, marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize(("name", "dtype", "layout"), list(cases()), ids=str)
def test_opcheck(name, dtype, layout):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if TRACED[dtype] == layout:
        checks.append("test_aot_dispatch_dynamic")

    def features(seed: int, *shape: int) -> Tensor:
        return laid_out(numbers(seed, *(shape or (2, 3, 5, 4))).to(dtype), layout).requires_grad_(True)

    def channels(seed: int, *shape: int) -> Tensor:
        return numbers(seed, *shape).to(wide(dtype)).requires_grad_(True)

    for arguments in OPERATORS[name](features, channels, layout == "nhwc"):
        torch.library.opcheck(getattr(torch.ops.stylegan_dist, name).default, arguments, test_utils=checks)


def test_every_operator_is_here():
    registered = {name.removeprefix("stylegan_dist::") for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("stylegan_dist::")}
    assert registered == set(OPERATORS)
