"""Closed convolutions against PyTorch's own: values, derivatives of every order, and what a penalty really computes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import LAYOUTS, laid_out, numbers
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan_dist.objective.penalties import gradient_penalty, path_lengths
from stylegan_dist.ops import convolution, native, resample
from stylegan_dist.ops.convolution import conv2d, conv_transpose2d
from stylegan_dist.ops.resample import conv2d_resample, conv2d_up

aten = torch.ops.aten
CASES = list(itertools.product((1, 3), (1, 2), (0, 1), (False, True)))


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    monkeypatch.setattr(convolution, "AUTO", ("cpu", "cuda"))



def both(k: int, s: int, p: int, transposed: bool):
    """The closed operation and PyTorch's, of x [N, 2, H, W] and weights [3, 2, k, k] or [2, 3, k, k]; the weights' shape."""
    if transposed:
        return (lambda x, w: conv_transpose2d(x, w, s, p),
                lambda x, w: F.conv_transpose2d(x, w, stride=s, padding=p), (2, 3, k, k))
    return lambda x, w: conv2d(x, w, s, p), lambda x, w: F.conv2d(x, w, stride=s, padding=p), (3, 2, k, k)


@pytest.mark.parametrize(("k", "s", "p", "transposed"), CASES)
@pytest.mark.parametrize(("size", "layout"), [((5, 4), "nhwc"), ((4, 5), "nchw"), ((3, 4), "strided")])
def test_gradcheck(k, s, p, transposed, size, layout):
    function, _, shape = both(k, s, p, transposed)
    x, w = (laid_out(t, layout).requires_grad_(True) for t in (numbers(0, 2, 2, *size), numbers(1, *shape)))
    assert gradcheck(function, (x, w))
    assert gradgradcheck(function, (x, w))
    assert gradcheck(lambda x: function(x, w.detach()), (x,))
    assert gradcheck(lambda w: function(x.detach(), w), (w,))


def derivatives(function, x, w, g, orders=3):
    """y, and derivatives of first to third order by x and w, each of a function that bends the one before."""
    results = [function(x, w)]
    scalar = (results[0] * g).sum() + results[0].pow(2).sum()
    for _ in range(orders):
        first = torch.autograd.grad(scalar, (x, w), create_graph=True)
        results += first
        scalar = sum(f.pow(2).sum() for f in first) * 1e-2
    return results


@settings(max_examples=60)
@given(st.data())
def test_equals_pytorch_to_third_order(data):
    k, s, p, transposed = data.draw(st.sampled_from(CASES))
    n, h, w = data.draw(st.integers(0, 3)), data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9))
    function, expected, shape = both(k, s, p, transposed)
    x, weight = numbers(0, n, 2, h, w), numbers(1, *shape)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans()):
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    g = numbers(2, *expected(x, weight).shape)
    orders = 3 if n else 1  # PyTorch itself fails at second derivatives of an empty batch
    for a, e in zip(derivatives(function, x, weight, g, orders), derivatives(expected, x, weight, g, orders), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9 * max(1.0, e.abs().max().item() if e.numel() else 0))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups(transposed, stride, layout):
    shape = (4, 1, 3, 3) if transposed else (2, 2, 3, 3)
    x, w = (laid_out(t, layout).requires_grad_(True) for t in (numbers(0, 2, 4, 4, 3), numbers(1, *shape)))
    function, expected = ((conv_transpose2d, F.conv_transpose2d) if transposed else (conv2d, F.conv2d))
    torch.testing.assert_close(function(x, w, stride, 1, groups=2), expected(x, w, stride=stride, padding=1, groups=2))
    assert gradcheck(lambda x, w: function(x, w, stride, 1, groups=2), (x, w))
    assert gradgradcheck(lambda x, w: function(x, w, stride, 1, groups=2), (x, w))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("k", "s", "p", "transposed"), CASES)
def test_layouts_are_those_of_pytorch(layout, k, s, p, transposed):
    function, expected, shape = both(k, s, p, transposed)
    x = numbers(0, 2, 2, 6, 5).float().contiguous(memory_format=layout).requires_grad_(True)
    w = numbers(1, *shape).float().contiguous(memory_format=layout).requires_grad_(True)
    g = torch.ones_like(expected(x, w))
    actual, wanted = ([y, *torch.autograd.grad(y, (x, w), g)] for y in (function(x, w), expected(x, w)))
    for a, e in zip(actual, wanted, strict=True):
        assert a.stride() == e.stride()


class Seen(TorchDispatchMode):
    """(operator, shape of the kernel, kinds of gradients) of all convolutions inside."""

    def __init__(self):
        super().__init__()
        self.convolutions: list[tuple] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function == aten.convolution.default:
            self.convolutions.append(("forward", tuple(arguments[1].shape), None))
        elif function == aten.convolution_backward.default:
            self.convolutions.append(("backward", tuple(arguments[2].shape), tuple(arguments[-1])))
        return function(*arguments, **(options or {}))

    def kernels(self) -> set[int]:
        return {max(shape[2:]) for _, shape, _ in self.convolutions}


def test_only_what_is_wanted_is_computed():
    x, w = numbers(0, 2, 2, 6, 6).requires_grad_(True), numbers(1, 3, 2, 3, 3).requires_grad_(True)
    for inputs, count in (((x,), 1), ((x, w), 2)):
        y = conv2d(x, w, 1, 1).sum()
        for create in (True, False):
            with Seen() as seen:
                torch.autograd.grad(y, inputs, create_graph=create, retain_graph=create)
            assert len(seen.convolutions) == count, seen.convolutions
    for a, b in ((x.detach(), w), (x, w.detach())):
        with Seen() as seen:
            conv2d(a, b, 1, 1).sum().backward()
        assert len(seen.convolutions) == 2
    with Seen() as seen, torch.no_grad():
        assert conv2d(x, w, 1, 1).grad_fn is None
    assert len(seen.convolutions) == 1


def penalty_gradients(network: str) -> list[torch.Tensor]:
    """Gradients of R1 by D's parameters, or of path lengths by G's, of networks of 16 pixels."""
    torch.manual_seed(1)
    if network == "d":
        d = stylegan2_discriminator(16, 3, channel_base=128, channel_max=8, mbstd_group=2).double()
        [torch.nn.init.normal_(p) for p in d.parameters()]
        images = numbers(0, 4, 3, 16, 16).requires_grad_(True)
        loss, parameters = gradient_penalty(d(images), images).sum(), list(d.parameters())
    else:
        g = stylegan2_generator(16, 3, channel_base=128, channel_max=8, z_dim=8, w_dim=8, mapping_layers=1).double()
        [torch.nn.init.normal_(p) for p in g.parameters()]
        ws = g.mapping(numbers(0, 4, 8), None)[:, None].expand(-1, g.num_ws, -1)
        noise = [numbers(i, 4, 1, *shape) for i, shape in enumerate(g.synthesis.noise_shapes)]
        images = g.synthesis(ws, noise)
        loss = path_lengths(images, ws, numbers(9, *images.shape)).sum()
        parameters = list(g.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if f is None else f for f, p in zip(found, parameters, strict=True)]


@pytest.mark.parametrize("path", ["auto", "closed"])
@pytest.mark.parametrize("network", ["d", "g"])
def test_no_penalty_convolves_with_feature_maps(network, path):
    """The point of it all; and the gradients are those of the reference."""
    with native.using(path), Seen() as seen:
        actual = penalty_gradients(network)
    assert seen.kernels() <= {1, 3, len(resample.TAPS)}
    assert all(shape[1] == 1 for _, shape, _ in seen.convolutions if shape[2] == len(resample.TAPS))
    with native.using("reference"), Seen() as reference:
        expected = penalty_gradients(network)
    assert max(reference.kernels()) > 4, "PyTorch no longer does what this module avoids: it may be given up"
    scale = max(e.abs().max().item() for e in expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12 * scale)
    computed = [sum(1 if wants is None else sum(wants) for _, _, wants in s.convolutions) for s in (seen, reference)]
    assert computed[0] <= computed[1]


def test_a_convolution_used_twice_and_differentiated_twice():
    """Weights that two convolutions share, a graph that is kept: nothing is left over between the passes."""
    x, w = numbers(0, 2, 2, 5, 5).requires_grad_(True), numbers(1, 2, 2, 3, 3).requires_grad_(True)

    def results():
        y = conv2d(conv2d(x, w, 1, 1).tanh(), w, 1, 1).pow(3).sum()
        return [*torch.autograd.grad(y, (x,), retain_graph=True), *torch.autograd.grad(y, (w,), retain_graph=True),
                *torch.autograd.grad(y, (x, w), create_graph=True)]

    actual = results()
    with native.using("reference"):
        expected = results()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual[-1].square().sum(), (x, w)),
                               torch.autograd.grad(expected[-1].square().sum(), (x, w)))


def test_with_recomputation():
    from torch.utils.checkpoint import checkpoint

    x, w = numbers(0, 2, 2, 5, 5).requires_grad_(True), numbers(1, 2, 2, 3, 3).requires_grad_(True)

    def gradients(again: bool):
        def block(x):
            return conv2d(conv2d(x.tanh(), w, 1, 1).tanh(), w, 1, 1).tanh()

        y = checkpoint(block, x, use_reentrant=False) if again else block(x)
        inner, = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(inner.square().sum() + y.square().sum(), (x, w))

    for a, e in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, e)


def test_empty_batch():
    for function, w in ((conv2d, numbers(1, 3, 2, 3, 3)), (conv_transpose2d, numbers(1, 2, 3, 3, 3))):
        x = torch.zeros(0, 2, 6, 6, dtype=torch.float64, requires_grad=True)
        w.requires_grad_(True)
        gx, gw = torch.autograd.grad(function(x, w, 2).sum(), (x, w), create_graph=True)
        assert gx.shape == x.shape
        assert not gw.any()
        assert torch.autograd.grad(gx.sum() + gw.sum(), w)[0].shape == w.shape


@pytest.mark.parametrize(("kernel", "function"), [
    (1, conv2d_resample), (3, conv2d_resample), (1, lambda x, w: conv2d_resample(x, w, 2)),
    (3, lambda x, w: conv2d_resample(x, w, 2)), (3, conv2d_up)])
def test_with_resampling(kernel, function):
    x = numbers(0, 2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    w = numbers(1, 3, 4, kernel, kernel).requires_grad_(True)

    def results():
        y = function(x, w)
        first = torch.autograd.grad(y.pow(2).sum(), (x, w), create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(f.pow(2).sum() for f in first), (x, w))]

    actual = results()
    with native.using("reference"):
        torch.testing.assert_close(actual, results(), rtol=1e-9, atol=1e-9)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_pytorch_s():
    x, w = numbers(0, 2, 2, 6, 6).float().requires_grad_(True), numbers(1, 3, 2, 3, 3).float()
    w.requires_grad_(True)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            y = conv2d(x, w, 1, 1)
        return [y, *torch.autograd.grad(y.float().square().sum(), (x, w))]

    actual = results()
    assert actual[0].dtype == torch.bfloat16
    with native.using("reference"):
        expected = results()
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e)
    y = conv2d(x, w, 1, 1)  # not under autocast, but its backward pass is
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.autograd.grad(y.sum(), x)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_16_bits_on_a_cpu_without_them(monkeypatch, dtype, transposed):
    """Float32 inside, from inputs, to outputs and to gradients that have 16 bits."""
    monkeypatch.setattr(convolution, "CPU_HAS_16_BITS", False)
    function, expected, shape = both(3, 1, 1, transposed)
    x, w, g = numbers(0, 2, 2, 6, 6).to(dtype), numbers(1, *shape).to(dtype), numbers(2, 2, 3, 6, 6).to(dtype)

    def results(function, cast, *inputs):
        x, w, g = (cast(t).requires_grad_(True) for t in inputs)
        y = function(x, w)
        first = torch.autograd.grad(y, (x, w), g, create_graph=True)
        return y, *first, *torch.autograd.grad(first[0].float().square().sum(), (w, g))

    actual, wide = results(function, torch.Tensor.clone, x, w, g), results(expected, torch.Tensor.float, x, w, g)
    assert {a.dtype for a in actual} == {dtype}
    for a, e in zip(actual[:3], wide, strict=False):
        torch.testing.assert_close(a, e.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)  # sums in another order
    for a, e in zip(actual[3:], wide[3:], strict=True):  # from a gradient that has been rounded
        assert (a - e).norm() < torch.finfo(dtype).eps * e.norm()


def test_the_switch():
    x, w = numbers(0, 1, 2, 4, 4).requires_grad_(True), numbers(1, 2, 2, 3, 3)
    assert "Convolution0" not in conv2d(x, w).grad_fn.name()
    with native.using("reference"):
        assert conv2d(x, w).grad_fn.name() == "ConvolutionBackward0"


def inner(x, w, v):
    y = conv2d_resample(torch.tanh(conv2d(x, w, 1, 1)), v, down=2)
    gradient, = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    return gradient.square().sum()


def test_compile(monkeypatch):
    """PyTorch's own convolutions then, and the derivatives of both orders that they have."""
    x = numbers(0, 2, 2, 8, 8).float().requires_grad_(True)
    w, v = (numbers(i, 2, 2, 3, 3).float().requires_grad_(True) for i in (1, 2))

    def outer(x, w, v):
        return conv2d_up(torch.tanh(conv2d(x, w, 1, 1)), v).square().sum()

    torch.compiler.reset()
    compiled = torch.compile(outer, backend="aot_eager", fullgraph=True)
    actual, expected = (torch.autograd.grad(f(x, w, v), (x, w, v)) for f in (compiled, outer))
    torch.testing.assert_close(actual, expected)
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace autograd.grad")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    torch.compiler.reset()
    compiled = torch.compile(inner, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x, w, v), (w, v)), torch.autograd.grad(inner(x, w, v), (w, v)))
