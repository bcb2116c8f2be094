"""Scores of generated samples against real ones, from their features."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from stylegan_dist.config.schema import DEFAULT_METRICS
from stylegan_dist.errors import InputError
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.kinds.scores import SampleMetric
from stylegan_dist.metrics import (
    ClassDistance,
    InceptionScore,
    ManifoldScores,
    equivariance_score,
    frechet_by_class,
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    manifold_scores,
    real_floor,
    trimmed_path_length,
)
from stylegan_dist.scores_file import Score

SPLITS = 10  # of the inception score
# Name of a metric -> what it says.
METRICS = {
    "fd": "Fréchet distance; with the network inception it is the FID (`fid` is the same word here)",
    "kid": "kernel distance, with its standard error",
    "pr": "precision, recall, density, coverage",
    "is": "inception score, of a network that classifies",
    "infinity": "Fréchet distance, extrapolated to infinitely many samples",
    "accuracy": "share of the samples of a conditional generator that a network of `train-features` reads as their class",
    "classes": "mean of the Fréchet distances of the classes, and these",
    "ppl": "perceptual path length in W",
    "eq_t": "equivariance to translations by whole pixels, in decibel; of families that can move their content",
    "eq_t_frac": "likewise, by any amount",
    "eq_r": "likewise, to rotations",
}
AUTO = "auto"  # the metrics of the kind of samples, or those of pictures
EQUIVARIANCE = ("eq_t", "eq_t_frac", "eq_r")  # scores without a feature network
_WORDS = {"infinity": "fd_infinity", "classes": "fd_classes"}  # in the names of scores
SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Rows:
    """What is known of samples, by their numbers.

    Attributes:
        features: float32 [n, d].
        labels: int64 [n]; None where they have none.
        path_lengths: float32 [n], of as many pairs; None where nobody asked for them.
        motion_errors: name of a metric of equivariance -> float32 [n, 2].
        own: name of a metric of the kind of samples -> float32 [m, width] on the CPU (`SampleMetric.rows`).
    """

    features: Tensor
    labels: Tensor | None = None
    path_lengths: Tensor | None = None
    motion_errors: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Rows:
        labels, lengths = (None if one is None else one.to(device) for one in (self.labels, self.path_lengths))
        return Rows(self.features.to(device), labels, lengths, self.motion_errors, self.own)


def parse_metrics(text: str, where: str = "--metrics ", own: Collection[str] = ()) -> tuple[str, ...]:
    """Metrics from "fid,kid,pr", or AUTO.

    Args:
        where: the text stands, for the message.
        own: the metrics of the kind of samples.
    Raises:
        InputError: one is not known.
    """
    known = (*own, *METRICS)
    if text.strip() == AUTO:
        text = ",".join(own) or DEFAULT_METRICS
    names = ["fd" if name == "fid" else name for name in (part.strip() for part in text.split(",")) if name]
    for name in names:
        if name not in known:
            raise InputError(f"{where}{text}: there is no {name}; give some of {', '.join(known)}")
    if not names:
        raise InputError(f"{where}{text!r} names none; give some of {', '.join(known)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Scoring:
    """Which metrics are computed, and with what.

    Attributes:
        own: those that are of the kind of samples.
    """

    network: FeatureNetwork
    metrics: Sequence[str]
    own: Mapping[str, SampleMetric] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Of the scores, the first one of each metric first."""
        found: list[str] = []
        for metric in self.metrics:
            if metric in self.own:
                found += self.own[metric].scores
                continue
            words = [one.name for one in fields(ManifoldScores)] if metric == "pr" else [_WORDS.get(metric, metric)]
            found += words if metric in EQUIVARIANCE else [self.network.score_name(word) for word in words]
        return found


def real_scores(real: Rows, scoring: Scoring, data: str = "") -> dict[str, float]:
    """The floors: the scores by name of one half of the real samples against the other; the inception score of all of them,
    and the accuracy on those that the network has not been trained on.

    Args:
        data: fingerprint of the real samples.
    Raises:
        InputError: too few samples, or the network does not classify.
    """
    network, metrics = scoring.network, scoring.metrics
    halved = Scoring(network, [metric for metric in metrics if metric in ("fd", "kid", "pr")])
    floors = real_floor(lambda one, other: compute_scores(Rows(one), Rows(other), halved, {}),
                        real.features) if halved.metrics else {}
    values = {name: score.value for name, score in floors.items()}
    if "is" in metrics:
        values[network.score_name("is")] = _inception_score(real.features, network).value
    if "accuracy" in metrics:
        values[network.score_name("accuracy")] = _real_accuracy(real, network, data)
    return values


def _real_accuracy(real: Rows, network: FeatureNetwork, data: str) -> float:
    """Of real samples that the network was not trained on, as far as that is known: of those that its training has held out,
    or of all where these are other data."""
    if network.taught and network.taught.fingerprint == data:
        return network.taught.accuracy
    assert real.labels is not None
    return agreement(real.features, real.labels, network).value


def agreement(features: Tensor, labels: Tensor, network: FeatureNetwork) -> Score:
    """The share of samples that a classifier reads as their class.

    Args:
        features: float32 [n, d] of the network.
        labels: int64 [n], -1 for none.
    Raises:
        InputError: none has one.
    """
    known = labels >= 0
    if not known.any():
        raise InputError("--metrics accuracy: none of the samples has a label: leave it out")
    read = network.classify(features[known]).argmax(1).to(labels.device)
    share, count = float((read == labels[known]).double().mean()), int(known.sum())
    return Score(share, math.sqrt(share * (1 - share) / count), lower_is_better=False)


def class_distances(real: Rows, generated: Rows, classes: int) -> tuple[ClassDistance, ...]:
    """The Fréchet distance of each class.

    Raises:
        InputError: no class has enough samples.
    """
    assert real.labels is not None
    assert generated.labels is not None
    found = tuple(frechet_by_class(real.features, real.labels, generated.features, generated.labels, classes))
    if all(one.value is None for one in found):
        raise InputError("--metrics classes: no class has two real and two generated samples: use a larger --count")
    return found


def compute_scores(real: Rows, generated: Rows, scoring: Scoring, floors: Mapping[str, float],
                   by_class: Sequence[ClassDistance] = ()) -> dict[str, Score]:
    """Scores by name, each with its floor.

    Args:
        real, generated: on one device.
        floors: of `real_scores`.
        by_class: of `class_distances`, for the metric "classes".
    Raises:
        InputError: too few samples, or the network does not classify.
    """
    scores: dict[str, Score] = {}
    network, own = scoring.network, scoring.own

    def add(what: str, value: float, error: float | None = None, lower_is_better: bool = True) -> None:
        name = network.score_name(what)
        scores[name] = Score(value, error, floors.get(name), lower_is_better)

    for metric in scoring.metrics:
        if metric in own:
            measured = own[metric].measure(real.own[metric], generated.own[metric])
            scores |= {name: Score(*measured[name]) for name in own[metric].scores}
        elif metric == "fd":
            add("fd", frechet_distance(real.features, generated.features))
        elif metric == "kid":
            distance = kernel_distance(real.features, generated.features)
            add("kid", distance.value, distance.error)
        elif metric == "pr":
            for what, value in vars(manifold_scores(real.features, generated.features)).items():
                add(what, value, lower_is_better=False)
        elif metric == "is":
            score = _inception_score(generated.features, network)
            add("is", score.value, score.spread / math.sqrt(SPLITS), lower_is_better=False)
        elif metric == "infinity":
            line = frechet_infinity(real.features, generated.features)
            add("fd_infinity", line.value, line.residual)
        elif metric == "ppl":
            assert generated.path_lengths is not None
            length = trimmed_path_length(generated.path_lengths)
            add("ppl", length.value, length.error)
        elif metric == "accuracy":
            assert generated.labels is not None
            read = agreement(generated.features, generated.labels, network)
            add("accuracy", read.value, read.error, lower_is_better=False)
        elif metric in EQUIVARIANCE:
            ratio = equivariance_score(generated.motion_errors[metric])
            scores[metric] = Score(ratio.value, ratio.error, lower_is_better=False)
        elif metric == "classes":
            floor = [one.floor for one in by_class if one.floor is not None]
            name = network.score_name("fd_classes")
            scores[name] = Score(statistics.fmean(one.value for one in by_class if one.value is not None),
                                 floor=statistics.fmean(floor) if floor else None)
    return scores


def _inception_score(features: Tensor, network: FeatureNetwork) -> InceptionScore:
    if not network.classes:
        raise InputError(f"--metrics is: the network {network.name} does not classify; choose another --network")
    return inception_score(network.classify(features), SPLITS)


def describe_scores(scores: dict[str, Score], network: str) -> str:
    """On one line, for people, which is to say which network that was."""
    parts = []
    for name, score in scores.items():
        text = f"{name.removesuffix(f'_{network}')} {_number(score.value)}"
        if score.error is not None:
            text += f" +- {_number(score.error)}"
        if score.floor is not None and (score.lower_is_better or not name.endswith(f"_{network}")):
            text += f" (real against real {_number(score.floor)})"
        elif score.floor is not None and name.startswith("accuracy_"):
            text += f" (of real ones {_number(score.floor)})"
        parts.append(text)
    return "   ".join(parts)


def describe_classes(by_class: Sequence[ClassDistance]) -> str:
    """The classes with the largest distances on one line, for people."""
    worst = sorted(((one.value, label) for label, one in enumerate(by_class) if one.value is not None), reverse=True)
    parts = [f"{label}: {_number(value)}" for value, label in worst[:SHOWN_CLASSES]]
    return f"classes with the largest Fréchet distances: {', '.join(parts)}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
