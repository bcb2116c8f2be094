"""Types of the command line's arguments: numbers in their range, and paths. Each names the argument that is wrong."""

from __future__ import annotations

from collections.abc import Callable

from stylegan_dist.errors import InputError
from stylegan_dist.paths import check_text, expand_home, user_path
from stylegan_dist.ranges import MOST_SEED, Range
from stylegan_dist.records import shorten

WORKERS = Range(1, 1024)        # processes
CELLS = Range(1, 1024)          # rows or columns of a picture
SEEDS = Range(0, MOST_SEED)
MANY = Range(1, 2**40)          # of samples
FLOAT32 = Range(-3e38, 3e38)


def whole(name: str, span: Range) -> Callable[[str], int]:
    """A type for `ArgumentParser.add_argument`: a whole number in a range. Raises InputError."""
    return lambda text: int(_number(text, name, span, int, "a whole number"))


def real(name: str, span: Range) -> Callable[[str], float]:
    """A type for `ArgumentParser.add_argument`: a number in a range. Raises InputError."""
    return lambda text: _number(text, name, span, float, "a number")


def path(name: str, url: bool = False) -> Callable[[str], str]:
    """A type for `ArgumentParser.add_argument`: a path, or with `url` also a URL, with `~` expanded. Raises InputError."""
    return lambda text: user_path(text, name, url)


def places(name: str) -> Callable[[str], str]:
    """As `path`, for what may name several places, with blanks between. Raises InputError."""
    def check(text: str) -> str:
        check_text(text, name)
        return expand_home(text, words=True)
    return check


def word(name: str) -> Callable[[str], str]:
    """A type for `ArgumentParser.add_argument`: plain text. Raises InputError."""
    def check(text: str) -> str:
        check_text(text, name)
        return text
    return check


def _number(text: str, name: str, span: Range, kind: Callable[[str], float], noun: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        raise InputError(f"{name} must be {noun} {span}, not {shorten(text)}") from None
    if number not in span:
        raise InputError(f"{name} must be {noun} {span}, not {shorten(text)}")
    return number
