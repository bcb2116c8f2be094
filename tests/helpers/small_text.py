"""A small shard set of lines of text, made on the fly."""

from __future__ import annotations

from pathlib import Path

from stylegan_dist.kinds import TextOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.text_file import open_text

WORDS = ("the", "red", "car", "and", "a", "bus", "in", "town", "set", "ten")


def lines_of_words(count: int) -> list[str]:
    """Lines of two words, each pair of neighbours in turn and then pairs farther apart."""
    return [f"{WORDS[i % 10]} {WORDS[(i + 1 + i // 10) % 10]}" for i in range(count)]


def pack_lines(folder: Path, lines: list[str] | None = None, **options: object) -> Path:
    """A set of 80 lines of at most 8 symbols, and 4 held-out ones, unless others are given."""
    source, out = folder / "lines.txt", folder / "text"
    source.write_text("".join(f"{line}\n" for line in lines or lines_of_words(84)), encoding="utf-8")
    listing, packing = open_text(str(source), TextOptions(**{"length": 8, "held_out": 4, **options}), seed=0)
    pack(source, out, PackOptions(packing, samples_per_shard=30, workers=1), listing)
    return out
