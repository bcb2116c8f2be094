"""Fréchet distances: exact values, the law of their bias, few samples, lines over 1/n, classes."""

from __future__ import annotations

import math

import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import (
    Moments,
    few_samples,
    frechet_bias,
    frechet_by_class,
    frechet_distance,
    frechet_infinity,
    halves,
)


def exactly(seed: int, count: int, mean: torch.Tensor, spectrum: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Samples [count, d] whose mean and covariance are exactly those of N(mean, Q diag(spectrum) Q^T)."""
    x = normals(seed, count, len(mean))
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(x.T @ x / (count - 1))
    white = torch.linalg.solve_triangular(factor, x.T, upper=False).T
    return mean + white * spectrum.sqrt() @ basis.T


def two_sets(width: int, counts: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Samples, and their exact distance."""
    basis = torch.linalg.qr(normals(9, width, width)).Q
    a, b = (10 * normals(seed, width).sigmoid() ** 4 for seed in (10, 11))
    mean, origin = normals(12, width), torch.zeros(width, dtype=torch.float64)
    first, second = exactly(13, counts[0], origin, a, basis), exactly(14, counts[1], mean, b, basis)
    return first, second, float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())


@pytest.mark.parametrize("width", [1, 2, 32, 100])
def test_exact_values(width: int):
    first, second, expected = two_sets(width, (width + 1, 3 * width + 5))
    for a, b in ((first, second), (Moments.of(first), second), (second, Moments.of(first))):
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(first.float(), second.float()) == pytest.approx(expected, rel=1e-5)


def test_a_set_is_at_distance_0_from_itself():
    first, _, _ = two_sets(50, (200, 200))
    for data in (first, first[:20], torch.ones(10, 3), torch.cat([first, torch.ones(200, 5)], 1)):
        assert 0 <= frechet_distance(data, data) < 1e-11
        assert 0 <= frechet_distance(Moments.of(data), Moments.of(data)) < 1e-11


def test_shifted_and_scaled_sets():
    data = normals(0, 500, 20)
    assert frechet_distance(data, data + 2) == pytest.approx(80, rel=1e-12)
    variance = float(Moments.of(data).covariance.trace())
    assert frechet_distance(data - data.mean(0), 3 * (data - data.mean(0))) == pytest.approx(4 * variance, rel=1e-12)


@pytest.mark.parametrize("counts", [(20, 30), (20, 300), (300, 20), (2, 2), (64, 65)])
def test_few_samples_are_exact(counts: tuple[int, int]):
    """Against the matrix root in the basis that the samples span, where no eigenvalue is zero."""
    first, second = normals(1, counts[0], 64), normals(2, counts[1], 64) * 0.7 + 0.1
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (first, second))
    small = a @ b.T @ b @ a.T if len(a) < len(b) else b @ a.T @ a @ b.T
    rank = min(counts[0] - 1, counts[1] - 1, 64)
    root = torch.linalg.eigvalsh(small)[-rank:].sqrt().sum()
    off = first.mean(0) - second.mean(0)
    expected = float(off @ off + a.square().sum() + b.square().sum() - 2 * root)
    for one, other in ((first, second), (Moments.of(first), second), (first, Moments.of(second)),
                       (Moments.of(first), Moments.of(second)), (Moments.of(second), Moments.of(first))):
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_features_that_depend_on_each_other():
    """No Cholesky factor exists, though the samples are many."""
    base, other = normals(3, 400, 6), 1.3 * normals(4, 300, 6) + 0.2
    maps = normals(5, 6, 6)
    doubled, other_doubled = (torch.cat([x, x @ maps, torch.zeros(len(x), 3)], 1) for x in (base, other))
    basis = torch.linalg.qr(torch.cat([torch.eye(6, dtype=torch.float64), maps], 1).T).Q  # [12, 6]
    expected = frechet_distance(doubled[:, :12] @ basis, other_doubled[:, :12] @ basis)
    assert frechet_distance(doubled, other_doubled) == pytest.approx(expected, rel=1e-6)


def test_note_on_few_samples():
    assert few_samples(2049, 2048) == ""
    assert "2048" in few_samples(2048, 2048)


def test_refused():
    with pytest.raises(ValueError, match="compared"):
        frechet_distance(torch.rand(9, 3), torch.rand(9, 2))
    with pytest.raises(InputError, match="generated"):
        frechet_distance(torch.rand(9, 3), torch.rand(1, 3))
    with pytest.raises(InputError, match="finite"):
        frechet_distance(torch.rand(9, 3), torch.full((9, 3), torch.nan))


def test_law_of_the_bias():
    """d=64, n=1000: 2.21 (d + d (d + 1) / 4, from both sides)."""
    white = Moments(1000, torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64))
    assert frechet_bias(white, [1000, 1000]) == pytest.approx((64 + 64 * 65 / 4) * 2 / 1000, rel=1e-12)
    assert frechet_bias(white, [1000]) == pytest.approx(64 * 1.104e3 / 64 / 1000, rel=1e-12)


@pytest.mark.parametrize("power", [0, 1])
def test_the_bias_is_as_predicted(power: int):
    spectrum = torch.arange(1, 33, dtype=torch.float64) ** -power
    exact = Moments(10**9, torch.zeros(32, dtype=torch.float64), spectrum.diag())
    sets = [normals(seed, 1000, 32) * spectrum.sqrt() for seed in range(40, 240)]
    both = sum(frechet_distance(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)) / 100
    one = sum(frechet_distance(exact, a) for a in sets) / 200
    assert both == pytest.approx(frechet_bias(exact, [1000, 1000]), rel=0.05)
    assert one == pytest.approx(frechet_bias(exact, [1000]), rel=0.05)


def test_constant_features_have_no_bias():
    assert frechet_bias(Moments.of(torch.ones(10, 3)), [10]) == 0


def test_line_over_the_number_of_samples():
    exact = Moments(10**9, torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    same, off = normals(20, 6000, 16), normals(21, 6000, 16) * 1.2
    line = frechet_infinity(exact, same)
    assert len(line.sizes) == len(line.distances) == 15
    assert (line.sizes[0], line.sizes[-1]) == (600, 6000)
    assert len({b - a for a, b in zip(line.sizes, line.sizes[1:], strict=False)}) <= 2  # even
    assert line.distances[-1] == pytest.approx(frechet_distance(exact, same), rel=1e-12)
    assert line.slope == pytest.approx(frechet_bias(exact, [1]), rel=0.1)
    assert abs(line.value) < 0.15 * line.distances[-1], "most of the distance is its bias"
    assert frechet_infinity(exact, off).value == pytest.approx(16 * 0.2**2, rel=0.03)
    heights = [line.value + line.slope / size for size in line.sizes]
    squares = [(a - b) ** 2 for a, b in zip(heights, line.distances, strict=True)]
    assert line.residual == pytest.approx(math.sqrt(sum(squares) / 15), rel=1e-6)


def test_line_is_addressed():
    real, generated = normals(22, 300, 4), normals(23, 400, 4)
    first = frechet_infinity(real, generated, 1, points=4, smallest=50)
    assert first == frechet_infinity(real, generated, 1, points=4, smallest=50)
    assert first == frechet_infinity(Moments.of(real), generated, 1, points=4, smallest=50)
    assert first.distances[:3] != frechet_infinity(real, generated, 2, points=4, smallest=50).distances[:3]
    assert first.sizes == [50, 167, 283, 400]


@pytest.mark.parametrize(("count", "smallest"), [(2, None), (10, 10), (10, 1)])
def test_no_line(count: int, smallest: int | None):
    with pytest.raises(InputError):
        frechet_infinity(torch.rand(10, 2), torch.rand(count, 2), smallest=smallest)
    with pytest.raises(ValueError, match="points"):
        frechet_infinity(torch.rand(10, 2), torch.rand(10, 2), points=1)


def test_classes():
    real, generated = normals(24, 90, 3), normals(25, 60, 3)
    labels, others = torch.arange(90) % 3, torch.arange(60) % 2
    labels[labels == 2] = 3
    labels[2] = 2
    found = frechet_by_class(real, labels, generated, others, 5, seed=4)
    assert [(c.real, c.generated) for c in found] == [(30, 30), (30, 30), (1, 0), (29, 0), (0, 0)]
    assert [c.value is None for c in found] == [False, False, True, True, True]
    assert [c.floor is None for c in found] == [False, False, True, False, True]
    one = real[labels == 1]
    assert found[1].value == frechet_distance(one, generated[others == 1])
    first, second = halves(30, 4)
    assert found[1].floor == frechet_distance(one[first], one[second])


def test_wrong_labels():
    data = normals(0, 4, 2)
    good = torch.zeros(4, dtype=torch.int64)
    for labels in (good - 1, good + 1, good[:3]):
        with pytest.raises(ValueError, match="generated"):
            frechet_by_class(data, good, data, labels, 1)
