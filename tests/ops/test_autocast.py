"""Operators under autocast: what the plain reference gives there, in the dtypes that are documented, in every order."""

from __future__ import annotations

import pytest
import torch
from native_cases import derivatives, laid_out, needs_native_operators, numbers
from torch import Tensor

from stylegan_dist import ops, randomness
from stylegan_dist.ops import native
from stylegan_dist.ops.convolution import conv2d, conv_transpose2d

needs_native_operators()

LOW, FULL = torch.bfloat16, torch.float32


def noise(n: int) -> ops.LayerNoise:
    return ops.LayerNoise(randomness.noise_address(3, "noise", torch.arange(n)), 5)


def synthesis(up: int):
    """A layer of the generator: (z, rgb)."""
    def layer(x, weight, style, bias, strength, next_style, rgb_weight):
        x, d = ops.modulated_conv2d(x, weight, style, up)
        return ops.generator_epilogue(x, ops.Epilogue(d, bias, noise(len(x)), strength, up == 2), next_style, rgb_weight)
    return layer


X, WEIGHT = (2, 4, 6, 5), (8, 4, 3, 3)
LAYER = (X, WEIGHT, (2, 4), (8,), (1,), (2, 8), (2, 3, 8))
OPERATORS = {  # name: function, shapes of its arguments, dtypes of its results
    "conv": (lambda x, w: conv2d(x, w, padding=1), (X, WEIGHT), [LOW]),
    "conv_stride": (lambda x, w: conv2d(x, w, stride=2), (X, WEIGHT), [LOW]),
    "conv_transpose": (lambda x, w: conv_transpose2d(x, w, 2), (X, (4, 8, 3, 3)), [LOW]),
    "modulated": (ops.modulated_conv2d, (X, WEIGHT, (2, 4)), [LOW, FULL]),
    "modulated_up": (lambda x, w, s: ops.modulated_conv2d(x, w, s, 2), (X, WEIGHT, (2, 4)), [LOW, FULL]),
    "synthesis": (synthesis(1), LAYER, [LOW, FULL]),
    "synthesis_up": (synthesis(2), LAYER, [LOW, FULL]),
    "fromrgb": (lambda x, w, b: ops.fromrgb(x, w, b), ((2, 3, 6, 5), (8, 3, 1, 1), (8,)), [FULL]),
    "d_filtered": (lambda x, w, b: ops.discriminator_epilogue(conv2d(x, w, padding=1), b, filtered=True),
                   (X, WEIGHT, (8,)), [LOW]),
    "d_residual": (lambda x, w, b, skip: ops.discriminator_epilogue(conv2d(x, w, padding=1), b, 0.7, residual=skip.to(LOW)),
                   (X, WEIGHT, (8,), (2, 8, 6, 5)), [LOW]),
    "up": (ops.upsample2d, (X,), [FULL]),
    "down": (ops.downsample2d, (X,), [FULL]),
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("path", ["everywhere", "closed"])
@pytest.mark.parametrize("name", OPERATORS)
def test_equals_the_reference(name, path, layout):
    """All passes under autocast, arguments in float32: gradients are, too."""
    function, shapes, dtypes = OPERATORS[name]
    arguments = [laid_out(numbers(k, *shape).float(), layout) / (6 if shape[-2:] == (3, 3) else 1)
                 for k, shape in enumerate(shapes)]
    for k, shape in enumerate(shapes):
        if shape == (8,):  # biases that leave nothing near zero, where a rounding decides on the slope
            arguments[k] = arguments[k] + 5 * (-1) ** torch.arange(*shape)
    with native.using("reference"), torch.no_grad():
        results = function(*arguments)
    gs = [numbers(20 + k, *y.shape).to(dtype)
          for k, (y, dtype) in enumerate(zip(results if isinstance(results, tuple) else (results,), dtypes, strict=True))]
    cotangents = [numbers(30 + k, *shape).float() for k, shape in enumerate(shapes)]

    def passes(path: str) -> list[Tensor]:
        with native.using(path), torch.autocast("cpu", LOW):
            return derivatives(function, arguments, gs, cotangents)

    actual, expected = passes(path), passes("reference")
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    assert [t.dtype for t in actual] == [*dtypes, *[FULL] * len(shapes), *dtypes, *[FULL] * len(shapes)]
    with native.using("reference"):
        exact = derivatives(function, *([t.double() for t in part] for part in (arguments, gs, cotangents)))
    for a, e, x in zip(actual, expected, exact, strict=True):
        # Both have rounded to bfloat16 at some places.
        assert (a.double() - e.double()).norm() <= 0.02 * x.norm() + 1e-6
        assert (a.double() - x).norm() <= 0.02 * x.norm() + 1e-6


@pytest.mark.parametrize("path", ["everywhere", "reference"])
def test_demodulation_is_in_full_precision(path):
    """Of a style that a linear layer has made in bfloat16, too."""
    x, weight, style = numbers(0, 2, 64, 4, 4).float(), numbers(1, 8, 64, 3, 3).float(), numbers(2, 2, 64).to(LOW)
    with native.using(path):
        _, expected = ops.modulated_conv2d(x, weight, style.float())
        with torch.autocast("cpu", LOW):
            for given in (style, style.float()):
                assert torch.equal(ops.modulated_conv2d(x, weight, given)[1], expected)


@pytest.mark.parametrize("path", ["everywhere", "closed", "reference"])
def test_a_sum_of_images_is_filtered_in_full_precision(path):
    images = numbers(0, 2, 3, 8, 8).float()
    with native.using(path):
        expected = ops.upsample2d(images)
        with torch.autocast("cpu", LOW):
            assert torch.equal(ops.upsample2d(images), expected)
