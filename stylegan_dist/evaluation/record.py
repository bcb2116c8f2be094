"""Writing RUN/evaluation.jsonl. A training never writes it, an evaluator alone does. `scores_file.py` reads it."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stylegan_dist.errors import InputError
from stylegan_dist.files import try_lock, unlock_and_close, write_whole
from stylegan_dist.scores_file import NAME, Evaluation, Score, read_evaluations

LOCK_NAME = ".evaluator"
_NONE = Score(math.nan)


def add_evaluation(run_dir: Path, new: Evaluation) -> None:
    """Write one more. Other scores of the same key (`Evaluation.key`) are kept with it. The file is whole at any time.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    others = []
    for one in read_evaluations(run_dir):
        if one.key == new.key:
            new = replace(new, scores=one.scores | new.scores, by_class=new.by_class or one.by_class)
        else:
            others.append(one)
    write_whole(run_dir / NAME, "".join(json.dumps(asdict(one)) + "\n" for one in (*others, new)))


def find_known(known: Sequence[Evaluation], key: tuple[str, str, int, int, str], names: Sequence[str]) -> Evaluation | None:
    """The evaluation of this key (`Evaluation.key`) that has all of these scores, if there is one."""
    return next((one for one in known if one.key == key and one.scores.keys() >= set(names)), None)


def best_first(known: Sequence[Evaluation], settings: tuple[str, int, int, str], name: str) -> list[Evaluation]:
    """Those with these settings (`Evaluation.key` without the digest) by their score of this name.

    Of equal ones that of fewer images comes first. A score that is not finite is none.
    """
    def rank(one: Evaluation) -> tuple[float, int]:
        score = one.scores[name]
        return (score.value if score.lower_is_better else -score.value), one.nimg

    return sorted((one for one in known if one.key[1:] == settings and math.isfinite(one.scores.get(name, _NONE).value)),
                  key=rank)


@contextlib.contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """This process is the only evaluator of a run on this file system, as far as that has locks.

    Raises:
        InputError: another one is at work, or the folder cannot be written.
    """
    path = run_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"cannot write to {run_dir}: {error.strerror}") from None
    try:
        if not try_lock(descriptor, needed=False):
            raise InputError(f"another process evaluates {run_dir}: wait for it")
        yield
    finally:
        unlock_and_close(descriptor)  # a training may have forked readers meanwhile
