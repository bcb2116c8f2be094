"""`metrics.jsonl`, the complete record of a run: one JSON object a line. Other trackers copy it.

Every record has `nimg` (int, images seen), `kimg` (float, nimg / 1000), `segment` (int, restarts before this record)
and `time` (float, unix seconds). The rest are metrics by name. JSON has no NaN and no infinity, so they are written as
the strings "NaN", "Infinity" and "-Infinity", which `float()` understands.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stylegan_dist.errors import InputError
from stylegan_dist.files import is_at, open_log, open_regular, replacing
from stylegan_dist.records import parse_json

MAX_LINE = 1 << 20      # bytes of a record
MAX_PENDING = 10_000    # records that wait for space on the disk, some 15 MB


class MetricsFile:
    """Append-only writer of one `metrics.jsonl`; only one process may have it open.

    Opening it drops the records with more than `nimg` images, because they will be trained and recorded again. Lines that are
    no records are moved to `metrics.jsonl.damaged`. A lost machine may leave such a line at the end.

    Records that cannot be written wait in memory for the next one. Of more than `MAX_PENDING` the oldest are dropped. A file
    that somebody else has deleted or replaced is opened anew.

    Args:
        segment: restarts of the run so far.
        nimg: images seen at the checkpoint.
        say, warn: take a line of information, or of warning.
    Raises:
        OSError: the file cannot be opened, or cut back to the checkpoint.
        InputError: something else than a file has its name.
    """

    def __init__(self, path: Path, segment: int, nimg: int, say: Callable[[str], None], warn: Callable[[str], None]):
        self.path = path
        if path.exists() and not path.is_file():  # opening a pipe would wait for a reader
            raise InputError(f"{path} is no plain file: move it away, and run the same command again")
        self._segment, self._say, self._warn = segment, say, warn
        self._waiting: deque[bytes] = deque()
        self._lost = 0  # records given up
        self._open(nimg)

    def append(self, nimg: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics at `nimg` images: numbers, or what JSON has for others."""
        record = {"nimg": nimg, "kimg": nimg / 1000, "segment": self._segment, "time": time.time(), **metrics}
        written = {key: _to_json(value) if isinstance(value, float) else value for key, value in record.items()}
        line = json.dumps(written, allow_nan=False)
        told = len(self._waiting)
        self._waiting.append(line.encode() + b"\n")
        if told == MAX_PENDING:
            self._waiting.popleft()
            self._lost += 1
            if self._lost == 1:
                self._warn(f"{self.path.name}: the first records that wait in memory are given up, {MAX_PENDING} are kept")
        self._flush(told)

    def go_back(self, nimg: int) -> None:
        """Move the records with more than `nimg` images to `metrics.jsonl.abandoned`.

        Raises:
            OSError: the files cannot be written.
        """
        self.close()
        self._waiting.clear()
        if self.path.exists():
            self._clean(nimg, abandoned=True)
        self._file = open_log(self.path)

    def close(self) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self._flush(len(self._waiting))
        if self._waiting:
            self._warn(f"{self.path.name} still cannot be written: {len(self._waiting) + self._lost} records are lost")
        self._file.close()

    def _flush(self, told: int) -> None:
        """Write what waits, in order. So many records have waited before, as a warning has told."""
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not told:
                self._warn(f"{self.path.name} cannot be written ({error.strerror or error}); training goes on, and up to "
                           f"{MAX_PENDING} records wait in memory until it can")
        else:
            if told:
                self._say(f"{self.path.name} can be written again: {told} records that waited are there now"
                          + (f", {self._lost} are lost" if self._lost else ""))

    def _write(self, line: bytes) -> None:
        """Write one line, or nothing of it."""
        if self._file.closed or not is_at(self._file, self.path):
            if not self._file.closed:  # else it could not be opened the last time, and a warning was shown
                self._warn(f"{self.path.name} was deleted or replaced while the run was going on; it begins anew, without "
                           "what it had")
            self._file.close()
            self._open(None)
        start = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # On a full disk half a line may be in the file. The next record must not follow on the same line.
            self._file.truncate(start)
            raise

    def _open(self, nimg: int | None) -> None:
        """Open the file, without damaged lines and, unless `nimg` is None, without the records beyond."""
        if self.path.exists():
            self._clean(nimg)
        # Unbuffered: a record is one write, so it is with the kernel, safe from kill -9, when `append` returns.
        self._file = open_log(self.path)

    def _clean(self, nimg: int | None, abandoned: bool = False) -> None:
        kept: list[bytes] = []
        damaged: list[bytes] = []
        beyond: list[bytes] = []
        with open_regular(self.path) as file:
            content = file.read()
        for line in io.BytesIO(content):  # not splitlines, which also ends a line at a carriage return
            whole = line if line.endswith(b"\n") else line + b"\n"
            seen = _images_seen(line)
            if seen is None:
                damaged.append(whole)
            elif nimg is not None and seen > nimg:
                beyond.append(whole)
            else:
                kept.append(whole)
        for path, moved in ((damaged_path(self.path), damaged), (abandoned_path(self.path), beyond if abandoned else [])):
            if moved:
                with open(path, "ab") as file:
                    _write_safely(file, moved)
        if content != b"".join(kept):
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                _write_safely(file, kept)
        if beyond and not abandoned:
            self._say(f"{self.path.name}: dropped {len(beyond)} lines beyond "
                      + (f"the checkpoint at {nimg / 1000:g} kimg" if nimg else "the beginning: no checkpoint")
                      + "; they will be recorded again")
        if damaged:
            self._warn(f"{self.path.name}: {len(damaged)} damaged lines, which are no records, are moved to "
                       f"{damaged_path(self.path).name}; their ticks are missing")


def damaged_path(path: Path) -> Path:
    """The side file of a metrics file."""
    return path.with_name(path.name + ".damaged")


def abandoned_path(path: Path) -> Path:
    """The side file for records of what a run has gone back from."""
    return path.with_name(path.name + ".abandoned")


def _write_safely(file: io.BufferedWriter, lines: list[bytes]) -> None:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


def _images_seen(line: bytes) -> int | None:
    """`nimg` of the record on a line, or None if the line does not hold one."""
    try:
        record = parse_json(line, MAX_LINE)
    except ValueError:
        return None
    nimg = record.get("nimg") if isinstance(record, dict) else None
    return nimg if type(nimg) is int else None  # a bool is an int, too


def from_json(value: float | str) -> float:
    """A metric as it was before it was written.

    Raises:
        ValueError: it is no number.
    """
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if isinstance(value, int) and value > 0 else -math.inf


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
