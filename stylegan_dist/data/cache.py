"""The shards of remote sets on a node's own disk: fetched once, checked, shared by all processes of all runs.

Files are named by the SHA-256 of their content, so what two sets or two runs have in common is one file, and
a file with its final name is whole. There is no server process and no table: the folder is the state, and
`flock`, which the kernel drops with a killed process, says who is doing what.

    KEY                 a whole file. Readers hold a shared lock while they have it open.
    KEY.BYTES.part      a file on its way. Its fetcher holds an exclusive lock; without one it is left over.
    NAME.run            what a run needs at a time. It holds an exclusive lock; without one the run has ended.
    lock                taken to remove files, so that the limit holds over all processes
    sums/               which files were compared with their SHA-256 (data/sums.py)

The folder is one that only its user can write to, and what is found there is compared with its SHA-256 when it is
first opened. Other files in it are left alone.

The least recently opened file that nobody has open is removed first. A file that is open is never removed: its space
would be free only after its last reader, and the limit would be broken silently. Runs that together need more than the
limit would wait for each other. A run therefore says what it needs before it begins, and is refused if that does not
fit beside the others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from stylegan_dist.data import storage
from stylegan_dist.data.sums import Sums
from stylegan_dist.errors import InputError
from stylegan_dist.files import is_at, try_lock, unlock_and_close
from stylegan_dist.private import NotPrivate, open_private, private_folder
from stylegan_dist.records import Count, read_record

POLL_SECONDS = 0.05
LOCK_SECONDS = 60.0      # that a process may hold the folder's lock, which takes milliseconds
# Without a change of a file that another process fetches: what its attempts take where a server never answers.
STALLED_SECONDS = storage.ATTEMPTS * (storage.CONNECT_SECONDS + storage.SILENT_SECONDS) + 60.0
PATIENCE_SECONDS = 120.0  # that a reader waits for room, or up to twice that: then not all give up who wait for each other


@dataclass(frozen=True)
class Blob:
    """A file of a shard set, as the cache knows it."""

    location: str
    bytes: int
    sha256: str  # of the content; "" where the set does not tell, and the size must do

    @property
    def key(self) -> str:
        """The name in the cache."""
        return self.sha256 or "unchecked-" + hashlib.sha256(f"{self.location} {self.bytes}".encode()).hexdigest()


@dataclass(frozen=True)
class _Run:
    """What a run claims, see `NodeCache.claim`."""

    data: str
    demand: Count
    whole: Count
    limit: float


_FILE = re.compile(r"(unchecked-)?[0-9a-f]{64}")
_PART = re.compile(rf"{_FILE.pattern}\.(\d{{1,18}})\.part")


class CacheFull(Exception):
    """There is no room: everything in the cache is in use."""


class NodeCache:
    """A bounded folder of whole files.

    Args:
        folder: on a local disk (network file systems may not keep `flock`'s promises between processes).
        limit: bytes of all files together.
        verify: when files that are there already are compared with their SHA-256, as in `Sums`.

    Raises:
        InputError: the folder cannot be used, or others than this user can write to it.
    """

    def __init__(self, folder: str | os.PathLike, limit: float, verify: str = "once"):
        self.limit = limit
        self.seconds_fetching = 0.0  # spent in `open` on files that were not there
        self._claim: BinaryIO | None = None  # open as long as this process lives
        try:
            self.folder = private_folder(folder)
            self._sums = Sums(verify, private_folder(self.folder / "sums"), with_ctime=False)  # it changes with each use
            with self._lock():
                pass
        except NotPrivate as error:
            raise InputError(f"cannot use the cache folder {folder}: {error}; set data.cache to another folder, which is made "
                             "for you alone if it is not there, or, if it is yours, run: chmod go-w FOLDER") from None
        except OSError as error:
            raise InputError(f"cannot use the cache folder {folder}: {error.strerror}; set data.cache to a folder on a local "
                             "disk") from None

    def claim(self, data: str, demand: int, whole: int) -> None:
        """Say what a run needs at a time, for as long as this process lives; one process of a run does.

        Args:
            data: what it reads from. Runs on the same data share its files, and need no more than all of them.
            demand: bytes that it needs at a time.
            whole: bytes of all the data.

        Raises:
            InputError: it does not fit beside what other runs need.
        """
        with self._lock():
            runs = self._runs()
            needed: dict[str, int] = {}
            for run in [*runs, this := _Run(data, demand, whole, self.limit)]:
                needed[run.data] = min(needed.get(run.data, 0) + run.demand, run.whole)
            total, limit = sum(needed.values()), min(run.limit for run in [*runs, this])
            if total > limit:
                raise InputError(
                    f"the cache {self.folder} is too small for this run beside the {len(runs)} that use it: together they read "
                    f"from {total / 1e9:.3g} GB of shards at a time, with the next ones, and the smallest data.cache_gb of "
                    f"them is {limit / 1e9:g}; set data.cache to a folder of this run alone, start all with "
                    f"data.cache_gb={total / 1e9 * 1.1:.2g} or more, or wait until others have ended"
                )
            self._claim = self._write_claim(this)

    def _runs(self) -> list[_Run]:
        """What other runs that live have claimed."""
        runs = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".run") and not self._remove_unused(entry.path):
                with contextlib.suppress(FileNotFoundError, ValueError):  # it has ended, or is about to: its disk is full
                    runs.append(read_record(_Run, Path(entry.path).read_bytes()))
        return runs

    def _write_claim(self, run: _Run) -> BinaryIO:
        """A file that stays open and locked."""
        path = self.folder / f"{os.getpid()}-{time.time_ns()}.run"
        try:
            # Not writable for others whatever the umask, or the next run would not believe it.
            file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115 (kept open)
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(asdict(run)).encode())
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        return file

    def release(self) -> None:
        """Take the claim back, if this process has made it."""
        if self._claim is not None:
            os.unlink(self._claim.name)
            self._claim.close()
            self._claim = None

    def open(self, blob: Blob) -> int:
        """A file descriptor of a file, fetched if it is not there; closing it releases the file.

        Raises:
            InputError: it cannot be fetched, or there is no room for it.
        """
        if (file := self._opened(blob)) is not None:
            return file
        began = time.monotonic()
        patience = PATIENCE_SECONDS * random.uniform(1, 2)
        try:
            while True:
                try:
                    self._fetch(blob, wait=True)
                except CacheFull as error:
                    if time.monotonic() - began > patience:
                        raise InputError(f"{error}: raise data.cache_gb, or lower data.lanes or data.block") from None
                    time.sleep(4 * POLL_SECONDS)
                if (file := self._opened(blob)) is not None:
                    return file
        finally:
            self.seconds_fetching += time.monotonic() - began

    def fetch(self, blob: Blob) -> None:
        """See that a file is there and not the next to go, unless another process is fetching it just now.

        Raises:
            CacheFull, InputError: as their names say; nothing is left behind.
        """
        path = self.folder / blob.key
        try:
            _touch(path, path.stat())
        except FileNotFoundError:
            self._fetch(blob, wait=False)

    def _opened(self, blob: Blob) -> int | None:
        """The file with a shared lock, or None if it is not there, or was not what it must be."""
        path = self.folder / blob.key
        try:
            file = open_private(path)
        except FileNotFoundError:
            return None
        except NotPrivate:
            path.unlink(missing_ok=True)
            return None
        try:
            # Exclusive locks on it are held for moments.
            self._wait_for_lock(file, fcntl.LOCK_SH, path)
            status = os.fstat(file)
            if not status.st_nlink:  # removed between the two calls
                raise ValueError
            if status.st_size != blob.bytes:
                raise ValueError
            self._sums.check(file, path, blob.sha256)
        except (OSError, ValueError):  # OSError: the disk cannot read it any more
            if is_at(file, path):
                path.unlink(missing_ok=True)
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        _touch(file, status)
        return file

    def _fetch(self, blob: Blob, wait: bool) -> None:
        part = self.folder / f"{blob.key}.{blob.bytes}.part"
        try:
            file = open_private(part, os.O_RDWR | os.O_CREAT)
            try:
                self._fetch_into(file, part, blob, wait)
            finally:
                unlock_and_close(file)
        except NotPrivate:
            part.unlink(missing_ok=True)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InputError(f"cannot write {part}: {error.strerror}; " + (
                "free space on that disk, or set data.cache or data.cache_gb" if full else
                "see whether the folder is there and can be written, or set data.cache to another one")) from None

    def _fetch_into(self, file: int, part: Path, blob: Blob, wait: bool) -> None:
        whole = self.folder / blob.key
        if not self._wait_for_part(file, whole, wait) or not is_at(file, part):
            return  # another process has finished it, or given up, or is still at it
        try:
            if whole.exists():
                part.unlink()
                return
            self._make_room(blob)
            storage.download(blob.location, part, partial(storage.check_file, part, blob.bytes, blob.sha256), blob.bytes)
            with self._lock():  # who adds up what is there must not miss a file between its two names
                part.rename(whole)
            self._sums.trust(file, whole, blob.sha256)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _wait_for_part(self, file: int, whole: Path, wait: bool) -> bool:
        """Whether this process may fetch a file now; waits while another one makes progress with it."""
        state, since = None, time.monotonic()
        while not try_lock(file):
            if not wait or whole.exists():
                return False
            status = os.fstat(file)
            if (now := (status.st_size, status.st_mtime_ns)) != state:
                state, since = now, time.monotonic()
            elif time.monotonic() - since > STALLED_SECONDS:
                raise InputError(f"another process fetches {whole} and has made no progress for {STALLED_SECONDS:.0f} s: end "
                                 "or continue the process that has been stopped, or set data.cache to another folder")
            time.sleep(POLL_SECONDS)
        return True

    def _make_room(self, blob: Blob) -> None:
        """Remove files until what is there and what was promised keeps to the limit. Raises CacheFull."""
        with self._lock():
            entries, total = [], 0
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):
                    if part := _PART.fullmatch(entry.name):
                        if entry.name != f"{blob.key}.{blob.bytes}.part" and self._remove_unused(entry.path):
                            continue
                        total += int(part[2])
                    elif _FILE.fullmatch(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        entries.append((status.st_atime_ns, entry.path, status.st_size))
                        total += status.st_size
            for _, path, size in sorted(entries):
                if total <= self.limit:
                    return
                if self._remove_unused(path):
                    total -= size
        if total > self.limit:
            raise CacheFull(f"the cache {self.folder} of {self.limit / 1e9:g} GB has no room for {blob.location} "
                            f"({blob.bytes / 1e9:.3g} GB): {(total - self.limit) / 1e9:.3g} GB too much is in use")

    @staticmethod
    def _remove_unused(path: str) -> bool:
        """Remove a file that no process has locked."""
        try:
            file = open_private(path)
        except FileNotFoundError:
            return True
        except NotPrivate:
            os.unlink(path)
            return True
        try:
            if not try_lock(file):
                return False
            if is_at(file, path):
                os.unlink(path)
            return True
        finally:
            unlock_and_close(file)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            file = open_private(path := self.folder / "lock", os.O_RDWR | os.O_CREAT)
        except NotPrivate as error:
            raise InputError(f"cannot use {path}: {error}; remove it") from None
        try:
            self._wait_for_lock(file, fcntl.LOCK_EX, path)
            yield
        finally:
            unlock_and_close(file)

    @staticmethod
    def _wait_for_lock(file: int, kind: int, path: Path) -> None:
        deadline, pause = time.monotonic() + LOCK_SECONDS, 0.0005
        while True:
            try:
                return fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(f"another process has held {path} for {LOCK_SECONDS:.0f} s: end or continue the process "
                                     "that has been stopped, or set data.cache to another folder") from None
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)


def default_folder() -> Path:
    """A folder on the node's local disk: the job's own temporary folder under Slurm, else one of the user."""
    base = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    return Path(base) / f"stylegan-dist-cache-{os.getuid()}"


def _touch(file: int | Path, status: os.stat_result) -> None:
    """Note when a file was last needed. Its other time says that it has not changed since it was compared."""
    os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))
