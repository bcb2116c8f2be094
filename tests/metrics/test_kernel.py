"""The kernel distance: closed form, no bias, an honest error, and pieces that change nothing."""

from __future__ import annotations

import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import KernelDistance, features, kernel, kernel_distance


def closed_form(m1: torch.Tensor, m2: torch.Tensor) -> float:
    """The squared discrepancy of N(m1, I) and N(m2, I)."""
    d = len(m1)

    def mean(x: torch.Tensor, y: torch.Tensor) -> float:
        """E (x . y / d + 1)^3."""
        c, a, b = float(x @ y), float(x @ x), float(y @ y)
        return 1 + 3 * c / d + 3 * (c**2 + a + b + d) / d**2 + (c**3 + 3 * c * (a + b + d) + 6 * c) / d**3

    return mean(m1, m1) + mean(m2, m2) - 2 * mean(m1, m2)


def plainly(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Pair by pair."""
    def mean(a: torch.Tensor, b: torch.Tensor, same: bool) -> float:
        values = [(float(x @ y) / len(x) + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not same or i != j]
        return sum(values) / len(values)

    return mean(real, real, True) + mean(generated, generated, True) - 2 * mean(real, generated, False)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (13, 8), (8, 31)])
def test_every_pair_once(m: int, n: int, monkeypatch: pytest.MonkeyPatch):
    real, generated = normals(0, m, 5), normals(1, n, 5) + 0.3
    expected = plainly(real, generated)
    whole = kernel_distance(real, generated)
    assert whole.value == pytest.approx(expected, rel=1e-12, abs=1e-13)
    for rows in (1, 3, 8):
        monkeypatch.setattr(features, "ROWS", rows)
        cut = kernel_distance(real, generated)
        assert cut.value == pytest.approx(expected, rel=1e-12, abs=1e-13)
        assert cut.error == pytest.approx(whole.error, rel=1e-10)


def test_closed_form():
    mean, origin = torch.full((16,), 0.3, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    assert closed_form(mean, origin) == pytest.approx(0.318, abs=1e-3)
    found = kernel_distance(normals(2, 3000, 16) + mean, normals(3, 3000, 16))
    assert found.value == pytest.approx(closed_form(mean, origin), abs=4 * found.error)
    assert found.error < 0.02


@pytest.mark.parametrize(("shift", "m", "n"), [(0, 50, 50), (0, 40, 90), (0.1, 60, 60), (0.3, 60, 60)])
def test_unbiased_with_an_honest_error(shift: float, m: int, n: int):
    """Over many repetitions: the mean is the true value, and the errors tell how the values spread."""
    repeats = 300
    real, generated = normals(4, repeats, m, 16) + shift, normals(5, repeats, n, 16)
    found = [kernel_distance(x, y) for x, y in zip(real, generated, strict=True)]
    values = torch.tensor([one.value for one in found])
    errors = torch.tensor([one.error for one in found])
    spread, error = float(values.std()), float(errors.square().mean().sqrt())
    truth = closed_form(torch.full((16,), shift, dtype=torch.float64), torch.zeros(16, dtype=torch.float64))
    assert float(values.mean()) == pytest.approx(truth, abs=3 * spread / repeats**0.5)
    assert 0.85 < error / spread < 1.3
    if shift == 0:
        assert values.min() < 0 < values.max()


def test_noise_of_pairs_is_what_least_squares_leaves():
    """A number for each sample is fitted to values of pairs; the rest has a degree of freedom for each pair that is left."""
    own, across = normals(9, 7, 7), normals(10, 6, 9)
    own = own + own.T
    own.fill_diagonal_(0)
    rows, columns = torch.triu_indices(7, 7, 1)
    both = torch.nn.functional.one_hot(rows, 7) + torch.nn.functional.one_hot(columns, 7)
    sums = kernel._Sums(own.sum(1), own.sum(1), float(own.square().sum()))
    assert kernel._own_noise(sums, 7) == pytest.approx(left(both, own[rows, columns]) / (21 - 7), rel=1e-12)
    rows, columns = torch.cartesian_prod(torch.arange(6), torch.arange(9)).T
    each = torch.cat([torch.nn.functional.one_hot(rows, 6), torch.nn.functional.one_hot(columns, 9)], 1)[:, 1:]
    sums = kernel._Sums(across.sum(1), across.sum(0), float(across.square().sum()))
    assert kernel._cross_noise(sums, 6, 9) == pytest.approx(left(each, across.flatten()) / (54 - 14), rel=1e-12)


def left(design: torch.Tensor, values: torch.Tensor) -> float:
    """Sum of squares of what a linear fit leaves."""
    design = design.double()
    fit = design @ torch.linalg.lstsq(design, values[:, None]).solution
    return float((values[:, None] - fit).square().sum())


def test_other_batches_and_dtypes():
    real, generated = normals(6, 100, 8).float(), normals(7, 120, 8).float()
    found = kernel_distance(real, generated)
    assert found == kernel_distance(real.clone(), torch.cat(generated.split(7)))
    assert found == kernel_distance(real.double(), generated.double())
    swapped = kernel_distance(generated, real)
    assert swapped.value == pytest.approx(found.value, rel=1e-9)
    assert swapped.error == pytest.approx(found.error, rel=1e-9)


def test_equal_samples():
    """The diagonal is left out, so that a copy of a set is nearer than another one."""
    data = normals(8, 200, 8)
    assert kernel_distance(data, data).value < 0
    constant = kernel_distance(torch.ones(5, 3), torch.ones(6, 3))
    assert constant == KernelDistance(pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-6))


def test_too_few():
    with pytest.raises(InputError, match="at least 4"):
        kernel_distance(torch.rand(3, 2), torch.rand(9, 2))
