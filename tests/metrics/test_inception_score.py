"""The inception score: known values, splits, zeros."""

from __future__ import annotations

import math

import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import inception_score, inception_score_of_probabilities


def test_equal_predictions():
    found = inception_score(torch.full((100, 7), 3.0))
    assert found.value == pytest.approx(1, rel=1e-14)
    assert found.spread == pytest.approx(0, abs=1e-14)
    assert inception_score(normals(0, 1, 7).expand(100, -1)).value == pytest.approx(1, rel=1e-14)


def test_certain_and_balanced_predictions():
    """C with one split; less where classes of a split are not balanced."""
    one_hot = torch.eye(10).repeat(500, 1)
    assert inception_score_of_probabilities(one_hot, 1).value == pytest.approx(10, rel=1e-14)
    assert inception_score(one_hot * 1e4, 1).value == pytest.approx(10, rel=1e-14)
    shuffled = torch.eye(10)[(normals(1, 5000).sigmoid() * 1e6).long() % 10]
    assert inception_score_of_probabilities(shuffled).value == pytest.approx(9.92, abs=0.05)


def test_two_ways_in():
    logits = 3 * normals(2, 107, 9)
    a, b = inception_score(logits, 4), inception_score_of_probabilities(logits.softmax(1), 4)
    assert (a.value, a.spread) == pytest.approx((b.value, b.spread), rel=1e-12)


def test_divergence_by_its_definition():
    logits = 2 * normals(3, 53, 6)
    scores = []
    for i in range(5):
        p = logits[i * 53 // 5:(i + 1) * 53 // 5].softmax(1)
        scores.append(math.exp(float((p * (p.log() - p.mean(0).log())).sum(1).mean())))
    found = inception_score(logits, 5)
    assert found.value == pytest.approx(sum(scores) / 5, rel=1e-12)
    mean = sum(scores) / 5
    assert found.spread == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / 5), rel=1e-9)


def test_refused():
    with pytest.raises(InputError, match="at least 10"):
        inception_score(torch.rand(9, 3))
    with pytest.raises(ValueError, match="splits"):
        inception_score(torch.rand(9, 3), 0)
    with pytest.raises(ValueError, match="sum 1"):
        inception_score_of_probabilities(torch.ones(9, 3), 1)
    with pytest.raises(ValueError, match="negative"):
        inception_score_of_probabilities(torch.tensor([[2.0, -1.0]]), 1)
