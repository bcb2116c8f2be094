"""Whole networks as torch.compile and torch.export see them, with the native operators inside, penalties included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from native_cases import native_calls
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.penalties import gradient_penalty, path_lengths
from stylegan_dist.ops import fused, native

pytestmark = pytest.mark.full

N, RESOLUTION, CLASSES = 4, 8, 3
SMALL = {"channel_base": 96, "channel_max": 8, "mapping_layers": 1, "precision": Precision(channels_last=True, clamp=256.0)}
# A minute of processor time each with the real compiler; tests/training/test_compiled.py has it for every run of the tests.
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]


@pytest.fixture
def traces_inner_gradients() -> Iterator[None]:
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace autograd.grad")
    torch.compiler.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def generator() -> Generator:
    return reference.randomize(stylegan2_generator(RESOLUTION, 3, CLASSES, z_dim=8, w_dim=8, **SMALL), 1)


def discriminator() -> Discriminator:
    return reference.randomize(stylegan2_discriminator(RESOLUTION, 3, CLASSES, mbstd_group=2, **SMALL), 2)


def noise_of(g: Generator, kind: str) -> Tensor | list[Tensor] | None:
    """All maps, or where the layers find their noise in the stream of random numbers."""
    draws = {"maps": randomness.NoiseAddresses(g.synthesis.noise_shapes, torch.device("cpu")).draw,
             "drawn": randomness.noise_address}
    return draws[kind](0, "g_path.noise", torch.arange(N)) if kind in draws else None


def assert_compiles(function: Callable[..., Tensor], network: torch.nn.Module, backend: str, *arguments: Tensor) -> None:
    """In one graph: the same value and gradients of all parameters, from the same native operators."""
    parameters = dict(network.named_parameters())

    def results(call: Callable[..., Tensor]) -> dict[str, Tensor]:
        value = call(*arguments)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        return {"value": value, **{name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}}

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    results(compiled)  # compiles
    (expected, calls), (actual, compiled_calls) = (native_calls(lambda f=f: results(f)) for f in (function, compiled))
    assert bool(calls) == bool(native.native().devices)
    assert compiled_calls.keys() == calls.keys()
    assert compiled_calls <= calls  # inductor drops those whose result nobody reads
    assert backend == "inductor" or compiled_calls == calls
    assert actual.keys() == expected.keys()
    assert sum(bool(g.any()) for g in expected.values()) > len(parameters) / 2
    scale = max(g.abs().max().item() for name, g in expected.items() if name != "value")
    for name, value in expected.items():
        assert (actual[name] - value).abs().max().item() <= 1e-5 * value.abs().max().item() + 1e-6 * scale, name


@pytest.mark.usefixtures("traces_inner_gradients")
@pytest.mark.parametrize("backend", BACKENDS)
def test_r1_compiles_as_a_whole(backend: str):
    d, label = discriminator(), torch.arange(N) % CLASSES
    images = reference.normals(3, N, 3, RESOLUTION, RESOLUTION).float().requires_grad_(True)
    assert_compiles(lambda x: gradient_penalty(d(x, label), x).mean(), d, backend, images)


@pytest.mark.usefixtures("traces_inner_gradients")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("noise", ["maps", "drawn"])
def test_path_lengths_compile_as_a_whole(noise: str, backend: str):
    g = generator()
    ws = reference.normals(4, N, g.num_ws, 8).float().requires_grad_(True)
    direction = reference.normals(5, N, 3, RESOLUTION, RESOLUTION).float()
    values = noise_of(g, noise)

    def penalty(w: Tensor) -> Tensor:
        return (path_lengths(g.synthesis(w, values), w, direction) - 1).square().mean()

    assert_compiles(penalty, g.synthesis, backend, ws)


@pytest.mark.parametrize("noise", ["none", "maps", "drawn"])
def test_a_generator_can_be_exported(noise: str):
    g = generator().eval()
    assert_exports(g, reference.normals(6, N, 8).float(), torch.arange(N) % CLASSES, noise_of(g, noise))


def test_a_discriminator_can_be_exported():
    d = discriminator().eval()
    assert_exports(d, reference.normals(3, N, 3, RESOLUTION, RESOLUTION).float(), torch.arange(N) % CLASSES)


@torch.no_grad()
def assert_exports(network: torch.nn.Module, *arguments: Tensor | list[Tensor] | None) -> None:
    """The same bits, from the same native operators."""
    exported = torch.export.export(network, arguments)
    expected, calls = native_calls(lambda: network(*arguments))
    targets = [str(node.target).rpartition(".")[0].replace(".", "::") for node in exported.graph.nodes]
    assert Counter(name for name in targets if name.startswith(f"{fused.NAMESPACE}::")) == calls
    assert bool(calls) == bool(native.native().devices)
    assert torch.equal(exported.module()(*arguments), expected)
