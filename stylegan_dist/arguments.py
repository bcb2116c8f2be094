"""Verbs of the command line, and types of their arguments: numbers in a range, paths, text. An error names the argument."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

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


def pair(name: str, span: Range) -> Callable[[str], tuple[float, float]]:
    """As `whole`, for two numbers with a comma between."""
    def parse(text: str) -> tuple[float, float]:
        first, _, second = text.partition(",")
        try:
            return _number(first, name, span, float, ""), _number(second, name, span, float, "")
        except InputError:
            raise InputError(f"{name} must be two numbers {span}, such as 0.1,0, not {shorten(text)}") from None

    return parse


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


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], **words: str) -> argparse.ArgumentParser:
    """Add a verb, which calls `run`, to the result of `ArgumentParser.add_subparsers`.

    Args:
        words: `help`, `description` and `epilog`, laid out as they are.
    """
    parser = verbs.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **words)
    parser.set_defaults(run=run)
    return parser


def add_training(parser: argparse.ArgumentParser, samples: str, least: int, decided: str) -> None:
    """Options of a verb that trains a small network on a shard set.

    Args:
        samples: what they are, for people.
        least: thousands of them that it is trained on, unless `--kimg` says something else.
        decided: by the seed.
    """
    parser.add_argument("--kimg", type=real("--kimg", Range(above=0, most=1e9)),
                        help=f"thousands of {samples} to train on (default: the data ten times, and {least} at least)")
    parser.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help=f"decides {decided} (default: %(default)s)")
    parser.add_argument("--workers", type=whole("--workers", Range(0, WORKERS.most)), default=0,
                        help=f"reader processes; 0 reads in this process, enough for small {samples} (default: %(default)s)")
    parser.add_argument("--device", type=word("--device"), help="cpu or cuda (default: cuda if there is one)")


def training_of(args: argparse.Namespace) -> tuple[int, int | None, str, int]:
    """What these options say: seed, images (None: by the data), device, readers."""
    import torch  # here: it takes a second

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return args.seed, None if args.kimg is None else max(1, round(args.kimg * 1000)), device, args.workers


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add `--nimg` and `--best`, which say which checkpoint of a run is meant: `which` of the result, None for the newest."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--nimg", dest="which", type=whole("--nimg", MANY), metavar="N",
                        help="the checkpoint at so many images (default: the newest)")
    choice.add_argument("--best", dest="which", action="store_const", const="best",
                        help="the checkpoint with the best score (stylegan-dist evaluate)")
