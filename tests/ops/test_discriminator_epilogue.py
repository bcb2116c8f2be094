"""The discriminator's epilogue, native against plain PyTorch, and whole discriminators on both paths."""

from __future__ import annotations

import math

import pytest
import reference
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
from small_networks import stylegan2_discriminator
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.penalties import gradient_penalty
from stylegan_dist.ops import native
from stylegan_dist.ops.discriminator_epilogue import discriminator_epilogue_reference
from stylegan_dist.ops.resample import resample2d_reference

needs_native_operators()
pytestmark = pytest.mark.usefixtures("native_everywhere")

MODES = ("filter", "residual")
SKEWED = [4.0, 2.0, -1.0, 3.0]  # a filter that tells left from right
operators = torch.ops.stylegan_dist


def away_from_the_clamp(x, bias, gain, clamp):
    """x with nothing so near the clamp that its rounding decides."""
    y = discriminator_epilogue_reference(x.double(), bias.double(), gain, None, None, False)
    near = (y.abs() - clamp * gain).abs() < 0.01
    return torch.where(near, 0.25 - bias.reshape(1, -1, 1, 1), x.double()).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 16, 5, 7), (2, 3, 4, 4), (2, 1, 1, 9), (1, 6, 31, 20)])
def test_values_and_derivatives(dtype, layout, clamp, mode, shape):
    """The reference in float64 on the same rounded inputs."""
    bias = numbers(3, shape[1]).to(wide(dtype))
    x = numbers(0, *shape).to(dtype)
    x = laid_out(x if clamp is None else away_from_the_clamp(x, bias, 0.7, clamp), layout)
    arguments = [x, bias] if mode == "filter" else [x, bias, laid_out(numbers(1, *shape).to(dtype), layout)]
    cotangents = [laid_out(numbers(10 + k, *t.shape).to(t.dtype), layout) for k, t in enumerate(arguments)]
    if dtype.itemsize == 2 and mode == "residual":
        cotangents[2] = torch.zeros_like(x)  # it would be added after a rounding

    def both(function):
        def call(x, bias, residual=None):
            return function(x, bias, 0.7, clamp, residual, mode == "filter")
        return call

    shift = mode == "filter"
    g = laid_out(numbers(9, shape[0], shape[1], shape[2] + shift, shape[3] + shift).to(dtype), layout)
    actual = derivatives(both(ops.discriminator_epilogue), arguments, g, cotangents)
    expected = derivatives(both(discriminator_epilogue_reference), [t.double() for t in arguments], g.double(),
                           [t.double() for t in cotangents])
    count = x.numel() // shape[1]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, terms=40 + 4 * count)
    assert actual[0].dtype == dtype
    assert actual[2].dtype == wide(dtype)
    if layout == "nhwc" and not x.is_contiguous():
        images = (actual[0], actual[1], actual[-len(arguments) - 1])
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in images)


@settings(max_examples=60)
@given(st.data())
def test_any_shape(data):
    n, c, h, w = (data.draw(st.integers(low, 20)) for low in (0, 1, 1, 1))
    layout, mode = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(MODES))
    x = laid_out(numbers(0, n, c, h, w), layout)
    arguments = [x, numbers(1, c)]
    if mode == "residual":
        arguments.append(laid_out(numbers(2, n, c, h, w), data.draw(st.sampled_from(LAYOUTS))))
    shift = mode == "filter"
    g, cotangents = numbers(3, n, c, h + shift, w + shift), [numbers(4 + k, *t.shape) for k, t in enumerate(arguments)]

    def call(x, bias, residual=None):
        return ops.discriminator_epilogue(x, bias, 1.3, 1.0, residual, mode == "filter")

    actual = derivatives(call, arguments, g, cotangents)
    with native.using("reference"):
        torch.testing.assert_close(actual, derivatives(call, arguments, g, cotangents))


@settings(max_examples=60)
@given(st.data())
def test_any_padding_and_an_asymmetric_filter(data):
    """The operators' own arguments, of which the network uses one combination, and the mirrored filter of the adjoint."""
    c, h, w = (data.draw(st.integers(1, 9)) for _ in range(3))
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    if min(h, w) + before + after < 4:
        return
    total = sum(SKEWED)
    u, bias = (laid_out(numbers(0, 2, c, h, w), data.draw(st.sampled_from(LAYOUTS))), numbers(1, c))
    y = operators.discriminator_epilogue(u, bias, None, [t / total for t in SKEWED], before, after, 0.2, 1.4, 0.8)
    activated = ops.bias_act(u, bias, "lrelu", 1.4 / math.sqrt(2), 0.8 * math.sqrt(2) / 1.4)
    filtered = resample2d_reference(activated, 1, 1, (before, after), 1.0, tuple(reversed(SKEWED)))
    torch.testing.assert_close(y, filtered)
    g, h, h_bias = numbers(2, *y.shape), numbers(3, *u.shape), numbers(4, c)
    constants = ([t / total for t in SKEWED], before, after, 0.2, 1.4, 0.8)
    gu, gb = operators.discriminator_epilogue_backward(g, u, bias, *constants, True)
    tangent = operators.discriminator_epilogue_tangent(h, h_bias, u, bias, *constants)
    torch.testing.assert_close((tangent * g).sum(), (h * gu).sum() + (h_bias * gb).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clamp", [None, 1.1])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(layout, mode, clamp, with_bias):
    x = laid_out(numbers(0, 2, 3, 3, 2), layout).requires_grad_(True)
    arguments = [x]
    if with_bias:
        arguments.append(numbers(1, 3).requires_grad_(True))
    if mode == "residual":
        arguments.append(laid_out(numbers(2, 2, 3, 3, 2), layout).requires_grad_(True))

    def function(x, *rest):
        rest = list(rest)
        bias = rest.pop(0) if with_bias else None
        return ops.discriminator_epilogue(x, bias, 0.7, clamp, rest[0] if rest else None, mode == "filter")

    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("mode", MODES)
def test_third_derivatives(mode):
    x, residual = numbers(0, 1, 2, 3, 3).requires_grad_(True), numbers(1, 1, 2, 3, 3).requires_grad_(True)

    def third():
        value = ops.discriminator_epilogue(x, None, 0.7, None, None if mode == "filter" else residual, mode == "filter")
        value = value.pow(2).sum()
        for _ in range(3):
            value, = torch.autograd.grad(value.pow(2).sum(), x, create_graph=True)
        return value

    actual = third()
    with native.using("reference"):
        torch.testing.assert_close(actual, third())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slope_is_that_of_bias_act(dtype):
    """Every value near the clamp and near zero: what bias_act would have stored decides, not what it is computed from.

    256 * sqrt(0.5) = 181.02 is stored as 181 in bfloat16.
    """
    edge = torch.tensor([256.0], dtype=dtype).view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    near = (edge + torch.arange(-40, 40, dtype=edge.dtype)).view(dtype) / math.sqrt(2)
    small = torch.arange(0, 20, dtype=edge.dtype).view(dtype)
    u = torch.cat([near, -5 * near, -near, small, -small, near * 100, near * -100]).reshape(1, 1, 1, -1)
    gain = math.sqrt(0.5)
    for bias in (None, torch.tensor([1e-4], dtype=wide(dtype)), torch.tensor([-0.03], dtype=wide(dtype))):
        x = u.detach().requires_grad_(True)
        composed = ops.bias_act(x, bias, "lrelu", gain, 256.0)
        expected, = torch.autograd.grad(composed.sum(), x)
        fused, = torch.autograd.grad(ops.discriminator_epilogue(x, bias, gain, 256.0, torch.zeros_like(u)).sum(), x)
        assert torch.equal(fused, expected)
        assert set(expected.flatten().tolist()) >= {0.0, expected.max().item()}
        assert torch.equal(ops.discriminator_epilogue(x, bias, gain, 256.0, torch.zeros_like(u)), composed)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_equal_bits_for_any_number_of_threads(layout):
    x, g = laid_out(numbers(0, 3, 24, 70, 64).float(), layout), laid_out(numbers(1, 3, 24, 71, 65).float(), layout)
    x.requires_grad_(True)
    bias = numbers(2, 24).float().requires_grad_(True)

    def results():
        y = ops.discriminator_epilogue(x, bias, filtered=True)
        return y, *torch.autograd.grad(y, (x, bias), g)

    equal_for_any_number_of_threads(results)


def test_wrong_arguments():
    u, line = torch.zeros(1, 2, 5, 5), [0.25] * 4
    for arguments in ((u, torch.zeros(3), None, line, 2, 2), (u, None, None, line[:3], 2, 2), (u, None, u, line, 2, 2),
                      (u, None, None, line, 4, 2), (u[:, :, :1], None, None, line, 1, 0), (u[0], None, None, line, 2, 2)):
        with pytest.raises(RuntimeError, match="stylegan_dist"):
            operators.discriminator_epilogue(*arguments, 0.2, 1.0, -1.0)


# ---- whole discriminators, small versions of the published ones


def make(architecture, channels, precision, recompute=0):
    d = stylegan2_discriminator(16, channels, 3, architecture=architecture, channel_base=96, channel_max=8, mapping_layers=1,
                                mbstd_group=2, precision=precision, recompute=recompute)
    return reference.randomize(d, seed=channels)


def gradients(d, dtype):
    """Logits, and the gradients of a main phase and of a gradient penalty."""
    images = reference.normals(1, 4, d.fromrgb.weight.shape[1], 16, 16).to(dtype).requires_grad_(True)
    label = torch.arange(4) % 3
    logits = d(images, label)
    result = {"logits": logits, "images": torch.autograd.grad(logits.sum(), images, retain_graph=True)[0]}
    named = dict(d.named_parameters())
    main = torch.autograd.grad(torch.nn.functional.softplus(logits).sum(), list(named.values()))
    penalty = gradient_penalty(d(images, label), images)
    second = torch.autograd.grad(penalty.sum(), list(named.values()), allow_unused=True)
    result |= {f"main.{name}": g for name, g in zip(named, main, strict=True)} | {"penalty": penalty}
    return result | {f"penalty.{name}": torch.zeros(()) if g is None else g for name, g in zip(named, second, strict=True)}


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clamp", [None, 0.6])
def test_discriminator(architecture, channels, channels_last, clamp):
    d = make(architecture, channels, Precision(channels_last=channels_last, clamp=clamp)).double()
    actual = gradients(d, torch.float64)
    with native.using("reference"):
        expected = gradients(d, torch.float64)
    # Biases meet the penalty only in the minibatch statistic, which divides by small deviations.
    sizes = {name: e.abs().max().item() for name, e in expected.items()}
    penalty = max(size for name, size in sizes.items() if name.startswith("penalty."))
    for name, e in expected.items():
        size = max(sizes[name], 1e-2 * penalty if name.startswith("penalty.") and name.endswith("bias") else 0)
        assert (actual[name] - e).abs().max().item() <= 1e-9 * size, name
    assert all(expected[f"penalty.b{r}.conv0.weight"].any() for r in (16, 8))


@pytest.mark.parametrize(("low", "bound"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)], ids=str)
def test_discriminator_in_low_precision(low, bound):
    """Both paths are as far from float64 as the dtype is."""
    d = make("resnet", 3, Precision(low, channels_last=True, clamp=256.0))
    actual = gradients(d, torch.float32)
    with native.using("reference"):
        expected = gradients(make("resnet", 3, Precision()).double(), torch.float64)
    weights = [f"main.{name}" for name, _ in d.named_parameters() if name.endswith("weight")]
    for name in ("logits", "images", "penalty", *weights):
        a, e = actual[name].double().flatten(), expected[name].flatten()
        assert (a - e).norm() < 2 * bound * e.norm(), name


def test_recomputed_blocks_are_equal_to_the_last_bit():
    plain, again = (gradients(make("resnet", 3, Precision(channels_last=True), r), torch.float32) for r in (0, 8))
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """This very file, with the CUDA launchers and thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
