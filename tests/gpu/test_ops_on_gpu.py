"""Native operators on a GPU: the values of the CPU's, which other tests hold against plain PyTorch; streams, devices, sizes."""

from __future__ import annotations

import pytest
import torch
from native_cases import derivatives, laid_out, numbers
from torch import Tensor

from stylegan_dist import ops, randomness
from stylegan_dist.doctor.gradients import check_operators
from stylegan_dist.ops import native

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(3, 16, 5, 7), (2, 3, 4, 4), (1, 6, 31, 20), (2, 64, 33, 32), (4, 512, 8, 8), (0, 4, 4, 4)]


def generator(x: Tensor, bias: Tensor, d: Tensor, style: Tensor | None, weight: Tensor | None, filtered: bool) -> Tensor:
    """The generator's epilogue with its noise; both results as one tensor."""
    noise = ops.LayerNoise(randomness.noise_address(1, "noise", torch.arange(len(x), device=x.device)), 3)
    strength = torch.full((1,), 0.3, device=x.device)
    results = ops.generator_epilogue(x, ops.Epilogue(d, bias, noise, strength, filtered, 0.9), style, weight)
    made = [y for y in results if y is not None]
    return made[0] if len(made) == 1 else torch.cat([y.float() for y in made], dim=1)


def filtered(x: Tensor, bias: Tensor, up: tuple, down: tuple, padding: tuple[int, int]) -> Tensor:
    """The filtered leaky ReLU with filters of no symmetry: (factor, taps, whether it is not separable)."""
    filters = [numbers(taps, *[taps] * (1 + full)) for _, taps, full in (up, down)]
    filters = [(f / f.abs().sum()).float().to(x.device) for f in filters]
    return ops.filtered_lrelu(x, bias, ops.Filters(*filters, up[0], down[0], padding), 1.3, clamp=0.3)


OPERATORS = {  # of x, bias, and for some a residual or an image
    "lrelu": lambda x, b: ops.bias_act(x, b, "lrelu", 0.7, 0.9),
    "linear": lambda x, b: ops.bias_act(x, b),
    "up": lambda x, b: ops.upsample2d(x),
    "down": lambda x, b: ops.downsample2d(x),
    "filter": lambda x, b: ops.resample2d(x, padding=(2, 1), gain=4.0),
    "generic": lambda x, b: ops.resample2d(x, up=3, down=2, padding=(4, 3), taps=(1.0, 4.0, 2.0, -1.0, 3.0)),
    "d_filter": lambda x, b: ops.discriminator_epilogue(x, b, 0.7, 0.9, None, True),
    "d_residual": lambda x, b, r: ops.discriminator_epilogue(x, b, 0.7, 0.9, r),
    "g_plain": lambda x, b, d, s: generator(x, b, d, s, None, False),
    "g_filter": lambda x, b, d, s: generator(x, b, d, s, None, True),
    "g_rgb": lambda x, b, d, w: generator(x, b, d, None, w, False),
    "g_both": lambda x, b, d, s, w: generator(x, b, d, s, w, False),
    "filtered": lambda x, b: filtered(x, b, (2, 12, False), (2, 12, False), (9, 8)),
    "filtered_up4": lambda x, b: filtered(x, b, (4, 24, False), (2, 12, False), (12, 9)),
    "filtered_full": lambda x, b: filtered(x, b, (2, 12, False), (2, 12, True), (11, 10)),
    "filtered_up4_full": lambda x, b: filtered(x, b, (4, 24, False), (2, 12, True), (14, 13)),
    "filtered_generic": lambda x, b: filtered(x, b, (3, 5, True), (2, 7, False), (6, 9)),
    "fromrgb": lambda b, x, w: ops.fromrgb(x, w, b, 0.9),
}


@pytest.fixture(autouse=True)
def _native():
    if DEVICE not in native.native().devices:
        pytest.skip(str(native.path(DEVICE, "fused")))
    with native.using("everywhere"):
        yield


def case(name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> list[Tensor]:
    """Arguments on the CPU."""
    x, bias = laid_out(numbers(0, *shape).to(dtype), layout), numbers(1, shape[1]).float()
    if name == "d_residual":
        return [x, bias, laid_out(numbers(2, *shape).to(dtype), layout)]
    if name == "fromrgb":
        return [bias, laid_out(numbers(2, shape[0], 3, *shape[2:]).to(dtype), layout), numbers(3, shape[1], 3, 1, 1).float()]
    if name.startswith("g_"):
        style, weight = numbers(3, *shape[:2]).float(), numbers(4, shape[0], 3, shape[1]).float()
        wanted = [style] * (name != "g_rgb") + [weight] * (name in ("g_rgb", "g_both"))
        return [x, bias, numbers(2, *shape[:2]).float(), *wanted]
    return [x, bias]


def results(name: str, arguments: list[Tensor], device: str) -> list[Tensor]:
    """Value, gradients, and gradients of gradients."""
    function = OPERATORS[name]
    if name in ("up", "down", "filter", "generic"):
        bias, arguments = arguments[1], arguments[:1]
        function = lambda x: OPERATORS[name](x, bias)  # noqa: E731
    with torch.no_grad():
        y = function(*arguments)
    dtype, first = y.dtype, next(t for t in arguments if t.ndim == 4)
    layout = "nhwc" if first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous() else "nchw"
    g = laid_out(numbers(9, *y.shape).to(dtype), layout)
    cotangents = [laid_out(numbers(10 + k, *t.shape).to(t.dtype), layout) for k, t in enumerate(arguments)]

    def there(t: Tensor) -> Tensor:
        return t if t.device.type == torch.device(device).type else t.to(device)

    return derivatives(function, [there(t) for t in arguments], there(g), [there(t) for t in cotangents])


def assert_alike(actual: list[Tensor], expected: list[Tensor], name: str = "") -> None:
    """Up to the last bits of the dtype: multiplications and additions are joined on a GPU.

    The generator's gradient of filtered features is rounded before the adjoint filter there. A filtered leaky ReLU bends sums,
    and the last bits of a sum decide on the slope where it is nearly zero, or nearly clamped: few gradients may differ.
    """
    if name.startswith("filtered"):
        assert_nearly_all_alike(actual, expected)
        return
    for a, e in zip(actual, expected, strict=True):
        scale = float(e.detach().abs().max()) if e.numel() else 0.0
        eps = torch.finfo(e.dtype).eps
        torch.testing.assert_close(a.cpu(), e, rtol=4 * eps, atol=(eps if name == "g_filter" else 1e-5) * scale + 1e-6)


def assert_nearly_all_alike(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        if e.numel():
            a, e, eps = a.detach().cpu().double(), e.detach().double(), torch.finfo(e.dtype).eps
            far = (a - e).abs() > 4 * eps * e.abs() + 1e-5 * e.abs().max() + 1e-6
            assert far.double().mean() < (0.01 if e.ndim == 4 else 0.1)
            assert (a - e).norm() <= 0.01 * e.norm() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_derivatives(name: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype):
    arguments = case(name, shape, dtype, layout)
    there = results(name, [t.to(DEVICE) for t in arguments], DEVICE)
    assert all(t.device.type == DEVICE for t in there)
    assert_alike(there, results(name, arguments, "cpu"), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_addresses_that_are_not_multiples_of_16_bytes(name: str, dtype: torch.dtype):
    arguments = case(name, (2, 8, 8, 16), dtype, "nchw")
    shifted = [torch.cat((t.flatten()[:1], t.flatten())).to(DEVICE)[1:].view(t.shape) for t in arguments]
    assert all(t.data_ptr() % 16 for t in shifted)
    assert_alike(results(name, shifted, DEVICE), results(name, arguments, "cpu"), name)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", OPERATORS)
def test_repetitions_streams_and_graphs_give_the_same_bits(name: str, layout: str):
    arguments = [t.to(DEVICE) for t in case(name, (4, 64, 65, 64), torch.bfloat16, layout)]
    expected = results(name, arguments, DEVICE)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(results(name, arguments, DEVICE), expected, strict=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    bias, = (t for t in arguments if t.ndim == 1)
    with torch.cuda.stream(stream):
        bias.mul_(2)  # what a kernel on another stream would see, as it does not wait
        slow = torch.zeros(8192, 8192, device=DEVICE)
        for _ in range(20):
            slow = slow @ slow
        bias.mul_(0.5)
        there = results(name, arguments, DEVICE)
    torch.cuda.current_stream().wait_stream(stream)
    expected = results(name, arguments, DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(there, expected, strict=True))

    function, leaves = OPERATORS[name], [t.clone().requires_grad_(True) for t in arguments]
    y = function(*leaves)
    g = torch.randn_like(y)
    wanted = [t for t, found in zip(leaves, torch.autograd.grad(y.sum(), leaves, allow_unused=True), strict=True)
              if found is not None]

    def work() -> list[Tensor]:
        first = torch.autograd.grad(function(*leaves), wanted, g, create_graph=True)
        return [t.detach() for t in first]

    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = work()
    with torch.no_grad():
        for t in leaves:
            t.mul_(0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(recorded, work(), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", OPERATORS)
def test_the_device_of_the_tensors(name: str):
    arguments = case(name, (2, 8, 9, 8), torch.float32, "nhwc")
    assert torch.cuda.current_device() == 0
    assert_alike(results(name, [t.to("cuda:1") for t in arguments], "cuda:1"), results(name, arguments, "cpu"), name)
    with pytest.raises(RuntimeError, match="device"):
        ops.bias_act(arguments[0].to("cuda:0"), numbers(1, 8).float().to("cuda:1"), "lrelu")


def test_more_elements_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free memory")
    x = torch.zeros(2**31 // 2**20 + 1, 16, 256, 256, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = torch.linspace(-2, 2, x[-1].numel(), device=DEVICE).view(x[-1].shape).bfloat16()
    bias = torch.linspace(-1, 1, 16, device=DEVICE)
    for operator in (lambda x: ops.bias_act(x, bias, "lrelu"), lambda x: ops.downsample2d(x),
                     lambda x: ops.discriminator_epilogue(x, bias, filtered=True),
                     lambda x: ops.generator_epilogue(x, ops.Epilogue(bias.expand(len(x), -1), bias, filtered=True),
                                                      bias.expand(len(x), -1))[0]):
        y = operator(x)
        assert torch.equal(y[-1:], operator(x[-1:].clone()))
        del y


def test_noise_has_the_bits_of_the_cpu():
    """Which are those that tests/ops/test_generator_epilogue.py writes down."""
    for layer, shape in enumerate([(256, 256), (33, 7), (1, 1)]):
        address = randomness.noise_address(2**31 + layer, "noise", torch.tensor([0, 5, 2**32 + 1, 2**50]))
        expected = torch.ops.stylegan_dist.layer_noise(address, layer, *shape)
        assert torch.equal(torch.ops.stylegan_dist.layer_noise(address.to(DEVICE), layer, *shape).cpu(), expected)


def test_networks():
    for what, difference, limit in check_operators(DEVICE):
        assert difference < limit, what
