"""Small archives with given members."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def write_tar(path: Path, entries: Iterable[tuple[str, bytes]]) -> Path:
    """Members (name, content), in this order."""
    with tarfile.open(path, "w") as file:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path
