"""The generator's epilogue, native against plain PyTorch, its noise, and whole generators on both paths."""

from __future__ import annotations

import os

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
from small_networks import stylegan2_generator
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops, randomness
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.penalties import path_lengths
from stylegan_dist.ops import native
from stylegan_dist.ops.generator_epilogue import Epilogue, LayerNoise, generator_epilogue_reference

needs_native_operators()
pytestmark = pytest.mark.usefixtures("native_everywhere")

# (makes features, colours, filtered)
MODES = {"plain": (True, 0, False), "both": (True, 3, False), "rgb": (False, 1, False), "filtered": (True, 0, True),
         "all": (True, 4, True)}
LINE = [0.25, 0.75, 0.75, 0.25]
operators = torch.ops.stylegan_dist


def noise_of(kind, n, h, w):
    if kind == "drawn":
        return LayerNoise(randomness.noise_address(3, "noise", torch.arange(n) + 2**33), 5)
    return LayerNoise(numbers(20, n if kind == "maps" else 1, 1, h, w), 0) if kind else None


def case(shape, mode, noise, dtype, layout):
    """Arguments, gradients of the results, and cotangents of the gradients."""
    n, c, h, w = shape
    makes, colours, filtered = MODES[mode]
    shapes = [(n, c, h + filtered, w + filtered), (n, c), (c,)]
    shapes += [(1,)] * bool(noise) + [(n, c)] * makes + [(n, colours, c)] * bool(colours)
    seeded = [numbers(k, *s).to(wide(dtype)) for k, s in enumerate(shapes)]
    seeded[0] = laid_out(seeded[0].to(dtype), layout)
    gs = [laid_out(numbers(9, *shape).to(dtype), layout)] * makes
    gs += [numbers(10, n, colours, h, w).to(wide(dtype))] * bool(colours)
    cotangents = [numbers(11 + k, *t.shape).to(t.dtype) for k, t in enumerate(seeded)]
    return seeded, gs, cotangents


def both(function, shape, mode, noise, clamp):
    """A function of the arguments of `case`."""
    makes, colours, filtered = MODES[mode]
    drawn = noise_of(noise, shape[0], *shape[2:])

    def call(x, demodulation, bias, *rest):
        rest = list(rest)
        strength = rest.pop(0) if noise else None
        style = rest.pop(0) if makes else None
        layer = Epilogue(demodulation, bias, drawn, strength, filtered, clamp)
        return function(x, layer, style, rest[0] if colours else None)

    return call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "noise"), [((3, 16, 5, 7), "drawn"), ((2, 3, 4, 4), "map"), ((1, 20, 37, 12), "maps"),
                                              ((2, 1, 1, 9), None)])
def test_values_and_derivatives(dtype, layout, mode, shape, noise):
    """The reference in float64 on the same rounded inputs. In low precision a clamp decides after rounding: see below."""
    clamp = 0.9 if dtype.itemsize >= 4 else None
    arguments, gs, cotangents = case(shape, mode, noise, dtype, layout)
    actual = derivatives(both(ops.generator_epilogue, shape, mode, noise, clamp), arguments, gs, cotangents)
    expected = derivatives(both(generator_epilogue_reference, shape, mode, noise, clamp), [t.double() for t in arguments],
                           [t.double() for t in gs], [t.double() for t in cotangents])
    terms = 60 + 4 * max(shape[1], shape[2] * shape[3] * shape[0])
    # On a GPU the gradient of filtered features is rounded before the adjoint filter, too.
    twice = MODES[mode][2] and dtype.itemsize == 2 and "STYLEGAN_DIST_EMULATE" in os.environ
    more = 2.0**24 * torch.finfo(dtype).eps if twice else 0
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, terms + (more if a.shape == arguments[0].shape else 0))
    assert actual[-len(arguments)].dtype == dtype
    assert actual[len(gs) + 1].dtype == wide(dtype)
    if layout == "nhwc" and not arguments[0].is_contiguous():
        features = [t for t in actual if t.ndim == 4 and t.shape[1] == shape[1] != MODES[mode][1] and t.shape[1] > 1]
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in features)


@settings(max_examples=25)
@given(st.data())
def test_any_shape(data):
    shape = tuple(data.draw(st.integers(low, 14)) for low in (0, 1, 1, 1))
    mode, noise = data.draw(st.sampled_from(list(MODES))), data.draw(st.sampled_from((None, "drawn", "map")))
    clamp = data.draw(st.sampled_from((None, 0.9)))
    arguments, gs, cotangents = case(shape, mode, noise, torch.float64, data.draw(st.sampled_from(LAYOUTS)))
    actual, expected = (derivatives(both(function, shape, mode, noise, clamp), arguments, gs, cotangents)
                        for function in (ops.generator_epilogue, generator_epilogue_reference))
    torch.testing.assert_close(actual, expected)


def test_more_channels_and_rows_than_one_part():
    """Of the loops: several chunks of channels, bands of rows and steps of a thread, with a short last one each."""
    for shape, mode in (((1, 300, 9, 130), "both"), ((2, 20, 71, 70), "all")):
        for layout in ("nchw", "nhwc"):
            arguments, gs, cotangents = case(shape, mode, "drawn", torch.float64, layout)
            actual, expected = (derivatives(both(function, shape, mode, "drawn", 0.9), arguments, gs, cotangents)
                                for function in (ops.generator_epilogue, generator_epilogue_reference))
            torch.testing.assert_close(actual, expected)


# Every mode with every kind of noise, layout and clamp, and each of these with each other.
PAIRS = [(mode, noise, LAYOUTS[(i + k) % 3], (None, 0.9)[(i + k) % 2])
         for i, mode in enumerate(MODES) for k, noise in enumerate((None, "drawn", "map", "maps"))]


@pytest.mark.parametrize(("mode", "noise", "layout", "clamp"), PAIRS)
def test_gradcheck(mode, noise, layout, clamp):
    shape = (2, 2, 3, 2)
    arguments = [t.requires_grad_(True) for t in case(shape, mode, noise, torch.float64, layout)[0]]
    function = both(ops.generator_epilogue, shape, mode, noise, clamp)

    def results(*arguments):
        return tuple(y for y in function(*arguments) if y is not None)

    assert gradcheck(results, arguments)
    assert gradgradcheck(results, arguments)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("output", [0, 1])
def test_gradients_that_are_absent(layout, output):
    """One of the results is looked at, then the gradient of one argument."""
    arguments = [t.requires_grad_(True) for t in case((2, 8, 6, 5), "both", "drawn", torch.float64, layout)[0]]

    def both_orders(function, wanted):
        y = both(function, (2, 8, 6, 5), "both", "drawn", None)(*arguments)[output]
        first, = torch.autograd.grad(y.square().sum(), arguments[wanted], create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), arguments, allow_unused=True)]

    for wanted in (0, 1, 4 + output):
        actual, expected = (both_orders(f, wanted) for f in (ops.generator_epilogue, generator_epilogue_reference))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros_like(a) if e is None else e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_slope_is_that_of_bias_act(dtype, layout):
    """Near the clamp and near zero what bias_act would have stored decides. 181.02 is stored as 181 in bfloat16."""
    edge = torch.tensor([128.0], dtype=dtype).view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    near = (edge + torch.arange(-40, 40, dtype=edge.dtype)).view(dtype)
    small = torch.arange(0, 20, dtype=edge.dtype).view(dtype)
    u = torch.cat([near, -5 * near, -near, small, -small, near * 100, near * -100]).reshape(1, 1, 1, -1).expand(1, 2, -1, -1)
    u = laid_out(u.contiguous(), layout).requires_grad_(True)
    ones = torch.ones(1, 2, dtype=wide(dtype))
    for shift in (0.0, 1e-4, -0.03):
        bias = torch.full((2,), shift, dtype=wide(dtype))
        expected, = torch.autograd.grad(ops.bias_act(u, bias, "lrelu", 1.0, 181.02).sum(), u)
        z, _ = ops.generator_epilogue(u, Epilogue(ones, bias, clamp=181.02), ones)
        assert torch.equal(torch.autograd.grad(z.sum(), u)[0], expected)
        assert set(expected.flatten().tolist()) >= {0.0, expected.max().item()}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("mode", ["both", "filtered"])
def test_equal_bits_for_any_number_of_threads(layout, mode):
    shape = (3, 24, 70, 64)
    arguments, gs, cotangents = case(shape, mode, "drawn", torch.float32, layout)
    function = both(ops.generator_epilogue, shape, mode, "drawn", 0.9)
    equal_for_any_number_of_threads(lambda: derivatives(function, arguments, gs, cotangents))


def test_wrong_arguments():
    t, table = torch.zeros(2, 3, 5, 5), torch.zeros(2, 7, 3)
    good = [t, table, None, 0, LINE, 0.2, 1.0, -1.0, True]
    for place, wrong in ((0, t[0]), (0, t.to(torch.int32)), (0, t[:, :, :1]), (1, table[:, :3]), (1, table.double()),
                         (1, torch.zeros(2, 9, 3)), (2, torch.zeros(2, 1, 5, 5)), (2, torch.zeros(3, 2, dtype=torch.int64)),
                         (4, LINE[:3])):
        with pytest.raises(RuntimeError, match="stylegan_dist"):
            operators.generator_epilogue(*good[:place], wrong, *good[place + 1:])
    with pytest.raises(RuntimeError, match="stylegan_dist"):
        operators.generator_epilogue_backward(torch.zeros(2, 3, 5, 5), None, *good[:-1])
    with pytest.raises(RuntimeError, match="stylegan_dist"):
        operators.layer_noise(torch.zeros(2, 3, dtype=torch.int64), 0, 4, 4)


def test_third_derivatives_and_gradients_of_maps():
    (x, d, b, s), _, _ = case((1, 2, 3, 3), "plain", None, torch.float64, "nchw")
    x.requires_grad_(True)
    z, _ = ops.generator_epilogue(x, Epilogue(d, b), s)
    first, = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.sum(), x)
    maps, strength = numbers(4, 1, 1, 3, 3).requires_grad_(True), numbers(5, 1)
    z, _ = ops.generator_epilogue(x, Epilogue(d, b, LayerNoise(maps, 0), strength), s)
    assert torch.autograd.grad(z.sum(), maps)[0].any()


# ---- noise


# seed, purpose, image, layer, shape -> the last six numbers as float32: what was drawn once is drawn for ever, everywhere
VECTORS = [
    (0, "g_main.noise", 0, 0, (4, 4), "3f22bde2 be9856be 3fa1d264 bf2bccd3 becb7aa1 3f78a2fd"),
    (2**32 - 1, "g_path.noise", 2**40 + 7, 13, (1, 6), "3e43c557 3f0b4a2c 3d94612f 3e4f42e9 beb7eb5c 3f86288c"),
    (12345, "d_main.noise", 50_000_000, 5, (32, 32), "bf029a80 3eff4b87 bcea2477 3c800c11 bf0238cc 3f7dd15d"),
]


@pytest.mark.parametrize(("seed", "purpose", "image", "layer", "shape", "bits"), VECTORS)
def test_noise_is_the_same_everywhere(seed, purpose, image, layer, shape, bits):
    drawn = operators.layer_noise(randomness.noise_address(seed, purpose, torch.tensor([image])), layer, *shape)
    assert [f"{v & 0xFFFFFFFF:08x}" for v in drawn.flatten()[-6:].view(torch.int32).tolist()] == bits.split()


def test_noise_is_that_of_randomness():
    """The libraries' logarithm and sine may lead to another last bit once in ten million numbers."""
    different = 0
    for layer, shape in enumerate([(256, 256)] * 4 + [(5, 7), (1, 1), (33, 2)]):
        address = randomness.noise_address(77 + layer, "noise", torch.tensor([0, 9, 2**32 - 1, 2**50 + layer]))
        a = operators.layer_noise(address, layer, *shape)
        e = randomness.layer_noise(address, layer, shape)
        steps = (a.view(torch.int32) - e.view(torch.int32)).abs()
        assert steps.max() <= 1
        different += int(steps.sum())
    assert different <= 2


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("mode", ["both", "filtered"])
def test_noise_inside_is_the_noise_outside(layout, mode):
    """In the forward, backward and double backward pass, to the last bit."""
    shape = (2, 24, 45, 36)
    arguments, gs, cotangents = case(shape, mode, "drawn", torch.float32, layout)
    address, layer = noise_of("drawn", 2, 45, 36)

    def given(x, d, b, strength, *rest):
        maps = LayerNoise(operators.layer_noise(address, layer, 45, 36), 0)
        style, weight = (*rest, None)[:2]
        return ops.generator_epilogue(x, Epilogue(d, b, maps, strength, MODES[mode][2]), style, weight)

    actual = derivatives(both(ops.generator_epilogue, shape, mode, "drawn", None), arguments, gs, cotangents)
    for a, e in zip(actual, derivatives(given, arguments, gs, cotangents), strict=True):
        assert torch.equal(a, e)


# ---- with the rest of PyTorch


def test_compile_with_inner_gradient(monkeypatch):
    """A path length, its gradient, and a layer that is exported."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace autograd.grad")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    shape = (2, 3, 5, 4)
    arguments = [t.float().requires_grad_(True) for t in case(shape, "all", "drawn", torch.float32, "nhwc")[0]]
    address, layer = noise_of("drawn", 2, 5, 4)

    def call(address, x, d, b, strength, style, weight):
        return ops.generator_epilogue(x, Epilogue(d, b, LayerNoise(address, layer), strength, True, 0.9), style, weight)

    def penalty(address, *arguments):
        z, rgb = call(address, *arguments)
        first = torch.autograd.grad(z.square().sum() + rgb.square().sum(), arguments[4], create_graph=True)[0]
        return first.square().sum()

    expected = penalty(address, *arguments)
    gradients = torch.autograd.grad(expected, arguments)
    torch.compiler.reset()
    actual = torch.compile(penalty, backend="aot_eager", fullgraph=True)(address, *arguments)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, arguments), gradients)

    class Layer(torch.nn.Module):
        def forward(self, *arguments):
            return call(*arguments)

    inputs = (address, *(t.detach() for t in arguments))
    exported = torch.export.export(Layer(), inputs).module()
    assert all(torch.equal(a, b) for a, b in zip(exported(*inputs), call(*inputs), strict=True))


# ---- whole generators


def make(channels, precision, recompute=0):
    g = stylegan2_generator(16, channels, 3, z_dim=4, w_dim=8, mapping_layers=1, channel_base=96, channel_max=8,
                            precision=precision, recompute=recompute)
    g = reference.randomize(g, seed=channels)
    return g


def gradients(g, dtype, noise="drawn"):
    """Images, and the gradients of a main phase and of path lengths."""
    z = reference.normals(1, 4, 4).to(dtype)
    noise = (randomness.noise_address(0, "noise", torch.arange(4)) if noise == "drawn" else
             [numbers(k, 1, 1, *size).to(dtype) for k, size in enumerate(g.synthesis.noise_shapes)])
    named = dict(g.named_parameters())
    images = g(z, torch.arange(4) % 3, noise)
    main = torch.autograd.grad(torch.nn.functional.softplus(images).mean(), list(named.values()))
    ws = g.mapping(z, torch.arange(4) % 3)[:, None].expand(-1, g.num_ws, -1)
    lengths = path_lengths(g.synthesis(ws, noise), ws, reference.normals(2, *images.shape).to(dtype))
    second = torch.autograd.grad(lengths.square().sum(), list(named.values()), allow_unused=True)
    result = {"images": images, "lengths": lengths} | {f"main.{name}": x for name, x in zip(named, main, strict=True)}
    return result | {f"path.{name}": torch.zeros_like(p) if x is None else x
                     for (name, p), x in zip(named.items(), second, strict=True)}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("clamp", "noise"), [(None, "drawn"), (2.0, "maps")])
def test_generator(channels, channels_last, clamp, noise):
    g = make(channels, Precision(channels_last=channels_last, clamp=clamp)).double()
    actual = gradients(g, torch.float64, noise)
    with native.using("reference"):
        expected = gradients(g, torch.float64, noise)
    largest = {kind: max(e.abs().max().item() for name, e in expected.items() if name.startswith(kind))
               for kind in ("images", "lengths", "main", "path")}
    for name, e in expected.items():
        kind = name.partition(".")[0]
        assert (actual[name] - e).abs().max().item() <= 1e-9 * max(e.abs().max().item(), 1e-3 * largest[kind]), name
    assert all(expected[f"path.synthesis.b{r}.conv0.weight"].any() for r in (16, 8))


@pytest.mark.parametrize(("low", "bound"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)], ids=str)
def test_generator_in_low_precision(low, bound):
    """Both paths are as far from float64 as the dtype is, and the native one is nearer: it rounds less often."""
    g = make(3, Precision(low, channels_last=True, clamp=256.0))
    actual = gradients(g, torch.float32)
    with native.using("reference"):
        plain, expected = gradients(g, torch.float32), gradients(make(3, Precision()).double(), torch.float64)

    def of(results, kind):
        return torch.cat([x.double().flatten() for name, x in results.items() if name.startswith(kind)])

    for kind in ("images", "lengths", "main", "path"):
        e = of(expected, kind)
        far, plainly_far = ((of(x, kind) - e).norm() / e.norm() for x in (actual, plain))
        limit = plainly_far if kind in ("images", "main") else bound  # of few numbers it is chance which is nearer
        assert far < limit, (kind, far, plainly_far)


def test_recomputed_blocks_are_equal_to_the_last_bit():
    plain, again = (gradients(make(3, Precision(channels_last=True), r), torch.float32) for r in (0, 8))
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """This very file, with the CUDA launchers and thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
