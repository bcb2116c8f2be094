"""Checks paths and other text that a user typed, and expands `~`."""

from __future__ import annotations

import os
import re

from stylegan_dist.errors import InputError
from stylegan_dist.records import shorten
from stylegan_dist.redact import mask_location

MOST_CHARACTERS = 1 << 16    # of a text; a list of data sets may be long
MOST_PATH_BYTES = 4095       # of one path, the limit of Linux
_HOME = re.compile(r"(?<!\S)~[^/\s@]*")      # at the beginning of a word
_URL = re.compile(r"[a-zA-Z][\w+.-]*://")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates stand for bytes that are not UTF-8


def is_plain(text: str) -> bool:
    """Whether it has no control characters, and nothing that is not UTF-8."""
    return not _CONTROL.search(text)


def check_text(text: str, name: str) -> str:
    """The text, unless no file system, terminal or log can take it.

    Args:
        name: what it is, for the message.
    Raises:
        InputError: it holds control characters, or bytes that are not UTF-8, or is very long.
    """
    if wrong := _CONTROL.search(text):
        kind = "bytes that are not UTF-8" if wrong[0] > "\x7f" else f"the control character {wrong[0]!r}"
        raise InputError(f"{name} must be plain text, but {shorten(text)} holds {kind}")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{name} has {len(text)} characters, more than the {MOST_CHARACTERS} that it may have")
    return text


def expand_home(text: str, words: bool = False) -> str:
    """Replace `~` and `~name` at the beginning by the home folder. Shells do not do this in key=value.

    Args:
        words: at the beginning of each word, too: the text may name several places.

    Raises:
        InputError: the home folder is unknown.
    """
    def home(match: re.Match) -> str:
        found = os.path.expanduser(match[0])
        if found == match[0]:
            missing = "HOME is not set" if found == "~" else "there is no such user"
            raise InputError(f"{shorten(text)}: {match[0]} stands for no folder here, because {missing}: write the path out")
        return found
    if words and not text.startswith("~") and os.path.exists(text):  # one place, whose name has blanks
        return text
    return _HOME.sub(home, text) if words else re.sub(r"\A" + _HOME.pattern, home, text)


def check_no_url(text: str, name: str) -> None:
    """Raise InputError for a URL. As a path of this machine it would become a folder named like `s3:`."""
    if _URL.match(text):
        raise InputError(f"{name} must be on this machine, not at {mask_location(text)}: give a path")


def user_path(text: str, name: str, url: bool = True) -> str:
    """A path or URL of the command line: checked, with `~` expanded.

    Args:
        url: whether it may be a URL.
    Raises:
        InputError: as `check_text`, `expand_home` and `check_no_url`; it is empty; or longer than any path.
    """
    check_text(text, name)
    if not url:
        check_no_url(text, name)
    if not text:
        raise InputError(f"{name} is empty: give a path")
    if len(text.encode()) > MOST_PATH_BYTES:
        raise InputError(f"{name} has {len(text.encode())} bytes, more than the {MOST_PATH_BYTES} that a path may have")
    return expand_home(text)
