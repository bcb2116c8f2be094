"""R1, R2 and path lengths against whole Jacobians, finite differences and cases solved by hand."""

from __future__ import annotations

import pytest
import reference
import torch

from stylegan_dist.networks.stylegan2 import Discriminator, Generator
from stylegan_dist.objective.penalties import gradient_penalty, path_lengths


def make_discriminator(classes: int, architecture: str = "resnet", group: int = 2) -> Discriminator:
    d = Discriminator(8, 1, classes, architecture, channel_base=32, channel_max=4, mapping_layers=2, mbstd_group=group)
    return reference.randomize(d, seed=3).double()


def penalty_of(d: Discriminator, images: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
    images = images.detach().requires_grad_(True)
    return gradient_penalty(d(images, label), images)


def directional_derivatives(network: torch.nn.Module, function, step: float = 1e-6) -> list[tuple[str, float, float]]:
    """For each parameter tensor: name, and derivative along a random direction by `.grad` and by central differences."""
    network.zero_grad()
    function().backward()
    result = []
    for i, (name, parameter) in enumerate(network.named_parameters()):
        direction = reference.normals(100 + i, *parameter.shape) * parameter.detach().abs().mean()
        by_gradient = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
        values = []
        for sign in (1, -1):
            parameter.data.add_(direction, alpha=sign * step)
            values.append(function().item())
            parameter.data.add_(direction, alpha=-sign * step)
        result.append((name, by_gradient, (values[0] - values[1]) / (2 * step)))
    return result


def test_penalty_of_a_quadratic_discriminator():
    """D(x) = x^T A x / 2 has the gradient A x, the penalty |A x|^2 and, for A, its gradient 2 (A x) x^T."""
    square = reference.normals(0, 12, 12)
    a = (square + square.t()).requires_grad_(True)
    images = reference.normals(1, 5, 3, 2, 2).requires_grad_(True)
    x = images.flatten(1)
    penalty = gradient_penalty(torch.einsum("ni,ij,nj->n", x, a, x) / 2, images)
    gradient = x @ a
    assert penalty.shape == (5,)
    assert reference.difference(penalty, gradient.square().sum(1)) < 1e-13
    (found,) = torch.autograd.grad(penalty.sum(), a)
    expected = 2 * gradient.t() @ x
    assert reference.difference(found + found.t(), (expected + expected.t())) < 1e-13


@pytest.mark.parametrize(("classes", "architecture", "group"), [(0, "resnet", 1), (0, "resnet", 2), (3, "orig", 2)])
def test_penalty_equals_the_reference_and_finite_differences(classes, architecture, group):
    d = make_discriminator(classes, architecture, group)
    label = torch.tensor([2, 0]) if classes else None
    images = reference.normals(4, 2, 1, 8, 8)
    state = reference.weights_of(d)
    penalty = penalty_of(d, images, label)
    expected = reference.squared_gradients(lambda x: reference.discriminator(state, x, label, group), images)
    assert reference.difference(penalty, expected) < 1e-11
    with torch.no_grad():
        numeric = reference.numeric_gradient(lambda x: reference.discriminator(state, x, label, group).sum(), images)
    assert reference.difference(penalty, numeric.square().sum((1, 2, 3))) < 1e-6

    (penalty * torch.tensor([1.0, 0.3]).double()).sum().backward()
    (expected * torch.tensor([1.0, 0.3]).double()).sum().backward()
    differences = reference.gradient_differences(d, state)
    assert max(differences.values()) < 1e-9, differences


@pytest.mark.parametrize(("classes", "architecture"), [(0, "resnet"), (3, "resnet"), (3, "orig")])
def test_parameter_gradients_of_the_penalty_by_finite_differences(classes, architecture):
    d = make_discriminator(classes, architecture)
    label = torch.tensor([2, 0, 1, 1]) if classes else None
    images = reference.normals(5, 4, 1, 8, 8)
    found = directional_derivatives(d, lambda: penalty_of(d, images, label).sum())
    scale = max(abs(numeric) for _, _, numeric in found)
    assert sum(abs(numeric) > 1e-6 * scale for _, _, numeric in found) >= 8
    for name, by_gradient, numeric in found:
        assert by_gradient == pytest.approx(numeric, rel=1e-5, abs=1e-8 * scale), name


def make_generator(classes: int) -> Generator:
    g = Generator(8, 1, classes, z_dim=3, w_dim=3, mapping_layers=2, channel_base=16, channel_max=3)
    return reference.randomize(g, seed=4).double()


def test_path_length_of_a_linear_generator():
    """Images A w have the Jacobian A: the length is |A^T y| over the root of the number of layers."""
    jacobian = reference.normals(0, 2 * 4 * 4, 5 * 3).requires_grad_(True)
    ws = reference.normals(1, 6, 5, 3).requires_grad_(True)
    images = (ws.flatten(1) @ jacobian.t()).reshape(6, 2, 4, 4)
    direction = reference.normals(2, 6, 2, 4, 4)
    lengths = path_lengths(images, ws, direction)
    expected = torch.linalg.vector_norm(direction.flatten(1) @ jacobian, dim=1) / 4 / 5**0.5
    assert reference.difference(lengths, expected) < 1e-13
    found, wanted = (torch.autograd.grad(x.sum(), jacobian)[0] for x in (lengths, expected))
    assert reference.difference(found, wanted) < 1e-13


@pytest.mark.parametrize("classes", [0, 2])
def test_path_lengths_equal_the_explicit_jacobian(classes):
    g = make_generator(classes)
    n, label = 3, torch.tensor([1, 0, 1]) if classes else None
    z, direction = reference.normals(6, n, 3), reference.normals(7, n, 1, 8, 8)
    noise = [reference.normals(r, n, 1, r, r) for r in reference.noise_shapes(8)]
    a = 0.4  # the running mean that the penalty pulls to

    def lengths_of() -> torch.Tensor:
        ws = g.mapping(z, label)[:, None].expand(-1, g.num_ws, -1)
        return path_lengths(g.synthesis(ws, noise), ws, direction)

    state = reference.weights_of(g)
    part = reference.below(state, "synthesis.")
    ws = torch.stack([reference.mapping(reference.below(state, "mapping."), z, label)] * 4, 1)
    expected = reference.path_lengths(
        lambda w, i: reference.synthesis(part, w, [x[i:i + 1] for x in noise]), ws, direction)
    lengths = lengths_of()
    assert reference.difference(lengths, expected) < 1e-11
    (lengths - a).square().sum().backward()
    (expected - a).square().sum().backward()
    differences = reference.gradient_differences(g, state)
    assert max(differences.values()) < 1e-9, differences

    found = directional_derivatives(g, lambda: (lengths_of() - a).square().sum())
    scale = max(abs(numeric) for _, _, numeric in found)
    for name, by_gradient, numeric in found:
        assert by_gradient == pytest.approx(numeric, rel=1e-5, abs=1e-8 * scale), name
