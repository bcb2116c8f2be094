"""RUN/evaluation.jsonl, for those who read it: a line for each evaluation of a checkpoint.

An evaluator alone writes it (`evaluation/record.py`), while the run may be training. Trackers and the report read it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.metrics import ClassDistance
from stylegan_dist.records import Count, Digest, read_record

NAME = "evaluation.jsonl"
MAX_LINE = 1 << 20    # bytes
MOST_CLASSES = 5_000  # whose distances stand in a line, which has about 100 bytes for each


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        error: one standard error; None where none is known.
        floor: the same score of real samples against other real ones; None where that means nothing.
    """

    value: float
    error: float | None = None
    floor: float | None = None
    lower_is_better: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What one checkpoint is worth.

    Attributes:
        nimg: images seen.
        digest: of the checkpoint (`Snapshot.digest`). Other weights after as many images have another.
        network: of features, by its name and the SHA-256 of its weights.
        count: samples drawn.
        seed: with which they were drawn.
        data: fingerprint of the real samples.
        seconds: that it took.
        time: unix seconds at its end.
        by_class: Fréchet distances of the classes, where they were asked for and there are not more than `MOST_CLASSES`.
    """

    version: Literal[1]
    nimg: Annotated[int, Field(ge=1, le=2**63 - 1)]
    digest: Digest
    network: str
    network_sha256: Digest
    count: Count
    seed: Count
    data: str
    seconds: float
    time: float
    scores: dict[str, Score]
    by_class: tuple[ClassDistance, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What was evaluated, and how. Scores of one key stand in one line."""
        return self.digest, self.network_sha256, self.count, self.seed, self.data


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """All that can be read, in the order of the file. Damaged lines are passed over: they can be evaluated again.

    Raises:
        InputError: the file is there and cannot be read.
    """
    found = []
    try:
        with open_regular(run_dir / NAME) as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found.append(read_record(Evaluation, line, MAX_LINE))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{run_dir / NAME} cannot be read ({error.strerror or error})") from None
    return found
