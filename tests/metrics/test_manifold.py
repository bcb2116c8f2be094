"""Precision, recall, density, coverage: against their definitions, known expectations, ties, pieces."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import ManifoldScores, expected_coverage, features, manifold, manifold_scores, neighbour_radii


def plainly(real: torch.Tensor, generated: torch.Tensor, k: int = 3, wide: int = 5) -> ManifoldScores:
    """By the definitions, on exact distances of all pairs."""
    def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double()[:, None] - b.double()[None]).square().sum(2)

    def radii(x: torch.Tensor, k: int) -> torch.Tensor:
        return distances(x, x).fill_diagonal_(torch.inf).sort(1).values[:, k - 1]

    across = distances(real, generated)
    inside, widely = across <= radii(real, k)[:, None], across <= radii(real, wide)[:, None]
    recalled = across <= radii(generated, k)[None]
    return ManifoldScores(inside.any(0).double().mean().item(), recalled.any(1).double().mean().item(),
                          widely.double().sum().item() / (wide * len(generated)), widely.any(1).double().mean().item())


def close(a: ManifoldScores, b: ManifoldScores) -> bool:
    return astuple(a) == pytest.approx(astuple(b), rel=1e-12)


@pytest.mark.parametrize(("m", "n", "width"), [(100, 100, 5), (50, 170, 1), (170, 50, 64), (6, 6, 2)])
@pytest.mark.parametrize("rows", [2048, 16, 5])
def test_their_definitions(m: int, n: int, width: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "ROWS", rows)
    real, generated = normals(0, m, width).float(), (normals(1, n, width) * 0.8 + 0.2).float()
    for k, wide in ((3, 5), (5, 3), (1, 1)):
        assert close(manifold_scores(real, generated, k, wide), plainly(real, generated, k, wide))


@pytest.mark.parametrize("rows", [2048, 7])
@pytest.mark.parametrize("far", [0, 1000])
def test_many_ties(rows: int, far: float, monkeypatch: pytest.MonkeyPatch):
    """On a grid, with copies: most neighbours are exactly at a radius. Far from zero, products alone would not see it."""
    monkeypatch.setattr(features, "ROWS", rows)
    monkeypatch.setattr(manifold, "_EXACT", 25)
    real, generated = ((2 * normals(seed, 60, 3)).round() / 4 + far for seed in (2, 3))
    assert close(manifold_scores(real, generated), plainly(real, generated))


def test_equal_distributions():
    """P and R are some 0.6 with k = 3 and 0.7 with k = 5, density is 1, coverage 1 - 2^-5."""
    real, generated = normals(4, 1500, 64), normals(5, 1500, 64)
    scores = manifold_scores(real, generated)
    assert scores.precision == pytest.approx(0.6, abs=0.07)
    assert scores.recall == pytest.approx(0.6, abs=0.07)
    assert scores.density == pytest.approx(1, abs=0.1)
    assert scores.coverage == pytest.approx(expected_coverage(1500, 1500), abs=0.015)
    assert manifold_scores(real, generated, 5).precision == pytest.approx(0.7, abs=0.07)


def test_expected_coverage():
    assert expected_coverage(10**6, 10**6) == pytest.approx(1 - 2**-5, abs=1e-5)
    assert expected_coverage(100, 1, 1) == pytest.approx(1 / 100)
    # one generated sample at random: the chance that it is among the k nearest of all n others
    assert expected_coverage(100, 1, 5) == pytest.approx(5 / 100)
    few, many = (plainly(normals(6, 100, 4), normals(7, n, 4)).coverage for n in (50, 400))
    assert few == pytest.approx(expected_coverage(100, 50), abs=0.1)
    assert many == pytest.approx(expected_coverage(100, 400), abs=0.05)


def test_identical_and_disjoint_sets():
    data = normals(8, 200, 10).float()
    same = manifold_scores(data, data)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(6 / 5), "each is in its own ball and, on average, in 5 others"
    assert manifold_scores(data, data + 100) == ManifoldScores(0, 0, 0, 0)
    twice = torch.cat([data, data])
    assert manifold_scores(twice, twice, 1, 1).precision == 1, "copies have radius 0, and closed balls"


def test_all_generated_on_one_real_sample():
    """Coverage is (k + 1) / n in the mean over the real samples: those who have that one among their k nearest, and itself."""
    real = normals(9, 60, 6).float()
    found = [manifold_scores(real, real[i].expand(20, -1)) for i in range(60)]
    assert {scores.precision for scores in found} == {1.0}
    assert {scores.recall for scores in found} == {1 / 60}
    assert sum(scores.coverage for scores in found) / 60 == pytest.approx(6 / 60, rel=1e-12)


def test_neighbours_whose_order_is_lost_in_products():
    """Two millions away from zero, squared distances have an error of 4e-3."""
    data = normals(12, 400, 3) + 2e6
    expected = (data[:, None] - data[None]).square().sum(2).fill_diagonal_(torch.inf).sort(1).values[:, [2, 4]]
    assert torch.allclose(neighbour_radii(data, (3, 5)), expected, rtol=1e-12)


def test_radii():
    data = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(data, (1, 3, 2)).tolist() == [[1, 49, 9], [1, 36, 4], [4, 16, 9], [16, 49, 36]]
    real, generated = normals(10, 40, 3), normals(11, 50, 3)
    known = neighbour_radii(real, (3, 5))
    assert manifold_scores(real, generated, real_radii=known) == manifold_scores(real, generated)
    with pytest.raises(ValueError, match="radii"):
        manifold_scores(real, generated, real_radii=known[:, :1])


def test_refused():
    with pytest.raises(ValueError, match="neighbours"):
        neighbour_radii(torch.rand(9, 2), ())
    with pytest.raises(ValueError, match="neighbours"):
        manifold_scores(torch.rand(9, 2), torch.rand(9, 2), 0)
    with pytest.raises(InputError, match="at least 6"):
        manifold_scores(torch.rand(9, 2), torch.rand(5, 2))
    with pytest.raises(InputError, match="finite"):
        manifold_scores(torch.rand(9, 2), torch.full((9, 2), torch.inf))
