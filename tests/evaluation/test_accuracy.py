"""Accuracy: the share of samples that a classifier reads as the class that was asked for."""

from __future__ import annotations

import pytest
import torch
from small_features import small_features

from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.scores import Rows, Scoring, agreement, compute_scores, describe_scores, real_scores
from stylegan_dist.features.network import Taught
from stylegan_dist.kinds import Image

NETWORK = small_features()  # whose logits are the first three features


def rows(read: list[int], asked: list[int]) -> Rows:
    """Samples that the network reads as these classes."""
    return Rows(torch.nn.functional.one_hot(torch.tensor(read), 16).float(), torch.tensor(asked))


def test_constructed_samples():
    """Three of four with labels are read as asked; one has no label. The error is that of a share of four."""
    samples = rows([0, 1, 2, 0, 1], [0, 1, 2, 1, -1])
    score = agreement(samples.features, samples.labels, NETWORK)
    assert (score.value, score.error, score.lower_is_better) == (0.75, pytest.approx((0.75 * 0.25 / 4) ** 0.5), False)
    with pytest.raises(InputError, match="none of the samples has a label"):
        agreement(samples.features, torch.full((5,), -1), NETWORK)


def test_beside_it_stands_that_of_real_samples():
    """Of those that the training of the network has held out, if it has learnt this data; else of all."""
    real, generated = rows([0, 1, 2, 2], [0, 1, 2, 0]), rows([0, 1, 1, 1], [0, 1, 2, 0])
    network = small_features()
    for fingerprint, expected in (("this", 0.875), ("other", 0.75)):
        network.taught = Taught(fingerprint, 0.875, Image())
        scoring = Scoring(network, ("accuracy",))
        floors = real_scores(real, scoring, "this")
        assert floors == {"accuracy_small": expected}
        score = compute_scores(real, generated, scoring, floors)["accuracy_small"]
        assert (score.value, score.floor, score.lower_is_better) == (0.5, expected, False)
        assert describe_scores({"accuracy_small": score}, "small") == f"accuracy 0.50 +- 0.25 (of real ones {expected:.2f})"
