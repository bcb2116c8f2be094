"""The native operators against the plain PyTorch ones: values, derivatives, layouts, dtypes, compilation.

Everything here also runs with STYLEGAN_DIST_EMULATE=1, where the CUDA sources are compiled as loops on the CPU.
"""

from __future__ import annotations

import math

import native_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    DTYPES,
    LAYOUTS,
    assert_close,
    equal_for_any_number_of_threads,
    laid_out,
    needs_native_operators,
    numbers,
    passes_on_cuda_sources,
)
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops
from stylegan_dist.ops import native
from stylegan_dist.ops.bias_act import ACTIVATIONS, bias_act_reference
from stylegan_dist.ops.resample import TAPS, resample2d_reference

needs_native_operators()
pytestmark = pytest.mark.usefixtures("native_everywhere")

SKEWED = (1.0, 4.0, 2.0, -1.0, 3.0)
LONG = tuple(float(1 + (7 * k) % 5) for k in range(32))
operators = torch.ops.stylegan_dist


def derivatives(function, x, g, h, hb=None, bias=None):
    """y, dx (db), then what a second derivative gives to g, x (and bias)."""
    arguments, cotangents = ([x], [h]) if bias is None else ([x, bias], [h, hb])
    return native_cases.derivatives(function if bias is not None else lambda x: function(x, None), arguments, g, cotangents)


# ---- values and derivatives, every dtype: the reference in float64 on the same rounded inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("shape", [(3, 16, 5, 7), (2, 3, 4, 4), (37, 19), (2, 3, 5), (2, 1, 1, 9)])
def test_bias_act(dtype, layout, activation, clamp, shape):
    x, g, h = (laid_out(numbers(k, *shape).to(dtype), layout) for k in range(3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias, hb = numbers(3, shape[1]).to(wide), numbers(4, shape[1]).to(wide)
    if dtype in (torch.bfloat16, torch.float16):
        # Nothing may be so near the clamp that its rounding decides.
        y = bias_act_reference(x.double(), bias.double(), activation, 0.7, None)
        near = ((y.abs() - 0.63).abs() < 0.01) if clamp else torch.zeros_like(y, dtype=torch.bool)
        x = laid_out(torch.where(near, -bias.double().reshape(1, -1, *[1] * (x.ndim - 2)) + 0.25, x.double()).to(dtype), layout)
    actual = derivatives(lambda x, b: ops.bias_act(x, b, activation, 0.7, clamp), x, g, h, hb, bias)
    expected = derivatives(lambda x, b: bias_act_reference(x, b, activation, 0.7, clamp),
                           *(t.double() for t in (x, g, h, hb, bias)))
    count = x.numel() // shape[1]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, terms=20 + 4 * count)
    assert actual[0].dtype == x.dtype
    assert actual[2].dtype == wide
    if x.ndim == 4 and layout == "nhwc" and not x.is_contiguous():
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (actual[0], actual[1], actual[3]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize("padding", [(2, 1), (0, 0), (-1, 6), (6, -2)])
@pytest.mark.parametrize("taps", [TAPS, SKEWED, LONG, (2.0,)], ids=len)
def test_resample2d(dtype, layout, up, down, padding, taps):
    padding = (padding[0] + 14, padding[1] + 14) if taps == LONG else padding
    for shape in ((2, 3, 7, 10), (1, 8, 9, 6)):
        x, h = (laid_out(numbers(k, *shape).to(dtype), layout) for k in (0, 2))
        expected = resample2d_reference(x.double(), up, down, padding, 1.7, taps)
        g = laid_out(numbers(1, *expected.shape).to(dtype), layout)
        actual = derivatives(lambda x, _: ops.resample2d(x, up, down, padding, 1.7, taps), x, g, h)
        expected = derivatives(lambda x, _: resample2d_reference(x, up, down, padding, 1.7, taps),
                               *(t.double() for t in (x, g, h)))
        norm = sum(map(abs, taps)) ** 2 / sum(taps) ** 2 * 1.7
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, terms=(2 * len(taps) + 6) * norm * 4)
        if layout == "nhwc":
            assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual)


@settings(max_examples=60)
@given(st.data())
def test_resample2d_any_shape(data):
    n, c, h, w = (data.draw(st.integers(0 if k == 0 else 1, 12)) for k in range(4))
    up, down = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    taps = tuple(data.draw(st.lists(st.sampled_from((1.0, 2.0, 3.0)), min_size=1, max_size=9)))
    padding = tuple(data.draw(st.integers(-9, 12)) for _ in range(2))
    x = laid_out(numbers(0, n, c, h, w), data.draw(st.sampled_from(LAYOUTS)))
    if min(h, w) * up + sum(padding) < len(taps):
        with pytest.raises(ValueError, match="fewer than the"):
            ops.resample2d(x, up, down, padding, 1.3, taps)
        return
    expected = resample2d_reference(x, up, down, padding, 1.3, taps)
    torch.testing.assert_close(ops.resample2d(x, up, down, padding, 1.3, taps), expected)


@settings(max_examples=60)
@given(st.data())
def test_bias_act_any_shape(data):
    shape = [data.draw(st.integers(0 if k == 0 else 1, 40)) for k in range(data.draw(st.integers(2, 4)))]
    x = laid_out(numbers(0, *shape), data.draw(st.sampled_from(LAYOUTS))).requires_grad_(True)
    bias, g = numbers(1, shape[1]).requires_grad_(True), numbers(2, *shape)
    for b in (bias, None):
        y, expected = ops.bias_act(x, b, "lrelu", 0.7, 1.0), bias_act_reference(x, b, "lrelu", 0.7, 1.0)
        torch.testing.assert_close(y, expected)
        leaves = (x,) if b is None else (x, b)
        torch.testing.assert_close(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_large_sums_and_many_threads(layout):
    """More than one part of every reduction; equal bits for any number of threads and on every repetition."""
    x, g = (laid_out(numbers(k, 5, 24, 130, 64).float(), layout) for k in (0, 1))
    x.requires_grad_(True)
    bias = numbers(2, 24).float().requires_grad_(True)
    _, sums = equal_for_any_number_of_threads(lambda: torch.autograd.grad(ops.bias_act(x, bias, "lrelu"), (x, bias), g))
    exact = (g.double() * torch.where(x + bias.reshape(1, -1, 1, 1) > 0, 1, 0.2) * math.sqrt(2)).sum((0, 2, 3))
    assert (sums - exact).abs().max() < 2e-5 * exact.abs().max()


# ---- derivatives of first and second order against differences


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 1.1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck_bias_act(activation, clamp, layout, with_bias):
    x = laid_out(numbers(0, 2, 3, 3, 2), layout).requires_grad_(True)
    arguments = (x, numbers(1, 3).requires_grad_(True)) if with_bias else (x,)

    def function(x, b=None):
        return ops.bias_act(x, b, activation, 0.7, clamp)

    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 3, 1, 2, 2)], ids=len)
def test_gradcheck_bias_act_of_matrices_sequences_and_volumes(activation, shape):
    turn = list(ACTIVATIONS).index(activation) + len(shape)
    layout, clamp = ("nchw", "strided")[turn % 2], (None, 1.1)[turn // 2 % 2]
    arguments = laid_out(numbers(0, *shape), layout).requires_grad_(True), numbers(1, 3).requires_grad_(True)

    def function(x, b):
        return ops.bias_act(x, b, activation, 0.7, clamp)

    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("padding", [(2, 1), (-1, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [TAPS, SKEWED], ids=len)
def test_gradcheck_resample2d(up, down, padding, layout, taps):
    x = laid_out(numbers(0, 1, 2, 5, 4), layout).requires_grad_(True)
    assert gradcheck(lambda x: ops.resample2d(x, up, down, padding, 1.3, taps), (x,))
    assert gradgradcheck(lambda x: ops.resample2d(x, up, down, padding, 1.3, taps), (x,))


def test_third_derivatives():
    x = numbers(0, 2, 3).requires_grad_(True)

    def third():
        y = ops.bias_act(x, None, "lrelu").sum()
        for _ in range(3):
            y, = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return y

    with native.using("reference"):
        expected = third()
    torch.testing.assert_close(third(), expected)


# ---- edges


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clamped_values_have_no_gradient(dtype):
    """256 * sqrt(0.5) = 181.02 is stored as 181, below the clamp: a comparison with the unrounded clamp leaks."""
    x = torch.tensor([[-2e4, -100.0, 100.0, 2e4, 181.0]], dtype=dtype, requires_grad=True)
    y = ops.bias_act(x, None, "lrelu", math.sqrt(0.5), 256.0)
    assert y[0, 3].item() < 256 * math.sqrt(0.5)
    gradient, = torch.autograd.grad(y.sum(), x)
    assert gradient[0, [0, 3]].tolist() == [0, 0]
    assert gradient[0, 1:3].tolist() == pytest.approx([0.2, 1.0], rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_slope_of_zero_and_of_underflow(dtype):
    """Zero has the lower slope as in PyTorch; what underflows to zero keeps the slope of its side."""
    x = torch.tensor([[0.0, -0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 1e-12, -1e-12])
    gradient, = torch.autograd.grad(ops.bias_act(x, bias, "lrelu").sum(), x)
    low, high = 0.2 * math.sqrt(2), math.sqrt(2)
    assert gradient[0].tolist() == pytest.approx([low, low, high, low], rel=1e-3)


def test_conversions_are_pytorch_s():
    """Every bfloat16 and float16 through the identity, and roundings of neighbours."""
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(2, -1)
        out = operators.bias_act(every, None, 1.0, 1.0, -1.0)
        assert torch.equal(out.isnan(), every.isnan())
        assert torch.equal(out.nan_to_num(), every.nan_to_num())
        values = every[every.isfinite()].reshape(1, -1)
        offset = values.float().abs().clamp_min(1e-30).squeeze(0) * 1.5 * torch.finfo(dtype).eps * torch.rand(values.shape[1])
        assert torch.equal(operators.bias_act(values, offset, 1.0, 1.0, -1.0), (values.float() + offset).to(dtype))


def test_empty_and_wrong():
    for shape in ((0, 3), (2, 0), (0, 3, 4, 4), (2, 3, 0, 4)):
        x, bias = torch.zeros(shape, requires_grad=True), torch.ones(shape[1], requires_grad=True)
        gx, gb = torch.autograd.grad(ops.bias_act(x, bias, "lrelu").sum(), (x, bias))
        assert gx.shape == x.shape
        assert gb.tolist() == [0] * shape[1]
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = ops.upsample2d(x)
    assert y.shape == (0, 3, 8, 8)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    with pytest.raises(RuntimeError, match="bias must be"):
        operators.bias_act(torch.zeros(2, 3), torch.zeros(4), 1.0, 1.0, -1.0)
    for path in ("fused", "reference"):
        with native.using(path), pytest.raises(ValueError, match="2x2 pixels"):
            ops.resample2d(torch.zeros(1, 1, 2, 2))


# ---- with the rest of PyTorch


def penalty(x, weight, bias):
    """A gradient penalty through both operators, of an x that wants gradients."""
    y = ops.bias_act(ops.downsample2d(torch.nn.functional.conv2d(x, weight, padding=1)), bias, "lrelu", clamp=2.0)
    gradient, = torch.autograd.grad(ops.bias_act(ops.upsample2d(y), None, "lrelu").square().sum(), x, create_graph=True)
    return gradient.square().sum()


def test_compile_with_inner_gradient(monkeypatch):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace autograd.grad")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    x, weight, bias = (numbers(k, *s).float().requires_grad_(True) for k, s in enumerate([(2, 3, 8, 8), (4, 3, 3, 3), (4,)]))
    expected = penalty(x, weight, bias)
    gradients = torch.autograd.grad(expected, (weight, bias), allow_unused=True)
    torch.compiler.reset()
    actual = torch.compile(penalty, backend="aot_eager", fullgraph=True)(x, weight, bias)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, (weight, bias), allow_unused=True), gradients)


def test_autocast():
    """The operators compute in the dtype in which the convolution before them has left the tensor."""
    x, weight, bias = (numbers(k, *s).float().requires_grad_(True) for k, s in enumerate([(2, 3, 8, 8), (4, 3, 3, 3), (4,)]))
    full = torch.autograd.grad(penalty(x, weight, bias), (weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.bias_act(ops.downsample2d(torch.nn.functional.conv2d(x, weight)), bias, "lrelu")
        assert y.dtype == torch.bfloat16
        value = penalty(x, weight, bias)
    for a, b in zip(torch.autograd.grad(value, (weight, bias)), full, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


# ---- the sources of the GPU


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """This very file, with the CUDA launchers and thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
