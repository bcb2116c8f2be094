"""The filtered leaky ReLU on both paths, against its definition in float64, at all shapes that StyleGAN3 has."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    DTYPES,
    LAYOUTS,
    assert_close,
    derivatives,
    equal_for_any_number_of_threads,
    laid_out,
    native_calls,
    needs_native_operators,
    numbers,
    passes_on_cuda_sources,
    wide,
)
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops
from stylegan_dist.ops import native

needs_native_operators()
pytestmark = pytest.mark.usefixtures("native_everywhere")

operators = torch.ops.stylegan_dist
GAIN, SLOPE = 1.3, 0.2

# up, taps of the up filter, down, taps of the down filter, padding; a pair of taps is a filter that is not separable, 0 is none
PUBLISHED = {"up2": (2, 12, 2, 12, (9, 8)), "up4": (4, 24, 2, 12, (-6, -9)), "cropped": (2, 12, 2, 12, (-11, -12)),
             "up2_full": (2, 12, 2, (12, 12), (11, 10)), "up4_full": (4, 24, 2, (12, 12), (-2, -5)),
             "critical": (2, 12, 2, 12, (-9, -10))}
OTHERS = {"element": (1, 0, 1, 0, (0, 0)), "no_filter": (1, 0, 1, 0, (1, -2)), "zeros": (2, 0, 2, 0, (0, 0)),
          "only_up": (2, 12, 1, 0, (6, 5)), "only_down": (1, 0, 2, 12, (5, 5)), "odd": (3, (5, 5), 2, 7, (4, 1)),
          "full_up": (2, (12, 12), 4, 24, (20, 21)), "largest": (1, (24, 24), 4, (24, 24), (20, 20)),
          "short": (4, 2, 3, 1, (-3, 6))}
KINDS = PUBLISHED | OTHERS
SIZES = [(17, 19), (40, 23)]  # the second needs several tiles


def a_filter(seed, taps, dtype=torch.float32):
    """One that tells left from right and above from below, with a gain of about one."""
    if taps == 0:
        return None
    f = numbers(seed, *(taps if isinstance(taps, tuple) else (taps,)))
    return (1.5 * f / f.abs().sum()).float().to(dtype)


def arguments_of(kind, clamp):
    up, up_taps, down, down_taps, padding = kind
    return ops.Filters(a_filter(1, up_taps), a_filter(2, down_taps), up, down, padding), GAIN, SLOPE, clamp


def definition(x, bias, filters, gain, slope, clamp):
    """Each step on its own, on one channel of one image after the other."""
    up_filter, down_filter, up, down, padding = filters

    def full(f):
        f = (torch.ones(1) if f is None else f).to(x.dtype)
        return f if f.ndim == 2 else torch.outer(f, f)

    def convolved(plane, f):
        return F.conv2d(plane[None, None], f.flip([0, 1])[None, None])[0, 0]

    lo, hi = padding
    height, width = (size * up for size in x.shape[2:])
    planes = []
    for image in x:
        for channel, pixels in enumerate(image):
            spread = x.new_zeros(height, width)
            spread[::up, ::up] = pixels if bias is None else pixels + bias[channel].to(x.dtype)
            frame = F.pad(spread, [max(lo, 0), max(hi, 0)] * 2)
            begin = max(-lo, 0)
            frame = frame[begin:begin + height + lo + hi, begin:begin + width + lo + hi]
            samples = convolved(frame, full(up_filter)) * up**2
            bent = gain * torch.where(samples > 0, samples, samples * slope)
            planes.append(convolved(bent if clamp is None else bent.clamp(-clamp, clamp), full(down_filter))[::down, ::down])
    return torch.stack(planes).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("path", ["everywhere", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clamp", [None, 0.4])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_values_and_derivatives(name, size, clamp, layout, dtype, path):
    """The definition in float64 on the same rounded inputs; up to the second order."""
    if path == "reference" and dtype.itemsize == 2:
        pytest.skip("rounds what is between the filters")
    if name == "element" and clamp and dtype.itemsize == 2:
        pytest.skip("is bias_act, which tells from the rounded result whether a value was clamped")
    size = [s + 14 for s in size] if name in ("cropped", "critical") else size
    shape = (2, 3, *size)
    x, bias = laid_out(numbers(0, *shape).to(dtype), layout), numbers(3, 3).to(wide(dtype))
    rest = arguments_of(KINDS[name], clamp)
    expected_y = definition(x.double(), bias, *rest)
    g = laid_out(numbers(9, *expected_y.shape).to(dtype), layout)
    cotangents = [laid_out(numbers(10, *shape).to(dtype), layout), numbers(11, 3).to(bias.dtype)]
    with native.using(path):
        actual = derivatives(lambda x, b: ops.filtered_lrelu(x, b, *rest), [x, bias], g, cotangents)
    expected = derivatives(lambda x, b: definition(x, b, *rest), [x.double(), bias.double()], g.double(),
                           [t.double() for t in cotangents])
    count = x.numel() // shape[1]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, terms=600 + 4 * count)
    assert [t.dtype for t in actual[:3]] == [dtype, dtype, wide(dtype)]
    if layout == "nhwc" and path == "everywhere":
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual[:2])


@settings(max_examples=60)
@given(st.data())
def test_any_shape(data):
    n, c, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 3), (1, 40), (1, 40)))
    up, down = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    taps = [data.draw(st.integers(0, 24)) for _ in range(2)]
    taps = [(k, k) if k and data.draw(st.booleans()) else k for k in taps]
    padding = data.draw(st.integers(-20, 30)), data.draw(st.integers(-20, 30))
    rest = arguments_of((up, taps[0], down, taps[1], padding), data.draw(st.sampled_from([None, 0.3])))
    x, bias = laid_out(numbers(0, n, c, h, w), data.draw(st.sampled_from(LAYOUTS))), numbers(1, c)
    try:
        y = ops.filtered_lrelu(x, bias, *rest)
    except ValueError:
        return
    assert (y.shape[2] - 1) * down + (1 if rest[0].after is None else len(rest[0].after)) <= h * up + sum(padding)
    if n == 0:
        return

    def call(x, b):
        return ops.filtered_lrelu(x, b, *rest)

    g, cotangents = numbers(3, *y.shape), [numbers(4, *x.shape), numbers(5, c)]
    actual = derivatives(call, [x, bias], g, cotangents)
    with native.using("reference"):
        torch.testing.assert_close(actual, derivatives(call, [x, bias], g, cotangents))


@pytest.mark.parametrize("path", ["everywhere", "reference"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("clamp", [None, 0.4])
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("largest", "cropped", "critical")])
def test_gradcheck(name, clamp, layout, path):
    up, up_taps, down, down_taps, padding = KINDS[name]
    size = 14 if name.startswith("up4") else 4
    x, bias = laid_out(numbers(0, 1, 2, size, size - 1), layout).requires_grad_(True), numbers(1, 2).requires_grad_(True)
    rest = arguments_of((up, up_taps, down, down_taps, padding), clamp)
    with native.using(path):
        assert gradcheck(lambda x, b: ops.filtered_lrelu(x, b, *rest), (x, bias), fast_mode=True)
        assert gradgradcheck(lambda x, b: ops.filtered_lrelu(x, b, *rest), (x, bias), fast_mode=True)


def test_a_slope_of_one_is_a_filter():
    """Without a bend it is up-sampling and down-sampling, and its third derivatives are zero."""
    filters = arguments_of(KINDS["up2"], None)[0]
    fu, fd, up, down, padding = filters
    x = numbers(0, 1, 2, 9, 8).requires_grad_(True)
    total = fu.double().sum() * fd.double().sum()
    taps = [tuple(f.double().tolist()) for f in (fu, fd)]
    y = ops.filtered_lrelu(x, None, filters, gain=1.0, slope=1.0)
    samples = ops.resample2d(x, up, 1, padding, up**2 * (total / fd.double().sum()).item()**2, taps[0])
    filtered = ops.resample2d(samples, 1, down, gain=(total / fu.double().sum()).item()**2, taps=taps[1])
    torch.testing.assert_close(y, filtered)


def test_third_derivatives():
    x, rest = numbers(0, 1, 2, 7, 6).requires_grad_(True), arguments_of(KINDS["up2_full"], 0.6)

    def third():
        value = ops.filtered_lrelu(x, None, *rest).pow(2).sum()
        for _ in range(3):
            value, = torch.autograd.grad(value.pow(2).sum(), x, create_graph=True)
        return value

    actual = third()
    with native.using("reference"):
        torch.testing.assert_close(actual, third())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_and_the_clamp(dtype):
    """Zero has the lower slope, what is at the clamp has one and what is above has none, as in PyTorch."""
    values = torch.tensor([-2.0, -0.0, 0.0, 0.5, 1.0, 1.5, -7.5, -8.0, 3.0], dtype=dtype).reshape(1, 1, 3, 3)
    x = values.clone().requires_grad_(True)
    for taps in (torch.ones(1), torch.ones(1, 1)):
        for path in ("everywhere", "reference"):
            with native.using(path):
                y = ops.filtered_lrelu(x, None, ops.Filters(taps), gain=1.0, slope=0.125, clamp=1.0)
                gradient, = torch.autograd.grad(y.sum(), x)
            assert y.flatten().tolist() == [-0.25, 0, 0, 0.5, 1, 1, -0.9375, -1, 1]
            assert gradient.flatten().tolist() == [0.125, 0.125, 0.125, 1, 1, 0, 0.125, 0.125, 0]


def test_what_is_kept_for_the_backward_pass():
    """A quarter of a byte for each sample, and the filters; neither the input nor the output."""
    x, rest = numbers(0, 2, 3, 36, 37).float().requires_grad_(True), arguments_of(KINDS["up2"], 256.0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = ops.filtered_lrelu(x, None, *rest)
    samples = [(size - 1) * 2 + 12 for size in y.shape[2:]]
    mask, = (t for t in kept if t.dtype == torch.uint8)
    assert mask.shape == (2, 3, samples[0], math.ceil(samples[1] / 4))
    assert sum(t.nbytes for t in kept) == mask.nbytes + sum(f.nbytes for f in rest[0][:2])
    with torch.no_grad():
        assert torch.equal(ops.filtered_lrelu(x, None, *rest), y)


def test_where_it_is_native_unasked():
    """On a CPU in 16 bits only: PyTorch convolves float32 faster there. Filters that have no kernel take the reference."""
    x, rest = numbers(0, 1, 2, 20, 20), arguments_of(KINDS["up2"], 256.0)
    with native.using("fused"):
        for dtype in DTYPES:
            _, calls = native_calls(lambda: ops.filtered_lrelu(x.to(dtype), None, *rest))  # noqa: B023
            assert bool(calls) == (dtype.itemsize == 2)
    _, calls = native_calls(lambda: ops.filtered_lrelu(x, None, ops.Filters(a_filter(0, 25), padding=(12, 12))))
    assert not calls
    _, calls = native_calls(lambda: ops.filtered_lrelu(x, None, ops.Filters(), clamp=1.0))
    assert list(calls) == ["stylegan_dist::bias_act"]


@pytest.mark.parametrize("name", ["up2", "up4_full"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_equal_bits_for_any_number_of_threads(name, layout):
    x = laid_out(numbers(0, 3, 5, 50, 40).float(), layout).requires_grad_(True)
    bias = numbers(1, 5).float().requires_grad_(True)
    rest = arguments_of(KINDS[name], 0.4)

    def results():
        y = ops.filtered_lrelu(x, bias, *rest)
        return y, *torch.autograd.grad(y.sum(), (x, bias))

    equal_for_any_number_of_threads(results)


def test_empty_and_wrong():
    rest = arguments_of(KINDS["up2"], None)
    x, bias = torch.zeros(0, 3, 8, 8, requires_grad=True), torch.zeros(3, requires_grad=True)
    gx, gb = torch.autograd.grad(ops.filtered_lrelu(x, bias, *rest).sum(), (x, bias))
    assert gx.shape == x.shape
    assert gb.tolist() == [0, 0, 0]
    for path in ("everywhere", "reference"):
        with native.using(path), pytest.raises(ValueError, match="2x2 pixels with up 2 and padding"):
            ops.filtered_lrelu(torch.zeros(1, 1, 2, 2), None, ops.Filters(torch.ones(12), torch.ones(12), 2, 2))
    x, f = torch.zeros(1, 2, 20, 20), torch.ones(12)
    numbers_ = (2, 2, 9, 8, 0.2, 1.0, -1.0, True)
    for wrong in ((x, torch.zeros(3), f, f), (x, None, f.double(), f), (x, None, torch.ones(25), f), (x[0], None, f, f),
                  (x, None, torch.ones(3, 4), f), (x[:, :, :2], None, f, f)):
        with pytest.raises(RuntimeError, match="stylegan_dist"):
            operators.filtered_lrelu(*wrong, *numbers_)
    with pytest.raises(RuntimeError, match="factors"):
        operators.filtered_lrelu(x, None, f, f, 5, *numbers_[1:])
    with pytest.raises(RuntimeError, match="mask"):
        operators.filtered_lrelu_linear(x, None, torch.zeros(1, 2, 38, 9, dtype=torch.uint8), f, f, 2, 2, 9, 0, 38, 38, 14, 14,
                                        True, 0.2, 1.0, False)


# ---- with the rest of PyTorch


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(numbers(1, 3).float())
        self.register_buffer("up", a_filter(1, 12))
        self.register_buffer("down", a_filter(2, (12, 12)))

    def forward(self, x):
        return ops.filtered_lrelu(x, self.bias, ops.Filters(self.up, self.down, 2, 2, (11, 10)), clamp=0.6)


def test_compile():
    layer, x = Layer(), numbers(0, 2, 3, 11, 10).float().requires_grad_(True)
    y = layer(x)
    g = numbers(2, *y.shape).float()
    expected = torch.autograd.grad(y, (x, layer.bias), g)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    (actual, gradients), calls = native_calls(lambda: (compiled(x), torch.autograd.grad(compiled(x), (x, layer.bias), g)))
    assert torch.equal(actual, y)
    assert all(torch.equal(a, e) for a, e in zip(gradients, expected, strict=True))
    assert {"stylegan_dist::filtered_lrelu", "stylegan_dist::filtered_lrelu_linear"} <= set(calls)


@pytest.mark.parametrize("path", ["everywhere", "reference"])
def test_export(path):
    layer, x = Layer(), numbers(0, 2, 3, 11, 10).float()
    batch = torch.export.Dim("batch", min=1, max=64)
    with native.using(path):
        exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
        other = numbers(3, 5, 3, 11, 10).float()
        assert torch.equal(exported(other), layer(other))


@pytest.mark.parametrize("name", KINDS)
def test_meta_tensors(name):
    """What a plan of the memory sees: shapes, layouts and the mask, without values."""
    real = laid_out(numbers(0, 2, 3, 40, 39).float(), "nhwc").requires_grad_(True)
    filters, *rest = arguments_of(KINDS[name], 0.5)
    there = [None if f is None else f.to("meta") for f in filters[:2]]
    y = ops.filtered_lrelu(real, None, filters, *rest)
    for planned in ("cuda", "cpu"):
        with native.using("everywhere", planned):
            x = real.detach().to("meta").requires_grad_(True)
            meta = ops.filtered_lrelu(x, None, ops.Filters(*there, *filters[2:]), *rest)
            gradient, = torch.autograd.grad(meta, x, torch.empty_like(meta))
        assert (meta.shape, meta.stride(), meta.dtype) == (y.shape, y.stride(), y.dtype)
        assert (gradient.shape, gradient.stride()) == (real.shape, real.stride())


@pytest.mark.parametrize("path", ["everywhere", "reference"])
def test_autocast(path):
    """The result has the dtype of x, and filters are not rounded."""
    x, rest = numbers(0, 1, 2, 15, 14).float(), arguments_of(KINDS["up4"], None)
    with native.using(path):
        y = ops.filtered_lrelu(x, None, *rest)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.filtered_lrelu(x, None, *rest), y)
            low = ops.filtered_lrelu(x.bfloat16(), numbers(1, 2).float(), *rest)
    assert low.dtype == torch.bfloat16


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """This very file, with the CUDA launchers and thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
