"""Pieces of files that others may have written: lines, numbers, messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegan_dist.files import open_regular
from stylegan_dist.monitor.jsonl import MAX_LINE
from stylegan_dist.redact import redact

MOST_NIMG = 2**63 - 1
LONGEST = 500  # characters of a message that are shown
LOOKED_AT = 4000  # characters of a message that are searched for secrets


def lines_of(path: Path, longest: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of a file, without their ends. Empty where it cannot be read. A line that is too long is cut off."""
    try:
        with open_regular(path) as file:
            while line := file.readline(longest):
                yield line.rstrip(b"\n")
                while not line.endswith(b"\n") and (line := file.readline(longest)):
                    pass
    except OSError:
        return


def as_float(value: Any) -> float | None:
    """A number of a record, or None for what is none. NaN and infinity are written as strings."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def as_nimg(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MOST_NIMG else None


def shown(text: str) -> str:
    """A message of a file: secrets masked, and not too long."""
    text = redact(text[:LOOKED_AT])
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + "\u2026"
