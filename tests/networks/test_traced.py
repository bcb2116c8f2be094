"""Whole networks as torch.compile and torch.export see them, with the native operators inside, penalties included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.networks.layers import Precision
from stylegan_dist.networks.stylegan2 import Discriminator, Generator
from stylegan_dist.objective.penalties import gradient_penalty, path_lengths

N, RESOLUTION, CLASSES = 4, 8, 3
SMALL = {"channel_base": 96, "channel_max": 8, "mapping_layers": 1, "precision": Precision(channels_last=True, clamp=256.0)}


@pytest.fixture
def traces_inner_gradients() -> Iterator[None]:
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch does not trace autograd.grad")
    torch.compiler.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def generator() -> Generator:
    return reference.randomize(Generator(RESOLUTION, 3, CLASSES, z_dim=8, w_dim=8, **SMALL), 1)


def discriminator() -> Discriminator:
    return reference.randomize(Discriminator(RESOLUTION, 3, CLASSES, mbstd_group=2, **SMALL), 2)


def assert_compiles(function: Callable[..., Tensor], network: torch.nn.Module, *arguments: Tensor) -> None:
    """The same value and the same gradients of all parameters, in one graph."""
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    parameters = dict(network.named_parameters())
    results = []
    for call in (function, compiled):
        value = call(*arguments)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        results.append({"value": value, **{name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}})
    expected, actual = results
    assert actual.keys() == expected.keys()
    assert sum(bool(g.any()) for g in expected.values()) > len(parameters) / 2
    scale = max(g.abs().max().item() for name, g in expected.items() if name != "value")
    for name, value in expected.items():
        assert (actual[name] - value).abs().max().item() <= 1e-5 * value.abs().max().item() + 1e-6 * scale, name


@pytest.mark.usefixtures("traces_inner_gradients")
def test_r1_compiles_as_a_whole():
    d, label = discriminator(), torch.arange(N) % CLASSES
    images = reference.normals(3, N, 3, RESOLUTION, RESOLUTION).float().requires_grad_(True)
    assert_compiles(lambda x: gradient_penalty(d(x, label), x).mean(), d, images)


@pytest.mark.usefixtures("traces_inner_gradients")
def test_path_lengths_compile_as_a_whole():
    g = generator().synthesis
    ws = reference.normals(4, N, g.num_ws, 8).float().requires_grad_(True)
    direction = reference.normals(5, N, 3, RESOLUTION, RESOLUTION).float()
    maps = randomness.NoiseAddresses(g.noise_shapes, torch.device("cpu")).draw(0, "g_path.noise", torch.arange(N))
    assert_compiles(lambda w: (path_lengths(g(w, maps), w, direction) - 1).square().mean(), g, ws)


def test_networks_can_be_exported():
    g, d = generator().eval(), discriminator().eval()
    z, label = reference.normals(6, N, 8).float(), torch.arange(N) % CLASSES
    with torch.no_grad():
        images = g(z, label)
        torch.testing.assert_close(torch.export.export(g, (z, label)).module()(z, label), images)
        torch.testing.assert_close(torch.export.export(d, (images, label)).module()(images, label), d(images, label))
