"""Small files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end, or is removed after an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_at(file: IO, path: str | os.PathLike) -> bool:
    """Whether an open file is the one at the path; what is written to a deleted one goes nowhere.

    Raises:
        OSError: that cannot be found out.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
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
