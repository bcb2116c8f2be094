"""The digest of a file."""

from __future__ import annotations

import hashlib
import os


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """In hexadecimal, read in blocks. (Python 3.10, which is supported, has no hashlib.file_digest.)

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
