"""How many digits first and second derivatives keep in float32, against the same network in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import reference
import torch
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import Tensor, nn

from stylegan_dist.families.stylegan2.networks import minibatch_std
from stylegan_dist.networks.layers import Precision, initialize
from stylegan_dist.objective.penalties import gradient_penalty, path_lengths
from stylegan_dist.ops import native


def derivatives(x: Tensor, cotangent: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The statistic, the gradient of its square, and the gradient of that along the cotangent."""
    x = x.clone().requires_grad_(True)
    statistic = minibatch_std(x, group)[::group, -1, 0, 0]
    (first,) = torch.autograd.grad(statistic.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * cotangent).sum(), x)
    return statistic.detach(), first.detach(), second


def alike(group: int, images: int, channels: int, spread: float, offset: float) -> Tensor:
    """Features, float32, that differ by `spread` between images and by `offset` between pixels."""
    return (offset * reference.normals(1, 1, channels, 4, 4) + spread * reference.normals(2, images, channels, 4, 4)).float()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 8), (4, 8, 32), (3, 6, 5), (32, 32, 16)], ids=str)
def test_the_minibatch_standard_deviation_keeps_its_digits(shape: tuple[int, int, int], compiled: bool):
    """Also where images are nearly or exactly alike, and far from zero."""
    group, images, channels = shape
    cotangent = reference.normals(3, images, channels, 4, 4)
    function: Callable = derivatives
    if compiled:
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            pytest.skip("this PyTorch does not trace autograd.grad")
        torch.compiler.reset()
        function = torch.compile(derivatives, backend="aot_eager", dynamic=False)
    with torch._dynamo.config.patch(trace_autograd_ops=True) if compiled else torch.enable_grad():
        for spread in (1, 1e-2, 1e-4, 1e-6, 0):
            for offset in (0, 3, 300):
                x = alike(group, images, channels, spread, offset)
                actual, exact = function(x, cotangent.float(), group), derivatives(x.double(), cotangent, group)
                for value, truth, bound in zip(actual, exact, (1e-6, 1e-6, 5e-5), strict=True):
                    assert (value - truth).norm() <= bound * truth.norm(), (spread, offset)
                # What is equal for all images of a group, as a bias before it, moves the statistic not at all.
                together = actual[2].unflatten(0, (-1, group)).sum(dim=1)
                assert together.norm() <= 1e-6 * actual[2].norm(), (spread, offset)


def worst(loss: Callable[[nn.Module, torch.dtype], Tensor], network: nn.Module, path: str) -> float:
    """The largest relative error of a parameter's gradient in float32."""
    def gradients(of: nn.Module, dtype: torch.dtype) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss(of, dtype), list(of.parameters()), allow_unused=True))

    with native.using("reference"):
        exact = gradients(copy.deepcopy(network).double(), torch.float64)
    with native.using(path):
        actual = gradients(network, torch.float32)
    pairs = [(a, e) for a, e in zip(actual, exact, strict=True) if a is not None and e is not None]
    assert len(pairs) > len(exact) / 2
    total = torch.stack([e.norm() for _, e in pairs]).norm().item()
    # Errors of gradients that nearly vanish count by the size of the others.
    return max(((a - e).norm() / (e.norm() + 1e-9 * total)).item() for a, e in pairs)


@pytest.mark.parametrize("path", ["reference", "everywhere"])
@pytest.mark.parametrize(("group", "spread", "bound"), [(2, 1, 1e-2), (2, 0.01, 5e-3), (4, 1, 3e-5), (4, 0.05, 1e-4),
                                                        (8, 0.01, 5e-4)])
def test_r1(group: int, spread: float, bound: float, path: str):
    """Groups of two are as good as blind to their own size, so that little is left of the gradients."""
    if path == "everywhere" and not native.native().devices:
        pytest.skip("no native operators")
    precision = Precision(channels_last=True)
    d = stylegan2_discriminator(32, 3, mbstd_group=group, channel_base=512, channel_max=64, precision=precision)
    initialize(d, 1, "init.d")
    images = reference.normals(2, 1, 3, 32, 32) / 2 + spread * reference.normals(3, 8, 3, 32, 32)
    images = images.float()

    def loss(network: nn.Module, dtype: torch.dtype) -> Tensor:
        x = images.to(dtype).requires_grad_(True)
        return gradient_penalty(network(x), x).mean()

    assert worst(loss, d, path) < bound


@pytest.mark.parametrize("path", ["reference", "everywhere"])
@pytest.mark.parametrize("scale", [1e-3, 1, 30])
def test_path_lengths(scale: float, path: str):
    """Demodulation, whatever the size of the weights, the normalisation of z, and the length itself."""
    if path == "everywhere" and not native.native().devices:
        pytest.skip("no native operators")
    g = stylegan2_generator(16, 3, 3, z_dim=32, w_dim=32, mapping_layers=2, channel_base=512, channel_max=32,
                  precision=Precision(channels_last=True))
    reference.randomize(g, 1)
    with torch.no_grad():
        for layer in g.synthesis.layers():
            layer.weight.mul_(scale)
    g = g.float()
    z, direction = reference.normals(2, 8, 32).float(), reference.normals(3, 8, 3, 16, 16).float()

    def loss(network: nn.Module, dtype: torch.dtype) -> Tensor:
        w = network.mapping(z.to(dtype), torch.arange(8) % 3)
        ws = w[:, None].expand(-1, network.num_ws, -1)
        return (path_lengths(network.synthesis(ws, None), ws, direction.to(dtype)) - 0.3).square().mean()

    assert worst(loss, g, path) < 1e-5
