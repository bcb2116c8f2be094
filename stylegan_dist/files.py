"""Files: atomic writing of small files, SHA-256, safe opening of foreign files, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import IO, BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to. At the end it is renamed to `path`, after an error it is removed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_at(file: IO | int, path: str | os.PathLike) -> bool:
    """Whether an open file (or descriptor) is the one at the path. Writes to a deleted file are lost.

    Raises:
        OSError: that cannot be found out.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(file if isinstance(file, int) else file.fileno()))
    except FileNotFoundError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name, sync it and rename it.

    Raises:
        OSError: the file cannot be written; a former one is as it was.
    """
    with replacing(path) as temporary, open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The digest of a file, in hexadecimal, read in blocks. Python 3.10 is supported and has no hashlib.file_digest.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading. Unlike a raw one, `read(n)` gives fewer bytes only where the file ends.

    Raises:
        OSError: as `regular_descriptor`.
    """
    return open(regular_descriptor(path), "rb")


def regular_descriptor(path: str | os.PathLike) -> int:
    """A descriptor for reading a file. Pipes and devices are refused, because reading them could wait for ever.

    Raises:
        OSError: it cannot be opened; ESPIPE: it is a pipe, a socket or a device.
    """
    def check(status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ESPIPE, "it is a pipe or a device, not a plain file", os.fspath(path))

    check(os.stat(path))
    return checked_descriptor(path, os.O_RDONLY, check)


def checked_descriptor(path: str | os.PathLike, flags: int, check: Callable[[os.stat_result], None]) -> int:
    """A descriptor of what `check` accepts, opened without waiting for the other end of a pipe. A new file is its user's own.

    Raises:
        OSError: it cannot be opened; and what `check` raises.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        check(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_log(path: str | os.PathLike) -> FileIO:
    """Open a file to append to. A pipe that nobody reads is an error, and nothing to wait for.

    Raises:
        OSError: it cannot be opened.
    """
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))


def try_lock(file: int, needed: bool = True, shared: bool = False) -> bool:
    """Whether this process has the lock of a file or folder now.

    Args:
        shared: with others that want it shared; else alone.
        needed: raise OSError where a file system has no locks; else go on as if it were locked.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as network file systems say that another process has it
        return False
    except OSError:
        if needed:
            raise
    return True


def unlock_and_close(file: int) -> None:
    """Unlock, then close. Closing alone does not unlock a file whose descriptor another process has inherited by a fork."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
