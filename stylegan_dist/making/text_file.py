"""A file of text as a source: each of its lines, or pieces of it, is what a file of a folder is."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.kinds import TextOptions
from stylegan_dist.kinds.text import CLEANINGS, MOST_SYMBOLS, RESOLUTIONS, alphabet, pieces_of, side_of
from stylegan_dist.making.containers import MAX_FILE_BYTES, Files, state_of
from stylegan_dist.making.sources import Listing
from stylegan_dist.randomness import permutation

PYTHON_DOCS = "python-docs"  # in place of a path: what `help()` of Python knows of its language
HELD_OUT = "held out, for scores"
_HELD_OUT_SHARE, _HELD_OUT_LINES = 10, 1000  # one of so many, and so many at most


class Lines(Files):
    """Lines of text by their numbers."""

    def __init__(self, paths: list[Path], lines: list[str]):
        super().__init__(paths)
        self.lines = lines
        self.met = len(lines)

    def list(self) -> dict[str, str]:
        names = {name_of(i): f"{zlib.crc32(line.encode()):08x}" for i, line in enumerate(self.lines)}
        return {name: version for name, version in names.items() if name not in self.left_out}

    def state(self, names: Iterable[str]) -> str:
        return state_of(self.paths)

    def _read(self, name: str, most: int | None) -> bytes:
        return self.lines[int(name.removesuffix(".txt"))].encode()[:most]


def name_of(number: int) -> str:
    """Of a line among files."""
    return f"{number:09d}.txt"


def open_text(place: str, options: TextOptions, seed: int) -> tuple[Listing, TextOptions]:
    """The lines of a file that become samples, and the options with what follows from them.

    Held-out lines are drawn by their numbers. A line that is in the file several times may be among both.

    Args:
        place: a file in UTF-8, or PYTHON_DOCS.
        seed: of the draw.
    Raises:
        InputError: no such file; it is no text, or has no line that fits; too many symbols.
    """
    path = Path(place)
    if place == PYTHON_DOCS and not path.exists():
        paths, text = [], python_docs()
    else:
        paths, text = [path], _text(path)
    lines = pieces_of(text, options)
    if not lines:
        raise InputError(f"{place} holds no text that fits: is it empty? With --unit word and words, words of at most --length "
                         f"{options.length} symbols count")
    files = Lines(paths, lines)
    fitting = [i for i, line in enumerate(lines) if len(line) <= options.length]
    if not fitting:
        raise InputError(f"{place}: none of its {len(lines)} lines has at most {options.length} symbols, the shortest has "
                         f"{min(map(len, lines))}: give a larger --length, or --unit words")
    files.left_out = {name_of(i): f"of more than {options.length} symbols" for i, line in enumerate(lines)
                      if len(line) > options.length}
    count = options.held_out
    if count is None:
        count = min(len(fitting) // _HELD_OUT_SHARE, _HELD_OUT_LINES)
    if count >= len(fitting):
        raise InputError(f"{place} has {len(fitting)} lines of at most {options.length} symbols, of which {count} cannot be "
                         "held out and others be trained on: give a larger --length, --unit words, or a smaller --held-out")
    held_out = [fitting[i] for i in permutation(seed, "pack.held_out", 0, len(fitting))[:count]]
    files.left_out |= {name_of(i): HELD_OUT for i in held_out}
    symbols = alphabet([lines[i] for i in fitting])
    if len(symbols) > MOST_SYMBOLS:
        raise InputError(f"{place} has {len(symbols)} different symbols, more than {MOST_SYMBOLS}: {_fewer(text, options)}")
    side = side_of(len(symbols), options.length)
    assert side <= RESOLUTIONS[-1]
    options = replace(options, symbols=symbols, resolution=side, held_out_lines=tuple(lines[i] for i in sorted(held_out)))
    return Listing(files, files.list()), options


def _fewer(text: str, options: TextOptions) -> str:
    """What to do about a text of too many symbols."""
    for clean in CLEANINGS[CLEANINGS.index(options.clean) + 1:]:
        pieces = pieces_of(text, replace(options, clean=clean))
        if len(alphabet([piece for piece in pieces if len(piece) <= options.length])) <= MOST_SYMBOLS:
            return f"--clean {clean} leaves few enough"
    return "replace the rare ones; scripts with as many letters cannot be used"


def python_docs() -> str:
    """The topics of Python's own help, which come with it: some 460,000 characters."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; --text takes a file of text, or "
                         f"{PYTHON_DOCS}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path} has more than {MAX_FILE_BYTES >> 20} MiB: give a part of it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 (byte {error.start}): convert it, for example with iconv") from None
    if "\0" in text:
        raise InputError(f"{path} is no text: it has a zero byte")
    return text
