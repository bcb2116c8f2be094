"""The scores put sets in the order of what is wrong with them, from pixels on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_features import small_features
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.record import Score
from stylegan_dist.evaluation.scores import METRICS, Rows, Scoring, compute_scores, parse_metrics

COUNT = 200
NETWORK = small_features()


def pictures(first: int, classes: int = 2) -> Tensor:
    """Smooth pictures [n, 3, 16, 16], those of class 0 dark and those of class 1 bright."""
    numbers = torch.arange(first, first + COUNT)
    shapes = F.interpolate(randomness.normal(0, "test.pictures", numbers, (3, 4, 4)), (16, 16), mode="bicubic")
    return 80 + 96 * (numbers % classes).view(-1, 1, 1, 1) + 20 * shapes


def scores_of(generated: Tensor) -> dict[str, Score]:
    """Against real pictures, by names without that of the network."""
    real, other = (Rows(NETWORK(one.round().clamp(0, 255).to(torch.uint8))) for one in (pictures(0), generated))
    return {name.removesuffix("_small"): score
            for name, score in compute_scores(real, other, Scoring(NETWORK, ("fd", "kid", "pr")), {}).items()}


def test_more_noise_is_worse():
    """Recall is left out: noise makes the balls of a set larger, so that recall rises before it falls."""
    noise = randomness.normal(0, "test.noise", torch.arange(COUNT), (3, 16, 16))
    clean, noisy, noisiest = (scores_of(pictures(COUNT) + strength * noise) for strength in (0, 32, 64))
    assert clean["fd"].value < noisy["fd"].value < noisiest["fd"].value
    assert clean["kid"].value < noisy["kid"].value < noisiest["kid"].value
    for name in ("precision", "density", "coverage"):  # nothing is left of them at the most noise
        assert clean[name].value > 5 * noisy[name].value >= 5 * noisiest[name].value
    assert abs(clean["kid"].value) < 4 * clean["kid"].error
    assert noisiest["kid"].value > 4 * noisiest["kid"].error


def test_a_missing_class_costs_coverage_and_not_precision():
    whole, half = scores_of(pictures(COUNT)), scores_of(pictures(COUNT, classes=1))
    assert half["precision"].value > 0.9 * whole["precision"].value
    for name in ("recall", "coverage"):
        assert half[name].value < 0.65 * whole[name].value
    assert half["kid"].value > whole["kid"].value + 4 * half["kid"].error
    assert half["fd"].value > 2 * whole["fd"].value


def test_metrics_by_name():
    assert parse_metrics("fid, kid,fd") == ("fd", "kid")
    assert set(parse_metrics(",".join(METRICS))) == set(METRICS)
    for text in ("", ",", "fvd", "fid,fvd"):
        with pytest.raises(InputError, match="--metrics"):
            parse_metrics(text)
