"""Downloads a file into a private folder: continued where it stopped, checked before it has its name, once on a machine."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from stylegan_dist.files import is_at, try_lock, unlock_and_close
from stylegan_dist.private import NotPrivate, open_private

SECONDS = 30.0        # without any byte, after which a connection is given up
_BLOCK = 1 << 20
_MOST_BYTES = 4 << 30  # of a file whose size is not known
_LOOK_SECONDS = 0.5
_MOST_VAIN = 3        # attempts one after the other that bring nothing


class CannotDownload(Exception):
    """The message says why, as in "the connection was refused"."""


def download(url: str, path: Path, sha256: str, size: int | None) -> None:
    """Bring a file to `path`, unless another process has just done that.

    It grows in a file beside it, whose name ends in `.part`. An interrupted download continues with that. Other processes
    that want the same file wait for the one that fetches it.

    Args:
        path: in a private folder.
        size: in bytes, if it is known.
    Raises:
        CannotDownload: the file cannot be had, or is another one.
    """
    part = path.with_name(path.name + ".part")
    file = -1
    try:
        file = _locked(part)
        if path.exists():
            part.unlink(missing_ok=True)
        else:
            _fetch(url, file, path.name, size)
            _check(file, part, sha256)
            os.fsync(file)
            part.replace(path)
    except (OSError, http.client.HTTPException, NotPrivate) as error:
        raise CannotDownload(_reason(error)) from None
    finally:
        if file >= 0:
            unlock_and_close(file)


def _locked(part: Path) -> int:
    """A descriptor of the unfinished file, for this process alone."""
    while True:
        file = open_private(part, os.O_RDWR | os.O_CREAT)
        try:
            while not try_lock(file, needed=False):
                time.sleep(_LOOK_SECONDS)
            if is_at(file, part) or not part.parent.exists():
                return file
        except BaseException:
            os.close(file)
            raise
        unlock_and_close(file)  # another process has finished it meanwhile, or removed it


def _fetch(url: str, file: int, name: str, size: int | None) -> None:
    """Append what is missing. A connection that is lost is taken up again, some times if nothing comes at all."""
    vain = 0
    while True:
        have = os.fstat(file).st_size
        if size is not None and have >= size:
            return
        try:
            _continue(url, file, name, have, size)
            return
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:  # else the part is longer than the file
                raise
            os.ftruncate(file, 0)
        except urllib.error.URLError:  # there is no connection
            raise
        except (OSError, http.client.HTTPException):
            vain = 0 if os.fstat(file).st_size > have else vain + 1
            if vain == _MOST_VAIN:
                raise


def _continue(url: str, file: int, name: str, have: int, size: int | None) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        if have and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            have = 0  # it sends all of it
            os.ftruncate(file, 0)
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else size
        os.lseek(file, have, os.SEEK_SET)
        interval = 0.2 if sys.stderr.isatty() else 30.0
        with tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, mininterval=interval) as bar:
            while block := answer.read1(_BLOCK):
                have += len(block)
                if have > (_MOST_BYTES if size is None else size):
                    os.ftruncate(file, 0)
                    raise CannotDownload(f"{url} sends more bytes than the file has")
                bar.update(len(block))
                view = memoryview(block)
                while view:
                    view = view[os.write(file, view):]
        if total is not None and have < total:
            raise http.client.IncompleteRead(b"", total - have)


def _check(file: int, part: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    os.lseek(file, 0, os.SEEK_SET)
    while block := os.read(file, _BLOCK):
        digest.update(block)
    if digest.hexdigest() != sha256:
        part.unlink(missing_ok=True)  # else the next attempt would continue it
        raise CannotDownload(f"what came has the SHA-256 {digest.hexdigest()}, and is not used")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    code = getattr(error, "code", None)
    return " ".join(f"{reason}{f' (HTTP {code})' if code else ''}".split())
