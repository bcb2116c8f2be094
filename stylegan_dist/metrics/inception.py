"""The inception score (Salimans et al. 2016, "Improved techniques for training GANs", section 4), of any classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.metrics.features import check_features


@dataclass(frozen=True)
class InceptionScore:
    """Between 1 and the number of classes, higher is better.

    Attributes:
        value: mean over the splits.
        spread: standard deviation over them, with the divisor splits, as in their code. It is that of a split, not of the mean.
    """

    value: float
    spread: float


def inception_score(logits: Tensor, splits: int = 10) -> InceptionScore:
    """exp of the mean divergence of p(class | image) from p(class), in each split of consecutive images.

    The score of n images is biased downwards, the more the smaller the splits are (Chong and Forsyth 2020): compare at equal n
    and splits. The order of the images must say nothing of their classes.

    Args:
        logits: [n, classes], floating.
        splits: parts of the images, equal to one image.
    Raises:
        ValueError: another shape; no split.
        InputError: fewer images than splits; values that are not finite.
    """
    _check(logits, splits)
    return _score([part.double().softmax(1) for part in _split(logits, splits)])


def inception_score_of_probabilities(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """The same of p(class | image), [n, classes]. Zeros are allowed.

    Raises:
        ValueError, InputError: as `inception_score`; ValueError: rows that are no probabilities.
    """
    _check(probabilities, splits)
    if (probabilities < 0).any() or ((probabilities.double().sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("probabilities must not be negative, and each row must have the sum 1")
    return _score([part.double() for part in _split(probabilities, splits)])


def _check(values: Tensor, splits: int) -> None:
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    check_features(values, "predictions", splits)


def _split(values: Tensor, splits: int) -> list[Tensor]:
    """At the same places as their code."""
    return [values[i * len(values) // splits:(i + 1) * len(values) // splits] for i in range(splits)]


def _score(parts: list[Tensor]) -> InceptionScore:
    """Args: parts: p(class | image) of each split, float64 [n, classes]."""
    scores = []
    for part in parts:
        # Mean divergence = entropy of the mean - mean entropy; entr(0) = 0.
        divergence = torch.special.entr(part.mean(0)).sum() - torch.special.entr(part).sum(1).mean()
        scores.append(math.exp(float(divergence)))
    values = torch.tensor(scores, dtype=torch.float64)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))
