"""Lines of text of T positions over V symbols, as arrays [1, R, R] of zeros and ones: rows are symbols, columns positions.

R is the smallest side of samples that holds both. A line that is shorter is filled up with blanks, the first symbol, so that
each column has a single one. In a shard set a sample is the line itself, in UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from torch import Tensor

from stylegan_dist.files import write_whole
from stylegan_dist.kinds.array import Array, TextForm
from stylegan_dist.kinds.base import RESOLUTIONS, Decode, Kind, Packing, Sample, option
from stylegan_dist.kinds.scores import SampleMetric
from stylegan_dist.kinds.text_scores import Copies, Ngrams, Words, likeliest, spelled
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

BLANK = " "
MOST_SYMBOLS = 255
MOST_HELD_OUT = 2000        # lines, which stand in the index and in every checkpoint
UNITS = ("line", "words", "word", "window")
CLEANINGS = ("none", "lower", "letters")
_LETTER = 8, 16             # pixels of a picture


@dataclass(frozen=True)
class Text(Array):
    """Arrays with `text`. The network sees zeros and ones, and the probabilities of the symbols."""

    noun = "lines of text"

    def layout(self, channels: int) -> str:
        return f"{self.form.length} positions, {len(self.form.symbols)} symbols"

    def check(self, resolution: int, channels: int) -> None:
        super().check(resolution, channels)
        symbols, length = self.form.symbols, self.form.length
        if not 2 <= len(symbols) <= MOST_SYMBOLS or len(set(symbols)) != len(symbols) or symbols[0] != BLANK:
            raise ValueError(f"an alphabet of {len(symbols)} symbols instead of 2 to {MOST_SYMBOLS} different ones with a "
                             "blank before the others")
        if length < 1 or side_of(len(symbols), length) != resolution:
            raise ValueError(f"text of {shorten(length)} positions and {len(symbols)} symbols is not an array of {resolution} "
                             f"x {resolution}")
        if (self.dtype, self.offset, self.scale, channels) != ("uint8", (0.0,), (1.0,), 1):
            raise ValueError("text is one channel of uint8 with offset 0 and scale 1")
        if len(self.form.held_out) > MOST_HELD_OUT:
            raise ValueError(f"{len(self.form.held_out)} held-out lines instead of at most {MOST_HELD_OUT}")
        for line in self.form.held_out:
            indices_of(line, self.form)

    def decoder(self, strict: bool) -> Decode:
        return partial(decode_line, self.form)

    @property
    def why_not_mirrored(self) -> str:
        return "lines would be read backwards: set data.mirror=false"

    def settings(self) -> Mapping[str, int]:
        return {"symbols": len(self.form.symbols), "length": self.form.length}

    def metrics(self) -> Mapping[str, SampleMetric]:
        return {"ngrams": Ngrams(self.form), "words": Words(self.form), "copies": Copies(self.form)}

    def lines(self, values: Tensor) -> list[str]:
        return spelled(likeliest(values, self.form), self.form)

    def from_network(self, values: Tensor) -> Tensor:
        """Zeros and ones: the likeliest symbol of each position."""
        return torch.zeros_like(values).scatter_(2, values.argmax(2, keepdim=True), 1).to(torch.uint8)

    def as_pictures(self, values: Tensor) -> Tensor:
        """The likeliest lines as black letters on white, [N, 1, 16, 8 T]."""
        width, height = _LETTER
        font = ImageFont.load_default()
        pictures = []
        for line in self.lines(values):
            sheet = Pillow.new("L", (max(width * self.form.length, 4 * height), height), "white")
            ImageDraw.Draw(sheet).text((2, 2), line, fill="black", font=font)
            pictures.append(torch.from_numpy(np.array(sheet)))
        return (torch.stack(pictures)[:, None].to(values.device).float() / 127.5) - 1

    def save(self, path: Path, values: Tensor) -> None:
        write_whole(path.with_suffix(".txt"), self.lines(values[None])[0] + "\n")

    @property
    def form(self) -> TextForm:
        assert self.text, "it is text"
        return self.text


def side_of(symbols: int, length: int) -> int:
    """The side of the arrays; 0 where there are no such large ones."""
    return next((side for side in RESOLUTIONS if side >= max(symbols, length)), 0)


def indices_of(line: str, form: TextForm) -> list[int]:
    """The numbers of the symbols of a line. Raises ValueError where one is unknown, or the line is too long."""
    if len(line) > form.length:
        raise ValueError(f"a line of {len(line)} symbols instead of at most {form.length}")
    found = [form.symbols.find(symbol) for symbol in line]
    if -1 in found:
        raise ValueError(f"the symbol {line[found.index(-1)]!r}, which the alphabet does not have")
    return found


def decode_line(form: TextForm, data: bytes, out: np.ndarray) -> None:
    """Decode a line in UTF-8.

    Args:
        out: uint8 [R, R, 1]; undefined after an error.

    Raises:
        ValueError: with the reason, when the bytes are no such line.
    """
    try:
        found = indices_of(data.decode(), form)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from None
    out[...] = 0
    out[0] = 1
    out[0, :len(found)] = 0
    out[found, range(len(found)), 0] = 1


@dataclass(frozen=True, kw_only=True)
class TextOptions(Packing):
    """How a file of text becomes samples. The fields without a text follow from the file."""

    length: int = option(text="symbols of a line at most", span=Range(1, RESOLUTIONS[-1]), number=int, metavar="SYMBOLS")
    unit: str = option("line", "what becomes a sample. line: each line of the file, longer ones are left out; words: as many "
                       "whole words as fit; word: each word; window: pieces of that length, whatever they cut", choices=UNITS)
    clean: str = option("none", "lower: in lower case; letters: likewise, and all but letters becomes blanks. Several blanks "
                        "are always one", choices=CLEANINGS)
    held_out: int | None = option(None, "lines that are left out of the set and stand in its index, for scores (default: a "
                                  "tenth, at most 1000)", span=Range(0, MOST_HELD_OUT), number=int, metavar="N")
    symbols: str = ""
    held_out_lines: tuple[str, ...] = ()
    resolution: int = 0
    channels: int = 1
    encoding: str = "txt"
    noun = "lines of text"
    endings = (".txt",)

    @property
    def raw_bytes(self) -> int:
        return self.resolution**2

    @property
    def form(self) -> TextForm:
        return TextForm(self.symbols, self.length, self.held_out_lines)

    def sample(self, data: bytes) -> Sample:
        """The line as it is. Raises ValueError with the reason when it is none of this alphabet and length."""
        indices_of(data.decode(), self.form)
        return Sample(data)

    def kind(self, values: Values | None) -> Kind:
        return Text("uint8", (0.0,), (1.0,), text=self.form)

    def libraries(self) -> dict[str, str]:
        return {}


def pieces_of(text: str, options: TextOptions) -> list[str]:
    """What becomes samples, in the order of the text; longer lines than `options.length`, too, where the unit is a line.

    Of words that are longer than `length` nothing becomes a sample where the unit is words or a word.
    """
    if options.clean != "none":
        text = text.lower()
    if options.clean == "letters":
        text = "".join(symbol if symbol.isalpha() or symbol == "\n" else BLANK for symbol in text)
    if options.unit == "line":
        return [line for line in (BLANK.join(line.split()) for line in text.splitlines()) if line]
    words, length = text.split(), options.length
    if options.unit == "word":
        return [word for word in words if len(word) <= length]
    if options.unit == "window":
        whole = BLANK.join(words)
        return [piece for i in range(0, len(whole), length) if (piece := whole[i:i + length].strip())]
    return _filled(words, length)


def _filled(words: Sequence[str], length: int) -> list[str]:
    """Lines of as many words as fit; longer words end a line and are left out."""
    lines, line = [], ""
    for word in [*words, None]:
        longer = f"{line} {word}" if line else word
        if word is not None and longer is not None and len(longer) <= length:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word if word is not None and len(word) <= length else ""
    return lines


def alphabet(lines: Sequence[str]) -> str:
    """A blank and the other symbols of lines in their order."""
    return BLANK + "".join(sorted({symbol for line in lines for symbol in line} - {BLANK}))
