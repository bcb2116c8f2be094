"""The layer from images to features, native against plain PyTorch. Whole discriminators: test_discriminator_epilogue.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    DTYPES,
    LAYOUTS,
    assert_close,
    derivatives,
    equal_for_any_number_of_threads,
    laid_out,
    needs_native_operators,
    numbers,
    passes_on_cuda_sources,
    wide,
)
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops
from stylegan_dist.ops import native
from stylegan_dist.ops.fromrgb import fromrgb_reference

needs_native_operators()
pytestmark = pytest.mark.usefixtures("native_everywhere")

operators = torch.ops.stylegan_dist


def case(n, k, c, h, w, dtype, layout):
    """Image, weight and bias, and the cotangents of features and of them."""
    shapes = [(n, k, h, w), (c, k, 1, 1), (c,)]
    dtypes = [dtype, wide(dtype), wide(dtype)]

    def one(seed, shape, dtype):
        x = numbers(seed, *shape).to(dtype)
        return laid_out(x, layout) if shape == shapes[0] or shape == (n, c, h, w) else x

    arguments = [one(i, *pair) for i, pair in enumerate(zip(shapes, dtypes, strict=True))]
    cotangents = [one(10 + i, *pair) for i, pair in enumerate(zip(shapes, dtypes, strict=True))]
    return arguments, one(20, (n, c, h, w), dtype), cotangents


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clamp", [None, 1.3])
@pytest.mark.parametrize("shape", [(2, 3, 24, 5, 8), (3, 1, 8, 4, 4), (2, 4, 17, 3, 5), (1, 2, 1, 1, 9), (2, 3, 64, 33, 32)])
def test_values_and_derivatives(dtype, layout, clamp, shape):
    """The reference in float64 on the same rounded inputs; weights are not rounded to the dtype of images."""
    arguments, g, cotangents = case(*shape, dtype, layout)
    if clamp is not None and dtype.itemsize == 2:  # nothing so near the clamp that its rounding decides
        arguments[2] = arguments[2].clamp(-0.5, 0.5)
        y = fromrgb_reference(*(t.double() for t in arguments), None)
        near = ((y.abs() - clamp).abs() < 0.02).any(dim=1, keepdim=True)
        arguments[0] = laid_out(torch.where(near, 0, arguments[0]), layout)

    def call(function):
        return lambda x, weight, bias: function(x, weight, bias, clamp)

    actual = derivatives(call(ops.fromrgb), arguments, g, cotangents)
    expected = derivatives(call(fromrgb_reference), [t.double() for t in arguments], g.double(),
                           [t.double() for t in cotangents])
    pixels = shape[0] * shape[3] * shape[4]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, terms=60 + 4 * pixels + 4 * shape[2])
    assert [t.dtype for t in actual[:4]] == [dtype, dtype, wide(dtype), wide(dtype)]
    if layout == "nhwc" and shape[1] > 1:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (actual[0], actual[1], actual[4]))


@settings(max_examples=60)
@given(st.data())
def test_any_shape(data):
    n, k, c, h, w = (data.draw(st.integers(*ends)) for ends in ((0, 3), (1, 4), (1, 40), (1, 20), (1, 20)))
    arguments, g, cotangents = case(n, k, c, h, w, torch.float64, data.draw(st.sampled_from(LAYOUTS)))
    g = laid_out(g, data.draw(st.sampled_from(LAYOUTS)))

    def call(x, weight, bias):
        return ops.fromrgb(x, weight, bias, 1.0)

    actual = derivatives(call, arguments, g, cotangents)
    with native.using("reference"):
        torch.testing.assert_close(actual, derivatives(call, arguments, g, cotangents))


# (image channels, features, height, width): the last and the second suit wide accesses of a GPU.
SHAPES = [(1, 5, 3, 2), (2, 4, 2, 2), (3, 5, 3, 2), (4, 8, 1, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(layout, shape, with_bias):
    clamp = (None, 1.1)[(LAYOUTS.index(layout) + SHAPES.index(shape) + with_bias) % 2]
    arguments = [t.requires_grad_(True) for t in case(2, *shape, torch.float64, layout)[0]]

    def function(x, weight, bias=None):
        return ops.fromrgb(x, weight, bias, clamp)

    arguments = arguments if with_bias else arguments[:2]
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


def test_third_derivatives():
    """Of image, weights and bias, through a function of all three."""
    leaves = [numbers(k, *shape).requires_grad_(True) for k, shape in enumerate([(1, 2, 3, 3), (4, 2, 1, 1), (4,)])]

    def third():
        value = ops.fromrgb(*leaves).pow(2).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.pow(2 + k).sum() for k, g in enumerate(gradients))
        return gradients

    actual = third()
    with native.using("reference"):
        torch.testing.assert_close(actual, third())


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_format_of_images_of_one_channel(layout):
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x = numbers(0, 2, 1, 4, 4).to(memory_format=memory_format)
    assert ops.fromrgb(x, numbers(1, 8, 1, 1, 1)).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clamped_features_have_no_gradient(dtype):
    """256 * sqrt(0.5) = 181.02 is stored as 181 in bfloat16, which is below it."""
    x = torch.tensor([-2e4, -100.0, 100.0, 2e4], dtype=dtype).reshape(1, 1, 1, 4).requires_grad_(True)
    gradient, = torch.autograd.grad(ops.fromrgb(x, torch.ones(1, 1, 1, 1), None, 256 * math.sqrt(0.5)).sum(), x)
    assert gradient.flatten().tolist() == pytest.approx([0, 0.2 * math.sqrt(2), math.sqrt(2), 0], rel=1e-2)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_equal_bits_for_any_number_of_threads(layout):
    arguments, g, _ = case(3, 3, 24, 70, 64, torch.float32, layout)
    for t in arguments:
        t.requires_grad_(True)

    def results():
        y = ops.fromrgb(*arguments)
        return y, *torch.autograd.grad(y, arguments, g)

    equal_for_any_number_of_threads(results)


def test_more_channels_take_the_reference_and_wrong_arguments_are_refused():
    x, weight = numbers(0, 1, 5, 3, 3), numbers(1, 4, 5, 1, 1)
    assert torch.equal(ops.fromrgb(x, weight), fromrgb_reference(x, weight, None, None))
    image, affine = torch.zeros(1, 3, 2, 2), torch.zeros(4, 4)
    for wrong in ((x.float(), torch.zeros(4, 6)), (image, affine[:, :3]), (image, affine.double()), (image[0], affine)):
        with pytest.raises(RuntimeError, match="fromrgb got"):
            operators.fromrgb(*wrong, False, 0.2, 1.0, -1.0)
    with pytest.raises(RuntimeError, match="fromrgb got"):
        operators.fromrgb_backward(torch.zeros(1, 4, 2, 3), image, affine, affine, image, False, 0.2, 1.0, -1.0)
    with pytest.raises(RuntimeError, match="fromrgb got"):
        operators.fromrgb_tangent(image, affine, affine, None, None, None, False, 0.2, 1.0, -1.0)


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """This very file, with the CUDA launchers and thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
