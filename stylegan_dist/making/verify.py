"""Checking a shard set: every byte, every header, every sample, every label."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stylegan_dist.data import storage
from stylegan_dist.data.index import (
    INDEX_NAME,
    NO_LABEL,
    DatasetIndex,
    Shard,
    check_sample_size,
    parse_offsets,
    read_index,
    read_offsets,
)
from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.making import pool
from stylegan_dist.making.labels import CLASS_BYTES, class_number
from stylegan_dist.making.tar import TarError, key_and_ending, members

_NAMED_CLASSES = 3  # in a problem
_RESTORE = "restore the file from a copy, or pack the data again with --overwrite"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a shard set."""

    file: str                   # name of the shard, its offsets file, or index.json
    what: str
    sample: str | None = None   # name of the member of the tar file
    offset: int | None = None   # in bytes from the beginning of the tar file
    remedy: str = _RESTORE

    def __str__(self) -> str:
        place = self.file
        if self.sample is not None:
            place += f", sample {self.sample!r}"
        if self.offset is not None:
            place += f", byte {self.offset}"
        return f"{place}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


def verify(folder: str | os.PathLike, deep: bool = True, workers: int | None = None) -> list[Problem]:
    """Check a shard set against its index.

    Sizes and checksums of all files, the headers of all tar members, the offsets, the labels and the
    numbers of samples are checked; with `deep` every sample is decoded too.

    Args:
        folder: of the shard set, or its URL.
        deep: decode every sample and compare its form with the index.
        workers: processes; None: one a core.
    Returns: everything that is wrong, in the order of the shards; empty for a sound set.
    """
    try:
        index = read_index(folder)
    except InputError as error:
        return [Problem(INDEX_NAME, str(error), remedy="")]  # the error has its own
    bar = pool.progress_bar(index.num_samples, "verifying", index.kind.noun)
    results = pool.results(partial(_check_shard, index, deep), index.shards, workers, bar)
    problems = [problem for found, _ in results for problem in found]
    counts = [count for _, count in results]
    # Without all offsets the sum says nothing new.
    if index.classes is not None and all(count is not None for count in counts):
        held, told = np.sum(counts, axis=0), np.array(index.class_counts)
        wrong = np.flatnonzero(held != told).tolist()
        if wrong:
            named = ", ".join(f"{told[label]} of class {label} and hold {held[label]}" for label in wrong[:_NAMED_CLASSES])
            more = f", and so on for {len(wrong)} classes" if len(wrong) > _NAMED_CLASSES else ""
            problems.append(Problem(INDEX_NAME, f"class_counts promise {named}{more}"))
    return problems


def _check_shard(index: DatasetIndex, deep: bool, slot: int, shard: Shard,
                 progress: pool.Progress) -> tuple[list[Problem], np.ndarray | None]:
    """In a worker: the problems of one shard and its samples per class (None if its offsets are unusable)."""
    check = _Check(index, shard)
    table = check.offsets()
    try:
        with check.local_copy() as path, open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check.scan(content)
                for row in table.tolist() if table is not None else ():
                    progress.done[slot] += 1
                    if progress.stopped:
                        break
                    check.sample(content, row, deep)
    except FileNotFoundError:
        check.complain("the shard is missing")
    except InputError as error:
        check.complain(str(error), remedy="")  # the error has its own
    except (OSError, ValueError) as error:
        check.complain(f"the shard cannot be read ({getattr(error, 'strerror', None) or error})")
    progress.done[slot] = shard.samples
    counts = None
    if table is not None and index.classes is not None:
        labels = table[:, 2]
        known = labels[(labels >= 0) & (labels < index.num_classes)]
        counts = np.bincount(known, minlength=index.num_classes)
    return check.problems, counts


class _Check:
    """Looks at one shard, and collects what is wrong with it."""

    def __init__(self, index: DatasetIndex, shard: Shard):
        self._index, self._shard = index, shard
        self.problems: list[Problem] = []
        # Payload offset -> name and bytes of each member that has its bytes there; key -> content of a class file.
        self._members: dict[int, list[tuple[str, int]]] = defaultdict(list)
        self._labels: dict[str, bytes] = {}
        self._values = np.empty((index.resolution, index.resolution, index.channels), index.kind.dtype)
        self._decode = index.kind.decoder(strict=index.packed)

    def complain(self, what: str, sample: str | None = None, offset: int | None = None, remedy: str = _RESTORE,
                 file: str = "") -> None:
        self.problems.append(Problem(file or self._shard.name, what, sample, offset, remedy))

    def offsets(self) -> np.ndarray | None:
        """The offsets of the shard if they are usable: int64 [samples, 3]."""
        place, shard = self._shard.offsets_location, self._shard
        try:
            if not storage.is_remote(place):
                return read_offsets(shard)
            return parse_offsets(shard, storage.read_bytes(place, partial(parse_offsets, shard)))
        except FileNotFoundError:
            self.complain("the offsets file is missing", file=shard.offsets)
        except OSError as error:
            self.complain(f"the offsets cannot be read ({error.strerror})", file=shard.offsets)
        except InputError as error:
            self.complain(str(error), remedy="", file=shard.offsets)
        except ValueError as error:
            self.complain(str(error), file=shard.offsets)
        return None

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """The shard as a local file, after a look at its size and SHA-256; fetched for as long as needed if it is remote.

        Raises:
            OSError, InputError: it is not there, or did not arrive whole.
        """
        shard = self._shard
        if not storage.is_remote(shard.location):
            path = storage.local_path(shard.location)
            open_regular(path).close()  # a pipe would be waited for
            try:
                storage.check_file(path, shard.bytes, shard.sha256)
            except ValueError as error:
                self.complain(str(error))
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="stylegan-dist-verify-") as file:
            check = partial(storage.check_file, file.name, shard.bytes, shard.sha256)
            try:
                storage.download(shard.location, file.name, check, shard.bytes)
            except InputError as error:
                if os.path.getsize(file.name) != shard.bytes:
                    raise
                self.complain(str(error), remedy="")  # what has changed is found in what arrived
            yield Path(file.name)

    def scan(self, content: mmap.mmap) -> None:
        """Walk the headers of the tar file."""
        try:
            for name, offset, size in members(content):
                key, kind = key_and_ending(name)
                if size >= 0 and kind.lower() == self._index.encoding:
                    self._members[offset].append((name, size))
                elif size >= 0 and kind.lower() == "cls":
                    self._labels[key] = content[offset : offset + min(size, CLASS_BYTES)].strip()
        except TarError as error:
            self.complain(str(error), error.name, error.offset)
        if (found := sum(map(len, self._members.values()))) != self._shard.samples:
            self.complain(f"{found} {self._index.kind.noun} are found, the index promises {self._shard.samples}")

    def sample(self, content: mmap.mmap, row: tuple[int, int, int], deep: bool) -> None:
        """Compare a row of the offsets with the tar file; `deep`: decode the sample."""
        offset, size, label = row
        index = self._index
        name, found_size = self._members[offset].pop(0) if self._members.get(offset) else (None, None)
        if found_size != size:
            self.complain(f"the offsets promise a sample of {size} bytes here, the tar file has none", name, offset)
        self._check_label(label, name, offset)
        if deep and offset + size <= len(content):
            try:
                check_sample_size(size, index.most_sample_bytes)
                self._decode(content[offset : offset + size], self._values)
            except ValueError as error:
                self.complain(f"the {_singular(index.kind.noun)} cannot be used ({error})", name, offset)

    def _check_label(self, label: int, name: str | None, offset: int) -> None:
        index = self._index
        if index.classes is None and label != NO_LABEL:
            self.complain(f"the class is {label}, expected none", name, offset, file=self._shard.offsets)
        elif index.classes is not None and not 0 <= label < index.num_classes:
            self.complain(f"the class is {label}, expected from 0 to {index.num_classes - 1}", name, offset,
                          file=self._shard.offsets)
        if index.relabelled:
            return
        # A label file is plain WebDataset; sets indexed elsewhere may carry labels in the offsets alone.
        key = name and key_and_ending(name)[0]
        if key in self._labels and index.classes is not None:
            text = self._labels[key]
            try:
                same = class_number(text) == label
            except ValueError:
                same = False
            if not same:
                self.complain(f"the class in the tar file is {text.decode('ascii', 'replace')!r}, the offsets say {label}",
                              f"{key}.cls", offset)


def _singular(noun: str) -> str:
    """"line of text" of "lines of text"."""
    return re.sub(r"s\b", "", noun, count=1)
