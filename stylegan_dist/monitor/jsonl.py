"""`metrics.jsonl`, the truth about a run: one JSON object a line. Every other tracker is a reader or a copy of it.

Every record has `nimg` (int, images seen), `kimg` (float, nimg / 1000), `segment` (int, restarts before this
record) and `time` (float, unix seconds); the rest are metrics by name. JSON has no NaN and no infinity, so they
are written as the strings "NaN", "Infinity" and "-Infinity", which `float()` understands, and read back as floats.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from stylegan_dist.errors import InputError
from stylegan_dist.files import is_at, replacing
from stylegan_dist.records import parse_json

REQUIRED = ("nimg", "kimg", "segment", "time")
MAX_LINE = 1 << 20      # bytes of a record
MAX_PENDING = 10_000    # records that wait for room on the disk, some 15 MB
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Dropped(NamedTuple):
    """What a file lost when its run was continued."""

    beyond: int   # records beyond the checkpoint, which come again
    damaged: int  # lines that are no records, kept in the side file


class MetricsFile:
    """Append-only writer of one `metrics.jsonl`; only one process may have it open.

    Bytes that are no record, such as a torn last line that a lost machine leaves behind, are moved to
    `metrics.jsonl.damaged`: the last line when the file is opened, others by `truncate_after`.

    Records that cannot be written wait in memory for the next one; of more than `MAX_PENDING` the oldest are given up.

    Attributes:
        pending: records that wait.
        lost: records that were given up.
        renewed: how often the file was deleted or replaced by somebody else, and opened anew.

    Raises:
        OSError: the file cannot be opened or written. A failed `append` leaves the file as it was.
        InputError: something else than a file has its name.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for a reader
            raise InputError(f"{self.path} is no plain file: move it away, and run the same command again")
        self.lost = 0
        self.renewed = 0
        self._lines: deque[bytes] = deque()
        self._torn = 0
        self._open()

    @property
    def pending(self) -> int:
        return len(self._lines)

    def _open(self) -> None:
        # Unbuffered: a record is one write, so it is with the kernel, safe from kill -9, when `append` returns.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (it stays open for the life of the object)
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if torn := content[whole:]:
            if _parse(torn) is not None:  # only the end of the line is missing
                self._file.write(b"\n")
            else:
                self._keep_damaged([torn + b"\n"])
                self._torn += 1
                self._file.truncate(whole)

    def _keep_damaged(self, lines: list[bytes]) -> None:
        with open(damaged_path(self.path), "ab") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def append(self, record: dict) -> None:
        """Write one record: flat, numbers (also 0-d tensors), strings, booleans or None, with all of `REQUIRED`."""
        missing = [key for key in REQUIRED if key not in record]
        assert not missing, f"a metrics record needs {missing}"
        assert isinstance(record["nimg"], int), f"nimg must be an int, got {record['nimg']!r}"
        line = json.dumps({key: _to_json(value) for key, value in record.items()}, allow_nan=False)
        self._lines.append(line.encode() + b"\n")
        if len(self._lines) > MAX_PENDING:
            self._lines.popleft()
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Write what waits, in order."""
        while self._lines:
            self._write(self._lines[0])
            self._lines.popleft()

    def _write(self, line: bytes) -> None:
        if self._file.closed or not is_at(self._file, self.path):
            self.renewed += not self._file.closed  # closed: could not be opened the last time, which was counted
            self._file.close()
            self._open()
        start = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # On a full disk half a line may be in the file; the next record must not be glued to it.
            self._file.truncate(start)
            raise

    def truncate_after(self, nimg: int) -> Dropped:
        """Drop the records with more than `nimg` images, atomically, and move damaged lines to the side file.

        Called on resume, when the state is restored: what lies beyond the checkpoint will be trained, and recorded, again.
        """
        kept, damaged, beyond = [], [], 0
        for line in _lines_of(self.path.read_bytes()):
            record = _parse(line)
            if record is None:
                damaged.append(line)
            elif record["nimg"] > nimg:
                beyond += 1
            else:
                kept.append(line)
        if beyond or damaged:
            if damaged:
                self._keep_damaged(damaged)
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            self._open()
        return Dropped(beyond, len(damaged) + self._torn)

    def close(self) -> None:
        self._file.close()


def read(path: str | os.PathLike) -> list[dict]:
    """All records in the order of writing; a torn last line is left out. Safe while the run is writing.

    Raises:
        InputError: a line before the last is not a record.
        OSError: the file cannot be read.
    """
    lines = _lines_of(Path(path).read_bytes())
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            raise InputError(f"{path} line {number} is damaged; delete that line (continuing the run moves it to "
                             f"{damaged_path(path)})")
        records.append(record)
    return records


def damaged_path(path: str | os.PathLike) -> Path:
    """The side file of a metrics file."""
    return Path(f"{os.fspath(path)}.damaged")


def _lines_of(content: bytes) -> list[bytes]:
    return io.BytesIO(content).readlines()  # not splitlines, which also ends a line at a carriage return


def _parse(line: bytes) -> dict | None:
    """The record on a line, or None if the line does not hold one."""
    try:
        record = parse_json(line, MAX_LINE)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("nimg")) is not int:  # a bool is an int, too
        return None
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def _to_json(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
