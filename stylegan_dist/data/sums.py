"""Comparing files with the SHA-256 of their index when they are first opened, and remembering that it was done.

What is remembered is the state of a file (size, inode, times) at which its content had this SHA-256. The memory is one
text file for each folder of files, of one line for each comparison; the last line of a name counts. Nothing depends on
it: whoever finds no line that fits, a damaged one, or none at all reads the file once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from stylegan_dist.files import try_lock, unlock_and_close
from stylegan_dist.private import NotPrivate, open_private

MODES = ("always", "once", "never")
PATIENCE_SECONDS, SLOWEST_HASH = 30.0, 20e6  # that another process may take, and its bytes a second
POLL_SECONDS = 0.02
SETTLED_NS = 2_000_000_000  # a file that was written within its clock's grain may change without another time
MAX_MEMORY_BYTES = 1 << 26  # of one folder: 300,000 files
_BLOCK = 1 << 20
_LINE = re.compile(rb'(\d{1,20}) ([0-9a-f]{64}) (-?\d{1,20} -?\d{1,20} -?\d{1,20} -?\d{1,20}) ([\w.~%-]+)')


class _Record(NamedTuple):
    when: int       # wall-clock time of the comparison, ns
    sha256: str
    state: str


class Sums:
    """Compares files, on behalf of all processes that share a memory.

    Args:
        mode: always: whatever was compared before this object was made is compared again; once: what is remembered
            is not; never: nothing is compared.
        memory: a private folder; None: only this process remembers.
        with_ctime: whether a new change time is a new state. False where it changes with each use.
    """

    def __init__(self, mode: str, memory: Path | None, with_ctime: bool = True):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.mode = mode
        self.hashed = 0  # bytes that this process has read for it
        self._memory = memory
        self._with_ctime = with_ctime
        self._began = time.time_ns()
        self._known: dict[str, _Record] = {}
        self._read: dict[str, tuple[int, int]] = {}  # inode and bytes that were read of each memory
        self._guard = threading.Lock()

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "_guard"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _guard=threading.Lock())

    def check(self, file: int, path: str | os.PathLike, sha256: str) -> None:
        """Compare an open file with its sum, unless that is done.

        Raises:
            ValueError: it differs.
            OSError: it cannot be read.
        """
        if self.mode == "never" or not sha256:
            return
        real = os.path.realpath(path)
        state = self._state(file)
        if self._accepts(real, state, sha256):
            return
        with self._turn(real, os.fstat(file).st_size):
            if self._accepts(real, state, sha256, look=True):
                return
            found = self._digest(file)
            if found != sha256:
                raise ValueError(f"its SHA-256 is {found[:12]}..., the index says {sha256[:12]}...: its bytes have changed")
            if self._state(file) == state:
                self._remember(real, state, sha256, file)

    def trust(self, file: int, path: str | os.PathLike, sha256: str) -> None:
        """Remember what this process has just written and compared."""
        if self.mode != "never" and sha256:
            self._remember(os.path.realpath(path), self._state(file), sha256)

    def _accepts(self, real: str, state: str, sha256: str, look: bool = False) -> bool:
        with self._guard:
            if look or os.path.dirname(real) not in self._read:
                self._learn(os.path.dirname(real))
            record = self._known.get(real)
        return record is not None and record.sha256 == sha256 and record.state == state and (
            self.mode == "once" or record.when >= self._began)

    def _state(self, file: int) -> str:
        status = os.fstat(file)
        return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns if self._with_ctime else 0}"

    def _digest(self, file: int) -> str:
        digest, offset = hashlib.sha256(), 0
        while block := os.pread(file, _BLOCK, offset):
            digest.update(block)
            offset += len(block)
        self.hashed += offset
        return digest.hexdigest()

    def _remember(self, real: str, state: str, sha256: str, file: int | None = None) -> None:
        record = _Record(time.time_ns(), sha256, state)
        with self._guard:
            self._known[real] = record
        if self._memory is None:
            return
        if file is not None:
            status = os.fstat(file)
            if record.when - max(status.st_mtime_ns, status.st_ctime_ns if self._with_ctime else 0) < SETTLED_NS:
                return
        folder, name = os.path.split(real)
        line = _line(name, record)
        path = self._memory_of(folder)
        with contextlib.suppress(OSError, NotPrivate):
            log = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(log, line)  # one call: lines of several processes do not mix, but for some network file systems
            finally:
                os.close(log)

    def _learn(self, folder: str) -> None:
        """Read what was added to a folder's memory since the last look. One that has grown large is forgotten."""
        inode, done = self._read.get(folder, (0, 0))
        self._read[folder] = inode, done
        if self._memory is None:
            return
        path = self._memory_of(folder)
        try:
            log = os.fdopen(open_private(path), "rb")
        except (OSError, NotPrivate):
            return
        with log:
            status = os.fstat(log.fileno())
            if status.st_size > MAX_MEMORY_BYTES:
                path.unlink(missing_ok=True)
                return
            done = done if status.st_ino == inode and status.st_size >= done else 0
            log.seek(done)
            content = log.read(status.st_size - done)  # not more: a buffer of that size is allocated first
        content = content[: content.rfind(b"\n") + 1]
        self._read[folder] = status.st_ino, done + len(content)
        for line in content.splitlines():
            if match := _LINE.fullmatch(line):
                name = os.path.join(folder, os.fsdecode(unquote_to_bytes(match[4])))
                self._known[name] = _Record(int(match[1]), match[2].decode(), match[3].decode())

    def _memory_of(self, folder: str) -> Path:
        assert self._memory is not None
        return self._memory / (hashlib.sha256(os.fsencode(folder)).hexdigest()[:32] + ".sums")

    @contextlib.contextmanager
    def _turn(self, real: str, size: int) -> Iterator[None]:
        """Wait while another process reads the same file, but not for one that was stopped, or where there are no locks."""
        lock = None
        if self._memory is not None:
            with contextlib.suppress(OSError, NotPrivate):
                name = hashlib.sha256(os.fsencode(real)).hexdigest()[:2] + ".lock"
                lock = open_private(self._memory / name, os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS + size / SLOWEST_HASH
            with contextlib.suppress(OSError):
                while lock is not None and not try_lock(lock) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
            yield
        finally:
            if lock is not None:
                unlock_and_close(lock)


def _line(name: str, record: _Record) -> bytes:
    return f"{record.when} {record.sha256} {record.state} {quote_from_bytes(os.fsencode(name))}\n".encode()
