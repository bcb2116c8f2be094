"""The registered adversarial losses against their textbook forms."""

from __future__ import annotations

import pytest
import reference
import torch

from stylegan_dist.objective.adversarial import ADVERSARIAL

NAMES = sorted(ADVERSARIAL)


def both(name: str, real: torch.Tensor, fake: torch.Tensor):
    """Losses of D and G, as the phases call them: G sees the real logits only in a paired game."""
    game = ADVERSARIAL[name]
    return game.discriminator(real, fake), game.generator(fake, real if game.paired else None)


def textbook(name: str, real: torch.Tensor, fake: torch.Tensor):
    return reference.DISCRIMINATOR_LOSS[name](real, fake), reference.GENERATOR_LOSS[name](real, fake)


def test_the_registry_is_the_one_that_is_tested():
    assert set(NAMES) == set(reference.DISCRIMINATOR_LOSS) == set(reference.GENERATOR_LOSS)
    assert [name for name in NAMES if ADVERSARIAL[name].paired] == ["relativistic"]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name):
    """One loss per image, and its derivatives to both logits, around zero and far from it."""
    results = []
    for form in (both, textbook):
        real = (reference.normals(0, 200) * 5).requires_grad_(True)
        fake = (reference.normals(1, 200) * 5).requires_grad_(True)
        losses = form(name, real, fake)
        grads = []
        for loss in losses:
            assert loss.shape == (200,)
            weighted = (loss * reference.normals(2, 200)).sum()
            found = torch.autograd.grad(weighted, (real, fake), allow_unused=True)
            grads += [torch.zeros(200).double() if grad is None else grad for grad in found]
        results.append([*losses, *grads])
    for value, expected in zip(*results, strict=True):
        if expected.any():
            assert reference.difference(value, expected) < 1e-8  # PyTorch's softplus is linear above 20
        else:
            assert not value.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_logits_in_float32(name, size):
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 1.0], [0.0, -1.0]]) * size
    real, fake = (column.clone().requires_grad_(True) for column in signs.unbind(1))
    losses = both(name, real, fake)
    for loss in losses:
        assert loss.isfinite().all()
        for grad in torch.autograd.grad(loss.sum(), (real, fake), allow_unused=True):
            assert grad is None or grad.isfinite().all()
    if size == 100:  # further out the textbook's logarithm is infinite in float64 too
        for loss, expected in zip(losses, textbook(name, *signs.double().unbind(1)), strict=True):
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-30)


def test_points_known_by_hand():
    zero, two, log2 = torch.zeros(1).double(), torch.full((1,), 2.0).double(), 0.6931471805599453
    known = {  # D and G at (real, fake) = (0, 0), then at (2, 0)
        "nonsaturating": [(2 * log2, log2), (log2 + 0.1269280110429726, log2)],
        "minimax": [(2 * log2, -log2), (log2 + 0.1269280110429726, -log2)],
        "hinge": [(2, 0), (1, 0)],
        "wasserstein": [(0, 0), (-2, 0)],
        "least_squares": [(0.5, 0.5), (0.5, 0.5)],
        "relativistic": [(log2, log2), (0.1269280110429726, 2.1269280110429727)],
    }
    assert set(known) == set(NAMES)
    for name, points in known.items():
        for real, values in zip((zero, two), points, strict=True):
            assert [loss.item() for loss in both(name, real, zero)] == pytest.approx(values, abs=1e-12), name


def test_relativistic_loss_compares_image_by_image():
    real, fake = reference.normals(0, 8), reference.normals(1, 8)
    d, g = both("relativistic", real, fake)
    for i in range(8):
        one = [loss.item() for loss in both("relativistic", real[i:i + 1], fake[i:i + 1])]
        assert [d[i].item(), g[i].item()] == pytest.approx(one, abs=1e-15)
    shifted = both("relativistic", real + 3, fake + 3)
    assert reference.difference(shifted[0], d) < 1e-14, "only the difference counts"
