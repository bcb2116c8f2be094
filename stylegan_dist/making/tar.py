"""The members of a tar file, found from its headers alone.

Python's `tarfile` stops silently where a header is damaged, where the file ends early and at the first end mark of
several archives in one file, and needs four times as long. Here the first two are errors that name the byte, and the
third is read on. Names are only compared and never become paths.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
_LONG_NAME_BYTES = 1 << 16  # of the headers that hold names too long for a plain one
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LONG_NAME, _LONG_TARGET, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"
_SUMS = 65521               # Adler-32 adds bytes modulo this
_SOMETHING = re.compile(rb"[^\0]")
_AFTER_END = "data that is no tar header follows the end mark"
_DIGITS = 20                # no number of an extended header needs more


class Member(NamedTuple):
    name: str
    offset: int  # where its bytes begin
    bytes: int   # -1 for what has none here: a symbolic link, a hard link to elsewhere, a device, a pipe, a sparse file


class TarError(ValueError):
    """The file is damaged; `offset` says where."""

    def __init__(self, what: str, offset: int, name: str | None = None):
        super().__init__(what)
        self.offset = offset
        self.name = name


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes
    target: str


def is_tar(start: bytes) -> bool:
    """Whether a file that starts with these bytes, at least 512, is a tar file: a header, or the end mark of an empty one."""
    if len(start) < BLOCK:
        return False
    try:
        return not any(start[:BLOCK]) or bool(_header(start[:BLOCK]))
    except ValueError:
        return False


def key_and_ending(name: str) -> tuple[str, str]:
    """Of a member, as in WebDataset: the key ends at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending


def members(content) -> Iterator[Member]:
    """The files of a tar file in their order, and what stands in the place of one; folders are left out.

    A hard link is the file that it names, if that came before it. Several archives in one file (`cat a.tar b.tar`) are
    read one after the other.

    Args:
        content: bytes, or a memory map.

    Raises:
        TarError: a damaged header, a member that the file ends in, or no end mark.
    """
    start, ended = 0, False
    extended: dict[str, str] = {}  # what an extended header says of the member that follows
    files: dict[str, Member] = {}
    while start + BLOCK <= len(content):
        block = content[start:start + BLOCK]
        if not any(block[:8]) and not any(block):  # an end mark
            ended, extended = True, {}
            following = _SOMETHING.search(content, start)
            if following is None:
                return
            start += (following.start() - start) // BLOCK * BLOCK
            continue
        try:
            header = _header(block)
            size = int(_short(extended["size"])) if "size" in extended else header.size
        except ValueError as error:
            raise TarError(_AFTER_END if ended else f"damaged tar header ({error})", start) from None
        ended = False
        payload = start + BLOCK
        end = payload + -(-size // BLOCK) * BLOCK
        if size < 0 or end > len(content):
            raise TarError("the tar file ends inside this member", payload, header.name)
        start, kind = end, header.kind
        if kind in (_LONG_NAME, _LONG_TARGET, _EXTENDED, _GLOBAL):
            if size > _LONG_NAME_BYTES:
                raise TarError(f"an extended header of {size} bytes", payload, header.name)
            text = content[payload:payload + size]
            if kind in (_LONG_NAME, _LONG_TARGET):  # both may stand before a member
                what = "path" if kind == _LONG_NAME else "linkpath"
                extended[what] = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == _EXTENDED:
                extended = _records(text, payload)
            continue
        name = extended.get("path", header.name)
        if kind == tarfile.GNUTYPE_SPARSE:
            raise TarError("a sparse file, whose holes are left out: make the archive without --sparse", payload, name)
        if kind != tarfile.DIRTYPE:
            member = Member(name, payload, -1)
            if kind in _FILES and not any(key.startswith("GNU.sparse.") for key in extended):
                member = Member(name, payload, size)
            elif kind == tarfile.LNKTYPE and (target := files.get(_plain(extended.get("linkpath", header.target)))):
                member = target._replace(name=name)
            files[_plain(name)] = member
            yield member
        extended = {}
    raise TarError(_AFTER_END if ended else "the tar file has no end mark: it is truncated", start)


def _header(block: bytes) -> _Header:
    """Of 512 bytes (POSIX.1-2001, ustar; GNU's and older ones are alike here). Raises ValueError when it is none."""
    claimed = _number(block[148:156])
    # The sum of all bytes, where the checksum itself counts as blanks. Adler-32 is one more than a sum, and fast.
    found = (zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF) - 1 + 8 * ord(" ")
    if (claimed - found) % _SUMS and claimed != sum(byte - (byte & 128) * 2 for byte in block[:148] + b" " * 8 + block[156:]):
        raise ValueError("its checksum is wrong")  # some old programs add signed bytes
    name, kind = _text(block[:100]), block[156:157]
    if kind == tarfile.AREGTYPE and name.endswith("/"):  # before there were types
        kind = tarfile.DIRTYPE
    if block[345] and block[257:263] == b"ustar\0":
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, _number(block[124:136]), kind, _text(block[157:257]) if block[157] else "")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's binary numbers."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits and not digits.isdigit():
        raise ValueError(f"{field!r} is no number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _short(digits: str) -> str:
    """A number of an extended header, before `int` sees it. Raises ValueError."""
    if len(digits) > _DIGITS or not (digits.isascii() and digits.isdigit()):
        raise ValueError("the size in its extended header is no number")
    return digits


def _plain(name: str) -> str:
    """As `tar` compares names: it writes some of them with "./" and some without."""
    return name.removeprefix("./")


def _records(text: bytes, offset: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of a PAX header (POSIX.1-2001, pax interchange format)."""
    records = {}
    while text:
        length, space, _ = text.partition(b" ")
        count = int(length) if space and len(length) <= _DIGITS and length.isdigit() else 0
        key, equals, value = text[len(length) + 1:max(count - 1, 0)].partition(b"=")
        if not equals or not len(length) < count <= len(text):  # so that each record shortens the text
            raise TarError("damaged extended header", offset)
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[count:]
    return records
