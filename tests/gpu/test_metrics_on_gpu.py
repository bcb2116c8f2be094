"""Scores on a GPU are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from reference import normals

from stylegan_dist.metrics import (
    Moments,
    frechet_by_class,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
    path_lengths,
    real_floor,
    trimmed_path_length,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """On a grid and with copies: most neighbours are exactly at a radius."""
    return normals(0, 3000, 8).mul(2).round().float() / 4, normals(1, 2500, 8).mul(2).round().float() / 4


def test_decisions_are_equal(sets: tuple[torch.Tensor, torch.Tensor]):
    """Who is in a ball does not depend on how products of matrices are rounded."""
    assert manifold_scores(*(x.cuda() for x in sets)) == manifold_scores(*sets)


def test_sums_are_equal_up_to_rounding(sets: tuple[torch.Tensor, torch.Tensor]):
    real, generated = sets
    there = [x.cuda() for x in sets]
    assert torch.allclose(Moments.of(there[0]).covariance, Moments.of(real).covariance, rtol=1e-12, atol=1e-14)
    assert frechet_distance(*there) == pytest.approx(frechet_distance(*sets), rel=1e-10)
    assert frechet_distance(there[0][:5], there[1]) == pytest.approx(frechet_distance(real[:5], generated), rel=1e-10)
    assert kernel_distance(*there).value == pytest.approx(kernel_distance(*sets).value, rel=1e-8)
    assert kernel_distance(*there).error == pytest.approx(kernel_distance(*sets).error, rel=1e-6)
    assert inception_score(there[0]).value == pytest.approx(inception_score(real).value, rel=1e-10)
    assert real_floor(frechet_distance, there[0]) == pytest.approx(real_floor(frechet_distance, real), rel=1e-10)
    by_class = [frechet_by_class(a, torch.arange(3000, device=a.device) % 7, b, torch.arange(2500, device=a.device) % 7, 7)
                for a, b in (there, sets)]
    for found, expected in zip(*by_class, strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-10)
        assert found.floor == pytest.approx(expected.floor, rel=1e-10)


def test_the_same_twice(sets: tuple[torch.Tensor, torch.Tensor]):
    there = [x.cuda() for x in sets]
    assert kernel_distance(*there) == kernel_distance(*there)
    assert frechet_distance(*there) == frechet_distance(*there)


def test_path_lengths(sets: tuple[torch.Tensor, torch.Tensor]):
    w0, w1 = (x[:100].double() for x in sets)

    def lengths(device: str) -> torch.Tensor:
        place = torch.linspace(0, 1, 100)  # on the CPU
        return path_lengths(w0.to(device), w1.to(device), lambda w: w.sin(), lambda a, b: (a - b).square().sum(1), place)

    assert trimmed_path_length(lengths("cuda")).value == pytest.approx(trimmed_path_length(lengths("cpu")).value, rel=1e-6)
