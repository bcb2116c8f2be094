"""A source of samples: which files of a folder, a zip or of tars become samples, and what becomes of the others.

A source is listed once and can then be read by name from any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stylegan_dist.data import storage
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import PACKINGS, ArrayOptions, ImageOptions, Packing, SoundOptions
from stylegan_dist.making import labels as labelling
from stylegan_dist.making.account import Account
from stylegan_dist.making.containers import Files, Folder, Tape, open_container

_TAR_ENDING = ".tar"
_OFFSETS_ENDING = ".offsets.npy"  # of what an index has beside its tars
# Files with these are no images, so that it is not worth while to look into them. Any other may be one.
_OTHER_ENDINGS = frozenset((
    *ArrayOptions.endings, *SoundOptions.endings, _TAR_ENDING, labelling.CLASS_ENDING,
    ".json", ".jsonl", ".txt", ".caption", ".csv", ".tsv",
    ".xml", ".html", ".htm", ".md", ".yaml", ".yml", ".toml", ".ini", ".log", ".py", ".sh", ".parquet", ".pkl", ".pt", ".pth",
    ".safetensors", ".zip", ".gz", ".mp4", ".mov", ".avi", ".mkv", ".pdf", ".db", ".svg",
))
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*",
                 b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # the last two: JPEG 2000
_IMAGE_START = re.compile(rb"RIFF....WEBP|....ftyp(avif|avis)|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)


class Item(NamedTuple):
    """One file of a source that becomes a sample."""

    name: str            # path inside the source, with forward slashes
    label: int | None


class Listing(NamedTuple):
    """All files of a folder, a zip or of tars."""

    files: Files
    names: dict[str, str]        # and what tells one version of a file from another


class Source(NamedTuple):
    """The samples of a folder, a zip or of tars, in the order of their names."""

    items: list[Item]
    classes: list[str] | None    # class names in the order of their numbers; None: no labels
    sha256: str                  # over the names, sizes and labels: the same listing has the same value
    files: Files
    account: Account             # of all other files

    def read(self, name: str) -> bytes:
        """The bytes of an item, in any process. Raises ValueError with the reason when they cannot be had."""
        return self.files.read(name)

    def state(self) -> str:
        """Over sizes and times: two equal ones say that nothing has touched the items between the calls."""
        return self.files.state(item.name for item in self.items)


def open_source(path: str | os.PathLike, labels: str = "auto", packing: type[Packing] = ImageOptions,
                listing: Listing | None = None) -> Source:
    """List the files of a folder, a zip or of tars that become samples.

    Args:
        path: a folder (searched with its sub-folders), a zip or a tar, a folder or a pattern of tars. Hidden files are
            left out.
        listing: of it, where it is known already.
        packing: files with its endings are taken. Where these are images, files whose ending says nothing are taken, too,
            if they begin like an image.
        labels: where the classes come from: "json" (`dataset.json` at the top of the source, or of the one folder that
            holds everything), "cls" (`KEY.cls` beside `KEY.jpg`, as in WebDataset), "folders" (the first-level
            sub-folder, classes numbered in the order of their names), "names" (what a file's name begins with, up to the
            first "_" or "-"; whole numbers in their order), "none", or "auto" (the first of "json", "cls" and "none"
            that is there).

    Raises:
        InputError: nothing there, no such file in it, or labels that are missing or of a wrong form.
    """
    files, listed = listing or list_source(path)
    path = Path(path)
    ends, noun = packing.endings, packing.noun
    names = sorted(name for name in listed if name.lower().endswith(ends))
    if issubclass(packing, ImageOptions):
        others = (name for name in listed if not name.lower().endswith(ends) and _ending(name) not in _OTHER_ENDINGS)
        names = sorted([*names, *(name for name in others if _looks_like_image(files.head(name)))])
    if not names:
        raise InputError(f"{path} holds no {noun} ({', '.join(ends)}): is it the right place?")
    found = labelling.read_labels(labels, files, listed, names, path)
    numbers = found.numbers
    items = [Item(name, None if numbers is None else numbers[name]) for name in names]
    rows = [[item.name, listed[item.name], item.label] for item in items]
    digest = hashlib.sha256(json.dumps([found.classes, rows]).encode()).hexdigest()
    return Source(items, found.classes, digest, files, _account(files, listed, set(names), found.given_by, noun))


def list_source(path: str | os.PathLike) -> Listing:
    """List a folder, a zip or tars. A folder that holds tars and nothing else to pack stands for these.

    Raises:
        InputError: nothing there, or it cannot be read.
    """
    with _readable(path) as files:
        listing = Listing(files, files.list())
        if not isinstance(files, Folder) or _kinds(name for name in listing.names if not name.endswith(_OFFSETS_ENDING)):
            return listing
        if not (tapes := sorted(name for name in listing.names if name.endswith(_TAR_ENDING) and "/" not in name)):
            return listing
        tape = Tape([files.path / name for name in tapes], named=True)
        names = tape.list()
        tape.met += files.met - len(tapes)  # what lies beside them is accounted for, too
        tape.left_out.update(files.left_out)
        tape.left_out.update(dict.fromkeys(listing.names.keys() - set(tapes), "beside the tars"))
        return Listing(tape, names)


def kind_of(listing: Listing) -> str:
    """What a source holds: the first of "images", "arrays", "sounds" and "videos" that is there; "images" if nothing is."""
    return next(iter(_kinds(listing.names)), "images")


def _kinds(names: Iterable[str]) -> list[str]:
    found = {_ending(name) for name in names}
    return [kind for kind, packing in PACKINGS.items() if kind != "text" and found.intersection(packing.endings)]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _looks_like_image(head: bytes) -> bool:
    return head.startswith(_IMAGE_STARTS) or _IMAGE_START.match(head) is not None


def _account(files: Files, listed: dict[str, str], taken: set[str], labels: set[str], noun: str) -> Account:
    """Of the files that become no samples, by reason and in the order of their names."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name in listed:
        if name not in taken and name not in labels:
            ending = _ending(name)
            usual = re.fullmatch(r"\.[a-z0-9]{1,8}", ending)
            reasons[f"no {noun} ({ending if usual else 'by their content'})"].append(name)
    for name, reason in files.left_out.items():
        reasons[reason].append(name)
    account = Account(files=files.met, labels=len(labels))
    for reason in sorted(reasons):
        account.leave_out(reason, sorted(reasons[reason]))
    return account


@contextmanager
def _readable(place: str | os.PathLike) -> Iterator[Files]:
    """The source at a path; what goes wrong while it is listed becomes an InputError."""
    storage.check_is_local("SOURCE", place)
    path = Path(place)
    try:
        if not path.exists() and any(character in str(path) for character in "*?[{"):
            tapes = [Path(location) for location in storage.expand(str(path))]
            names: set[str] = set()
            for tape in tapes:
                if not tape.is_file():
                    raise InputError(f"{tape} is not there: correct the pattern {place}")
                if tape.name in names:
                    raise InputError(f"{place} names several files {tape.name!r}: pack one folder after the other")
                names.add(tape.name)
            yield Tape(tapes, named=True)
        else:
            yield open_container(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
