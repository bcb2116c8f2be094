"""R1, R2, their approximation and path lengths against whole Jacobians, finite differences and cases solved by hand."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch.autograd.function import once_differentiable

from stylegan_dist.families.stylegan2.networks import Discriminator, Generator
from stylegan_dist.objective.penalties import approximate_gradient_penalty, gradient_penalty, path_lengths


def make_discriminator(classes: int, architecture: str = "resnet", group: int = 2) -> Discriminator:
    d = stylegan2_discriminator(8, 1, classes, architecture=architecture, channel_base=32, channel_max=4, mapping_layers=2,
                                mbstd_group=group)
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


# The approximate penalty. Means over the noise are taken by quadrature, so that they are exact.


def gauss_hermite(dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [3^d, d] and weights [3^d] that integrate polynomials up to degree 5 against the standard normal density."""
    points = torch.tensor(list(itertools.product((-(3**0.5), 0.0, 3**0.5), repeat=dimensions)), dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    return points, torch.stack([torch.stack(w).prod() for w in itertools.product(weights, repeat=dimensions)])


def orthogonal_noise(seed: int, dimensions: int) -> torch.Tensor:
    """Points [d, d] whose mean of n n^T is the identity, as that of standard normal noise."""
    return torch.linalg.qr(reference.normals(seed, dimensions, dimensions))[0] * dimensions**0.5


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 30.0])
def test_the_approximation_of_a_linear_discriminator(sigma):
    """D(x) = a x: the mean over n is |a|^2 for every sigma, the variance 2 |a|^4, the gradient for a in the mean 2 a."""
    a, x = reference.normals(0, 5).requires_grad_(True), reference.normals(1, 5)
    noise, weights = gauss_hermite(5)
    values = approximate_gradient_penalty((x @ a).expand(len(noise)), (x + sigma * noise) @ a, sigma)
    assert values.shape == (len(noise),)
    mean, exact = (values * weights).sum(), a.square().sum()
    assert reference.difference(mean, exact) < 1e-11
    assert reference.difference(((values - mean).square() * weights).sum(), 2 * exact**2) < 1e-11
    (gradient,) = torch.autograd.grad(mean, a)
    assert reference.difference(gradient, 2 * a) < 1e-11


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 2.0])
def test_the_bias_for_a_quadratic_discriminator(sigma):
    """D(x) = x^T A x / 2: the mean over n is |A x|^2 + sigma^2 (tr(A)^2 + 2 |A|_F^2) / 4, and so are gradients for A."""
    square = reference.normals(2, 4, 4)
    a, x = (square + square.t()).requires_grad_(True), reference.normals(3, 4)
    noise, weights = gauss_hermite(4)

    def d(images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,ij,nj->n", images, a, images) / 2

    values = approximate_gradient_penalty(d(x[None]).expand(len(noise)), d(x + sigma * noise), sigma)
    found = (values * weights).sum()
    bias = sigma**2 * (a.trace() ** 2 + 2 * a.square().sum()) / 4
    expected = (a @ x).square().sum() + bias
    assert reference.difference(found, expected) < 1e-9
    found, expected = (torch.autograd.grad(value, a)[0] for value in (found, expected))
    assert reference.difference(found + found.t(), expected + expected.t()) < 1e-9


@pytest.mark.parametrize(("classes", "architecture"), [(0, "resnet"), (3, "orig")])
def test_the_approximation_converges_to_the_exact_penalty(classes, architecture):
    """Away from the kinks of leaky ReLU, and for images that do not look at each other, in value and gradient."""
    d = make_discriminator(classes, architecture, group=1)
    label = torch.tensor([2, 0]) if classes else None
    images = reference.normals(4, 2, 1, 8, 8)
    exact = penalty_of(d, images, label)
    target = torch.autograd.grad(exact.sum(), list(d.parameters()), allow_unused=True, materialize_grads=True)
    noise = orthogonal_noise(5, 64).reshape(64, 1, 1, 8, 8)
    distances = []
    for sigma in (1e-1, 1e-3, 1e-7):
        logits = d(images, label)
        values = torch.stack([approximate_gradient_penalty(logits, d(images + sigma * n, label), sigma) for n in noise]).mean(0)
        gradients = torch.autograd.grad(values.sum(), list(d.parameters()), allow_unused=True, materialize_grads=True)
        found, expected = (torch.cat([g.flatten() for g in gs]) for gs in (gradients, target))
        distances.append((reference.difference(values, exact), reference.difference(found, expected)))
    assert distances[0][0] > 10 * distances[1][0] > 100 * distances[2][0]
    assert distances[2][0] < 1e-5
    assert distances[2][1] < 1e-4


def test_the_approximation_for_coupled_images():
    """In a group, the mean over n is the sum over the group's images j of |dD(x)_i / dx_j|^2, not the exact penalty."""
    d = make_discriminator(0, group=2)
    with torch.no_grad():
        d.conv.weight[:, -1] *= 30  # of the minibatch standard deviation
    images = reference.normals(6, 2, 1, 8, 8)
    jacobian = torch.autograd.functional.jacobian(lambda x: d(x), images)  # [i, j, C, H, W]
    noise = orthogonal_noise(7, 128).reshape(128, 2, 1, 8, 8)
    sigma = 1e-7
    values = torch.stack([approximate_gradient_penalty(d(images), d(images + sigma * n), sigma) for n in noise]).mean(0)
    assert reference.difference(values, jacobian.square().sum((1, 2, 3, 4))) < 1e-5
    exact = penalty_of(d, images, None)
    assert reference.difference(exact, jacobian.sum(0).square().sum((1, 2, 3))) < 1e-9
    assert abs(values.sum() / exact.sum() - 1) > 0.01, "these images are not coupled"


def test_the_approximation_knows_of_moving_kinks():
    """D(x) = lrelu(x - b), x uniform in [-1, 1]: the mean of |D'|^2 is P(x > b) + 0.04 P(x < b), with slope -0.48 for b.

    The exact penalty has the value right, but a second derivative of zero: it does not see the kink move.
    """
    b = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)

    def d(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.leaky_relu(images.flatten(1).sum(1) - b, 0.2)

    leaf = x.reshape(-1, 1, 1, 1).requires_grad_(True)
    exact = gradient_penalty(d(leaf), leaf).mean()
    assert exact.item() == pytest.approx(0.45 + 0.04 * 0.55, abs=1e-3)
    assert torch.autograd.grad(exact, b, materialize_grads=True)[0] == 0
    quantiles = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    noise, sigma = torch.distributions.Normal(0.0, 1.0).icdf(quantiles), 0.03
    logits = d(x[:, None])
    values = torch.stack([approximate_gradient_penalty(logits, d((x + sigma * n)[:, None]), sigma) for n in noise])
    assert values.mean().item() == pytest.approx(exact.item(), rel=0.02)
    (slope,) = torch.autograd.grad(values.mean(), b)
    assert slope.item() == pytest.approx(-0.48, rel=0.02)


class OnceDifferentiable(torch.autograd.Function):
    """x^2, whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_the_approximation_needs_no_second_derivative():
    weight = reference.normals(8, 4).requires_grad_(True)
    images, noise, sigma = reference.normals(9, 3, 1, 2, 2), reference.normals(10, 3, 1, 2, 2), 0.5

    def d(x: torch.Tensor) -> torch.Tensor:
        return OnceDifferentiable.apply(x.flatten(1) * weight) @ weight

    leaf = images.clone().requires_grad_(True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_penalty(d(leaf), leaf).sum().backward()
    values = approximate_gradient_penalty(d(images), d(images + sigma * noise), sigma)
    (found,) = torch.autograd.grad(values.sum(), weight)
    # D(x) = sum w^3 x^2, so that the penalty is (sum w^3 c)^2 with c = ((x + sigma n)^2 - x^2) / sigma
    c = (((images + sigma * noise).square() - images.square()) / sigma).flatten(1)
    slope = c @ weight**3
    assert reference.difference(values, slope.square()) < 1e-12
    assert reference.difference(found, 6 * weight.square() * (slope @ c)) < 1e-12


def make_generator(classes: int) -> Generator:
    g = stylegan2_generator(8, 1, classes, z_dim=3, w_dim=3, mapping_layers=2, channel_base=16, channel_max=3)
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
