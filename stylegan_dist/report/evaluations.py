"""RUN/evaluation.jsonl: the scores of checkpoints, a line each.

    {"version": 1, "nimg": 4200000, "digest": "<of the checkpoint's manifest.json>", "network": "inception", "count": 50000,
     "seed": 0, "seconds": 214.0, "time": 1764400000.0,
     "scores": {"fid": {"value": 6.81, "error": null, "floor": 1.12, "lower_is_better": true}}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegan_dist.monitor.jsonl import MAX_LINE
from stylegan_dist.records import parse_json
from stylegan_dist.report.foreign import as_float, as_nimg, lines_of, shown
from stylegan_dist.scores_file import NAME as EVALUATION_NAME
from stylegan_dist.scores_file import Score

MOST_SCORES = 64      # of a line
MOST_CHARACTERS = 80  # of a name
# Longer words before their beginnings.
NAMES = {"fid": "FID", "fd_infinity": "Fréchet distance at infinity", "fd_classes": "Fréchet distance of classes",
         "fd": "Fréchet distance", "kid": "KID", "is": "Inception score", "ppl": "Path length (PPL)", "precision": "Precision",
         "accuracy": "Accuracy of classes",
         "eq_t_frac": "Equivariance to fractional translation, dB", "eq_t": "Equivariance to translation, dB",
         "eq_r": "Equivariance to rotation, dB",
         **{f"ngrams_{n}": f"Divergence of sequences of {n} symbols, bits" for n in (1, 2, 3, 4)},
         "lines": "Lines of words alone", "words": "Words that exist", "verbatim": "Lines copied from the data",
         "distinct": "Lines that differ", "motion_differences": "Motion: differences of frames",
         "motion_correlation": "Motion: correlation over time", "motion_speed": "Motion: speed, as a factor",
         "loop_jump": "Jump from the last frame to the first, in steps",
         "recall": "Recall", "density": "Density", "coverage": "Coverage"}


@dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint by one network, from `count` images generated with `seed`.

    Attributes:
        digest: of the checkpoint's manifest.
        data: fingerprint of the real samples.
        began, time: unix seconds at which the evaluation began and ended.
    """

    nimg: int
    digest: str
    network: str
    count: int
    seed: int
    data: str
    began: float
    time: float
    scores: dict[str, Score]


def score_title(name: str, network: str = "") -> str:
    """What is read above a chart, such as "KID, clip" for kid_clip. Scores that do not name their network may be given it."""
    if name in NAMES:
        return f"{NAMES[name]}, {network}" if network else NAMES[name]
    for word, title in NAMES.items():
        if name.startswith(f"{word}_"):
            return f"{title}, {name.removeprefix(f'{word}_')}"
    return name


def read_evaluations(run_dir: Path) -> tuple[list[Evaluation], int]:
    """By images seen, and how many lines are no results.

    Of one number of images seen, network, count, seed and data, the newest counts: after a roll-back there may be another
    checkpoint.
    """
    found: dict[tuple[int, str, int, int, str], Evaluation] = {}
    names = _Names()
    wrong = 0
    for line in lines_of(run_dir / EVALUATION_NAME):
        one = _evaluation(line, names)
        if one is None:
            wrong += 1
            continue
        key = one.nimg, one.network, one.count, one.seed, one.data
        if key not in found or one.time >= found[key].time:
            found[key] = one
    return sorted(found.values(), key=lambda one: (one.nimg, one.time)), wrong


class _Names(dict[str, str]):
    """What is shown of the names of scores and networks, which are the same in all lines."""

    def __missing__(self, name: str) -> str:
        self[name] = shown(name)[:MOST_CHARACTERS]
        return self[name]


def _evaluation(line: bytes, names: _Names) -> Evaluation | None:
    try:
        content = parse_json(line, MAX_LINE)
    except ValueError:
        return None
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("scores"), dict):
        return None
    nimg = as_nimg(content.get("nimg"))
    if nimg is None:
        return None
    scores = {}
    for name, row in list(content["scores"].items())[:MOST_SCORES]:
        if isinstance(row, Mapping) and (score := _score(row)) is not None:
            scores[names[str(name)]] = score
    time, seconds = (_finite(as_float(content.get(key))) or 0.0 for key in ("time", "seconds"))
    return Evaluation(nimg, str(content.get("digest", "")), names[str(content.get("network", ""))],
                      as_nimg(content.get("count")) or 0, as_nimg(content.get("seed")) or 0, str(content.get("data", "")),
                      time - seconds, time, scores)


def _score(row: Mapping[str, Any]) -> Score | None:
    value, error, floor = (as_float(row.get(key)) for key in ("value", "error", "floor"))
    if value is None:
        return None
    return Score(value, _finite(error), _finite(floor), row.get("lower_is_better") is not False)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
