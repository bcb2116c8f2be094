"""Winograd convolutions against direct ones in float64, alone and under the closed convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import numbers
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from stylegan_dist.ops import convolution, native, winograd

if "cpu" not in native.native().devices:
    pytest.skip(f"no native operators: {native.native().reason}", allow_module_level=True)

LAST = torch.channels_last


def images(seed: int, *shape: int) -> Tensor:
    return numbers(seed, *shape).float().contiguous(memory_format=LAST)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """expected: in float64."""
    assert actual.shape == expected.shape
    if expected.numel():
        assert (actual - expected).abs().max() <= 3e-6 * expected.abs().max() + 1e-6


@settings(max_examples=60)
@given(st.data())
def test_any_shape(data):
    n, i, o, h, w = (data.draw(st.integers(*ends)) for ends in ((0, 5), (1, 20), (1, 140), (3, 13), (3, 13)))
    padding, transposed = data.draw(st.integers(0, 2)), data.draw(st.booleans())
    x, weight = images(0, n, i, h, w), numbers(1, *((i, o) if transposed else (o, i)), 3, 3).float()
    if data.draw(st.booleans()):
        weight = weight.contiguous(memory_format=LAST)
    direct = F.conv_transpose2d if transposed else F.conv2d
    expected = direct(x.double(), weight.double(), padding=padding) if n else direct(x, weight, padding=padding)
    y = winograd.convolution(x, weight, padding, transposed)
    assert_close(y, expected)
    assert y.is_contiguous(memory_format=LAST)
    if n and not transposed:
        g = images(2, *y.shape)
        found = winograd.weight_gradient(x, g, weight, padding)
        assert_close(found, torch.nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), padding=padding))
        assert all(found.is_contiguous(memory_format=f) for f in (LAST, torch.contiguous_format)
                   if weight.is_contiguous(memory_format=f))


def test_parts_and_kept_memory(monkeypatch):
    """Several images at a time, one at a time, and a larger problem after a smaller one and before: the same bits, or close."""
    x, weight, g = images(0, 7, 20, 10, 9), images(1, 30, 20, 3, 3), images(2, 7, 30, 10, 9)
    whole = winograd.convolution(x, weight, 1, False), winograd.weight_gradient(x, g, weight, 1)
    winograd.convolution(images(3, 2, 8, 4, 4), images(4, 8, 8, 3, 3), 1, False)
    winograd.convolution(images(3, 9, 40, 14, 14), images(4, 8, 40, 3, 3), 1, False)
    again = winograd.convolution(x, weight, 1, False), winograd.weight_gradient(x, g, weight, 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for chunk in (1, 16 * 25 * 30 * 3):
        monkeypatch.setattr(winograd, "CHUNK", chunk)
        torch.testing.assert_close(winograd.convolution(x, weight, 1, False), whole[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(winograd.weight_gradient(x, g, weight, 1), whole[1], rtol=1e-5, atol=1e-4)


def test_wrong_arguments():
    operators, x = torch.ops.stylegan_dist, images(0, 2, 4, 6, 6)
    for bad in (x.contiguous(), x.double(), x[0]):
        with pytest.raises(RuntimeError, match="Winograd convolutions want"):
            operators.winograd_input(bad, 3, 3, 1, torch.empty(16, 18, 4))
    for out in (torch.empty(16, 17, 4), torch.empty(16, 18, 4, dtype=torch.float64), torch.empty(16, 4, 18).transpose(1, 2)):
        with pytest.raises(RuntimeError, match="tiles are not"):
            operators.winograd_input(x, 3, 3, 1, out)
    with pytest.raises(RuntimeError, match="a product is not"):
        operators.winograd_output([images(0, 2, 4, 3, 3)] * 15 + [images(0, 2, 4, 3, 2)], 6, 6)
    with pytest.raises(RuntimeError, match="16 products"):
        operators.winograd_output([images(0, 2, 4, 3, 3)], 6, 6)


@pytest.mark.parametrize("transposed", [False, True])
def test_all_derivatives_of_a_convolution(transposed, monkeypatch):
    """First and second derivatives are of the same kind, and those of the direct convolution; the reference takes that."""
    c, used = winograd.MIN_CHANNELS, []
    x, weight = images(0, 2, c, 16, 17), images(1, c, c, 3, 3) / c**0.5
    for name in ("convolution", "weight_gradient"):
        plain = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, name=name, plain=plain: used.append(name) or plain(*a))

    def derivatives(x: Tensor, weight: Tensor) -> list[Tensor]:
        x, weight = x.detach().requires_grad_(True), weight.detach().requires_grad_(True)
        function = convolution.conv_transpose2d if transposed else convolution.conv2d
        y = function(x, weight, padding=1)
        g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).contiguous(memory_format=LAST).requires_grad_(True)
        first = torch.autograd.grad(y, (x, weight), g, create_graph=True)
        cotangents = [t.detach().roll(1, 0) / t.detach().abs().max() for t in first]
        return [y, *first, *torch.autograd.grad(first, (g, x, weight), cotangents)]

    with native.using("fused"):
        actual = derivatives(x, weight)
    assert used.count("convolution") == 5
    assert used.count("weight_gradient") == 2
    used.clear()
    with native.using("reference"):
        expected = derivatives(x.double(), weight.double())
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()
    with native.using("reference"):
        convolution.conv2d(x, weight, padding=1)
    assert not used


def layer(path: str, x: Tensor, weight: Tensor, g: Tensor) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(True), weight.detach().requires_grad_(True)
    with native.using(path):
        y = convolution.conv2d(x, weight, padding=1)
        return [y, *torch.autograd.grad(y, (x, weight), g)]


def test_a_backward_pass_under_autocast_keeps_to_float32():
    c = winograd.MIN_CHANNELS
    x, weight, g = images(0, 1, c, 16, 16), images(1, c, c, 3, 3), images(2, 1, c, 16, 16)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    with native.using("fused"):
        y = convolution.conv2d(x, weight, padding=1)
        expected = torch.autograd.grad(y, (x, weight), g, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            actual = torch.autograd.grad(y, (x, weight), g)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_tensors_without_values():
    """Shapes, dtypes and formats of the real ones; and no memory of theirs is kept for these."""
    c = winograd.MIN_CHANNELS
    arguments = images(0, 1, c, 16, 16), images(1, c, c, 3, 3), images(2, 1, c, 16, 16)
    with FakeTensorMode() as mode:
        fake = layer("fused", *map(mode.from_tensor, arguments))
    real = layer("fused", *arguments)
    for a, e in zip(fake, real, strict=True):
        assert isinstance(a, FakeTensor)
        assert (a.shape, a.dtype, a.stride()) == (e.shape, e.dtype, e.stride())
    for a, e in zip(real, layer("closed", *arguments), strict=True):
        assert_close(a, e)


def test_where_it_serves():
    c = winograd.MIN_CHANNELS
    x, weight = images(0, 1, c, 16, 16), images(1, c, c, 3, 3)
    assert winograd.serves(x, weight, 1, 1)
    assert winograd.serves(x[:0], weight, 1, 1)  # the size of the batch does not matter
    assert not winograd.serves(x, weight, 2, 1)
    assert not winograd.serves(x, weight[:, :1], 1, c)
    assert not winograd.serves(x, weight[:, :, :1, :1], 1, 1)
    assert not winograd.serves(x.double(), weight, 1, 1)
    assert not winograd.serves(x.bfloat16(), weight, 1, 1)
    assert not winograd.serves(x.contiguous(), weight, 1, 1)
    assert not winograd.serves(x[:, :, :8].contiguous(memory_format=LAST), weight, 1, 1)
    assert not winograd.serves(x.to("meta"), weight.to("meta"), 1, 1)
