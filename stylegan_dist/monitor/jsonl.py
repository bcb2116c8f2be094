"""`metrics.jsonl`, the truth about a run: one JSON object a line. Every other tracker is a reader or a copy of it.

Every record has `nimg` (int, images seen), `kimg` (float, nimg / 1000), `segment` (int, restarts before this
record) and `time` (float, unix seconds); the rest are metrics by name. JSON has no NaN and no infinity, so they
are written as the strings "NaN", "Infinity" and "-Infinity", which `float()` understands, and read back as floats.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from stylegan_dist.errors import InputError

REQUIRED = ("nimg", "kimg", "segment", "time")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsFile:
    """Append-only writer of one `metrics.jsonl`; only one process may have it open.

    Opening cuts off a torn last line, which a process killed while writing leaves behind.

    Raises:
        OSError: the file cannot be opened or written. A failed `append` leaves the file as it was.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = self._open()

    def _open(self):
        # Unbuffered: a record is one write, so it is with the kernel, safe from kill -9, when `append` returns.
        file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (it stays open for the life of the object)
        whole = self.path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)
        file.seek(whole)
        return file

    def append(self, record: dict) -> None:
        """Write one record: flat, numbers (also 0-d tensors), strings, booleans or None, with all of `REQUIRED`."""
        missing = [key for key in REQUIRED if key not in record]
        assert not missing, f"a metrics record needs {missing}"
        assert isinstance(record["nimg"], int), f"nimg must be an int, got {record['nimg']!r}"
        line = json.dumps({key: _to_json(value) for key, value in record.items()}, allow_nan=False).encode() + b"\n"
        start = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self.path}: only a part of a record could be written")
        except OSError:
            # On a full disk half a line may be in the file; the next record must not be glued to it.
            self._file.truncate(start)
            self._file.seek(start)
            raise

    def truncate_after(self, nimg: int) -> int:
        """Drop the records with more than `nimg` images, atomically; return how many lines were dropped.

        Called on resume: what lies beyond the checkpoint will be trained, and recorded, again. Damaged lines
        (a machine that lost power may leave some) are dropped too, for a run must be able to go on.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if (record := _parse(line)) is not None and record["nimg"] <= nimg]
        if len(kept) == len(lines):
            return 0
        temporary = self.path.with_suffix(".jsonl.tmp")
        with open(temporary, "wb") as file:
            file.write(b"".join(kept))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file.close()
        self._file = self._open()
        return len(lines) - len(kept)

    def close(self) -> None:
        self._file.close()


def read(path: str | os.PathLike) -> list[dict]:
    """All records in the order of writing; a torn last line is left out. Safe while the run is writing.

    Raises:
        InputError: a line before the last is not a record.
        OSError: the file cannot be read.
    """
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            raise InputError(f"{path} line {number} is damaged; delete that line (continuing the run also drops it)")
        records.append(record)
    return records


def _parse(line: bytes) -> dict | None:
    """The record on a line, or None if the line does not hold one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("nimg"), int):
        return None
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def _to_json(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
