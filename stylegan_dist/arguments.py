"""Types for `ArgumentParser.add_argument`: numbers in a range, paths and text. An error names the argument that is
wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from stylegan_dist.errors import InputError
from stylegan_dist.paths import check_text, expand_home, user_path
from stylegan_dist.ranges import MOST_SEED, Range
from stylegan_dist.records import shorten

WORKERS = Range(1, 1024)        # processes
CELLS = Range(1, 1024)          # rows or columns of a picture
SEEDS = Range(0, MOST_SEED)
MANY = Range(1, 2**40)          # of samples
FLOAT32 = Range(-3e38, 3e38)

Number = TypeVar("Number", int, float)


def whole(name: str, span: Range) -> Callable[[str], int]:
    """A type for `ArgumentParser.add_argument`: a whole number in a range. Raises InputError."""
    return lambda text: _number(text, name, span, int, "a whole number")


def real(name: str, span: Range) -> Callable[[str], float]:
    """As `whole`, for any number."""
    return lambda text: _number(text, name, span, float, "a number")


def path(name: str, url: bool = False) -> Callable[[str], str]:
    """As `whole`, for a path, or with `url` also a URL, with `~` expanded."""
    return lambda text: user_path(text, name, url)


def places(name: str) -> Callable[[str], str]:
    """As `path`, for what may name several places, with blanks between."""
    return lambda text: expand_home(check_text(text, name), words=True)


def word(name: str) -> Callable[[str], str]:
    """As `whole`, for plain text."""
    return lambda text: check_text(text, name)


def _number(text: str, name: str, span: Range, kind: Callable[[str], Number], noun: str) -> Number:
    with contextlib.suppress(ValueError):
        if (number := kind(text)) in span:
            return number
    raise InputError(f"{name} must be {noun} {span}, not {shorten(text)}")
