"""Small files that are there whole or not at all, and opening those of others."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name, sync it and rename it.

    Raises:
        OSError: the file cannot be written; a former one is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading, without a buffer. A pipe that nobody writes to is not waited for.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a plain file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not block where it has just become a pipe
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return open(descriptor, "rb", buffering=0)
