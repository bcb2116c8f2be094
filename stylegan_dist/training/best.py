"""The checkpoint with the best score so far: `checkpoints/best.json`. A run does not remove that one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular, write_whole
from stylegan_dist.records import read_record
from stylegan_dist.training.saved import FOLDER, checkpoint_folder

BEST_NAME = "best.json"
MAX_JSON = 1 << 16  # bytes
_told: set[str] = set()  # what is wrong with the file, said once


@dataclass(frozen=True)
class Best:
    """The content of best.json.

    Attributes:
        settings: of the scores that were compared, in words.
    """

    metric: str
    nimg: Annotated[int, Field(ge=1, le=2**63 - 1)]
    value: float
    settings: str = ""


def read_best(run_dir: Path) -> Best | None:
    """The checkpoint with the best score so far, or None.

    Raises:
        InputError: best.json is damaged.
    """
    path = run_dir / FOLDER / BEST_NAME
    try:
        with open_regular(path) as file:
            return read_record(Best, file.read(MAX_JSON + 1), MAX_JSON)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and score the checkpoints again") from None


def remember_best(run_dir: Path, metric: str, nimg: int, value: float, settings: str = "") -> bool:
    """Note that a checkpoint has the best score so far, so that it is kept. Returns whether that is so.

    A score that is not finite is none.

    The run may be removing checkpoints at the same time, in another process. It hides one, reads best.json, and shows it again
    if it is named there. This function writes best.json, and then looks for the checkpoint. In whatever order that happens, one
    of the two sees what the other did. If this returns True, the checkpoint stays, unless the run goes back to an earlier one.

    Raises:
        OSError: best.json cannot be written.
    """
    path, folder = run_dir / FOLDER / BEST_NAME, checkpoint_folder(run_dir, nimg)
    if not math.isfinite(value) or not folder.is_dir():
        return False
    try:
        before = read_best(run_dir)
    except InputError:
        before = None
    write_whole(path, json.dumps(vars(Best(metric, nimg, value, settings))) + "\n")
    if folder.is_dir():
        return True
    if before:
        write_whole(path, json.dumps(vars(before)) + "\n")
    else:
        path.unlink(missing_ok=True)
    return False


def forget_best(run_dir: Path, beyond: int) -> None:
    """Remove best.json if it names a checkpoint with more than `beyond` images, or is damaged."""
    try:
        best = read_best(run_dir)
    except InputError:
        best = None
    if best is None or best.nimg > beyond:
        (run_dir / FOLDER / BEST_NAME).unlink(missing_ok=True)


def is_best(run_dir: Path, nimg: int, news: list[str]) -> bool:
    """Whether best.json names this checkpoint. What is wrong with the file is added to `news`, once."""
    try:
        best = read_best(run_dir)
    except InputError as error:
        if str(error) not in _told:
            _told.add(str(error))
            news.append(str(error))
        return False
    return best is not None and best.nimg == nimg
