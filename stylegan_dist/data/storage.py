"""Where files lie: local paths and every URL that fsspec knows, behind four functions.

Network faults are ordinary: every access is tried again with growing, jittered pauses before it becomes
an `InputError` that names the place and the cause.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec
from braceexpand import braceexpand

from stylegan_dist.digest import file_digest
from stylegan_dist.errors import InputError
from stylegan_dist.records import shorten

MOST_LOCATIONS = 10_000_000  # that one pattern may stand for
_DEEPEST = 50                # braces inside each other
ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds; doubles with every attempt, 15 in all
CONNECT_SECONDS, SILENT_SECONDS = 20, 60  # without a connection, without a byte
_DRIVERS = {"s3": "stylegan-dist[s3]", "gs": "stylegan-dist[gs]", "gcs": "stylegan-dist[gs]", "http": "stylegan-dist[http]",
            "https": "stylegan-dist[http]", "hf": "stylegan-dist[hf]"}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # trying again does not help
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESULT = TypeVar("_RESULT")


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something else than a local file."""
    return "://" in location and not location.startswith("file://")


def check_is_local(name: str, place: str | os.PathLike) -> None:
    """Raises InputError where one of the places that `pack` works with is a URL."""
    if is_remote(os.fspath(place)):
        raise InputError(f"{name} of pack must be on this machine, not at {place}: fetch the data or upload the shards "
                         "with the tool of that storage, or read finished shards from there (stylegan-dist index)")


def local_path(location: str) -> Path:
    """The path of a local location, which may be a file:// URL."""
    return Path(location.removeprefix("file://"))


def join(folder: str, name: str) -> str:
    """The location of a file in a folder or below a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(local_path(folder) / name)


def check_location(location: str) -> None:
    """Refuse URLs that carry secrets: locations are printed, and stored in configurations.

    Raises:
        InputError: the URL has a password or a query.
    """
    if is_remote(location) and (re.search(r"://[^/]*:[^/]*@", location) or re.search(r"\?.*=", location)):
        raise InputError(f"the URL {re.sub(r'//[^/]*@', '//...@', location.split('?')[0])} carries a password or a signature: "
                         "give credentials to the storage driver through its environment variables or files instead")


def check_driver(location: str) -> None:
    """Raises: InputError: nothing here can read from this kind of location."""
    _open(location)


def expand(pattern: str) -> list[str]:
    """The locations that a pattern with braces (`{000..099}`, `{a,b}`) and wildcards (`*`, `?`, `[ab]`) stands for.

    Braces are expanded whether or not the files are there, and in their order; wildcards name what is there, sorted.

    Raises:
        InputError: the pattern is malformed, or its wildcards match nothing.
    """
    if not is_remote(pattern) and os.path.exists(local_path(pattern)):
        return [str(local_path(pattern))]
    try:
        if _most_expanded(pattern) > MOST_LOCATIONS:
            raise InputError(f"the braces of {shorten(pattern)} stand for more than {MOST_LOCATIONS} places: name fewer")
        locations = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise InputError(f"the braces of {shorten(pattern)} do not match ({shorten(str(error))})") from None
    found = []
    for location in locations:
        if not any(character in location for character in "*?["):
            found.append(location)
            continue
        matches = retrying(partial(_glob, location), f"list {location}")
        if not matches:
            raise InputError(f"nothing matches {location}: correct the pattern")
        found += matches
    return found


def _most_expanded(pattern: str) -> int:
    """An upper bound of what braces expand to: the numbers of choices of all of them, multiplied. Raises ValueError."""
    total, open_lists = 1, []
    for first, last in re.findall(r"{(-?\d+)\.\.(-?\d+)", pattern):
        total *= abs(int(last) - int(first)) + 1
    for character in pattern:
        if character == "{":
            open_lists.append(1)
            if len(open_lists) > _DEEPEST:
                raise ValueError(f"nested more than {_DEEPEST} deep")
        elif character == "," and open_lists:
            open_lists[-1] += 1
        elif character == "}" and open_lists:
            total *= open_lists.pop()
    return total


def read_bytes(location: str, check: Callable[[bytes], object] = lambda content: None) -> bytes:
    """The content of a small file.

    Args:
        check: raises ValueError with the reason when what a URL gave is not what was promised.

    Raises:
        InputError: it cannot be had; at once if it is not there.
    """
    def read() -> bytes:
        files, path = _open(location)
        try:
            content = files.cat_file(path)
        except FileNotFoundError:  # the user's mistake much more often than the network's
            raise InputError(f"cannot read {location}: there is no such file; correct the place, or make it first "
                             "(stylegan-dist pack, stylegan-dist index)") from None
        check(content)
        return content
    if not is_remote(location):
        try:
            return local_path(location).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {location}: {error.strerror}") from None
    return retrying(read, f"read {location}")


def write_bytes(location: str, content: bytes) -> None:
    """Write a small file of a remote folder. Raises InputError when it cannot be written."""
    def write() -> None:
        files, path = _open(location)
        files.pipe_file(path, content)
    retrying(write, f"write {location}")


def announced(location: str) -> tuple[int | None, str]:
    """What the storage of a URL says of a file before it is read: its bytes (None: nothing), and its entity tag ("": none).

    Raises:
        InputError: the file is not there, or the storage does not answer.
    """
    def ask() -> tuple[int | None, str]:
        files, path = _open(location)
        record = files.info(path)
        return record.get("size"), (record.get("ETag") or "").strip('"')
    return retrying(ask, f"find {location}")


def download(location: str, path: str | os.PathLike, check: Callable[[], None]) -> None:
    """Fetch a file whole into a local file that is there already, until `check` is content.

    Args:
        check: raises ValueError with the reason when what has arrived is not what was promised; its `offset`, where it has
            one, is the byte that the message names.

    Raises:
        InputError: it cannot be had; the message names the location, the byte that was reached, and the cause.
        OSError: the local disk is full.
    """
    def fetch() -> None:
        files, remote = _open(location)
        files.get_file(remote, str(path))
        check()
    retrying(fetch, f"fetch {location}", lambda error: f" at byte {getattr(error, 'offset', os.path.getsize(path))}")


def check_file(path: str | os.PathLike, size: int | None, sha256: str = "") -> None:
    """Raises ValueError with the reason unless a local file has this size and SHA-256 (None, "": nobody knows)."""
    found = os.path.getsize(path)
    if size is not None and found != size:
        raise ValueError(f"{found} bytes instead of {size}: truncated or altered")
    if sha256 and file_digest(path) != sha256:
        raise ValueError(f"the SHA-256 differs from the index, although all {found} bytes are there: altered")


def retrying(action: Callable[[], _RESULT], what: str, where: Callable[[Exception], str] = lambda error: "") -> _RESULT:
    """The result of an action on storage, tried up to ATTEMPTS times.

    Raises:
        InputError: all attempts failed, or trying again cannot help: "cannot <what><where(error)>: <cause>".
        OSError: the local disk is full.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except InputError:
            raise
        except Exception as error:  # every driver has exceptions of its own, and few of them are OSErrors
            cause = f"{what}{where(error)}: {_cause(error)}"
            if isinstance(error, OSError) and error.errno in _FULL:  # the local disk: the caller knows what to do
                raise
            if isinstance(error, OSError) and error.errno in _REFUSED:
                raise InputError(f"cannot {cause}") from None
        if attempt < ATTEMPTS:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise InputError(f"cannot {cause} ({ATTEMPTS} attempts in {time.monotonic() - began:.0f} s); check that the file is there "
                     "and whole, the disk or the network, and the credentials")


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


def _glob(location: str) -> list[str]:
    """What a location with wildcards matches, as full locations."""
    files, path = _open(location)
    if location.startswith(("http://", "https://")):
        scheme, _, steps = location.partition("://")
        found, listed = [scheme + ":/"], True
        for step in steps.split("/"):
            if listed := any(character in step for character in "*?["):
                found = [f"{folder}/{name}" for folder in found for name in fnmatch.filter(_links(files, folder), step)]
            else:
                found = [f"{folder}/{step}" for folder in found]
        return [one for one in found if listed or files.exists(one)]
    matches = sorted(str(match) for match in files.glob(path))
    return [files.unstrip_protocol(match) for match in matches] if is_remote(location) else matches


def _links(files: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The names that a web server lists in a folder; their places in the path vary."""
    return sorted({name.rstrip("/").rpartition("/")[2] for name in files.ls(folder + "/", detail=False)})


def _open(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The driver of a location, and the location's path as the driver wants it."""
    protocol = location.split("://", 1)[0].split("::")[-1] if is_remote(location) else "file"
    try:
        options = {}
        if protocol in ("http", "https"):
            import aiohttp

            # Its own limit is on the whole request, whatever the size; ours are on silence.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
            options = {"client_kwargs": {"timeout": timeout}}
        return fsspec.core.url_to_fs(location, **options)
    except ImportError:
        driver = _DRIVERS.get(protocol, "the driver that fsspec names for it")
        raise InputError(f"{location} needs a driver that is not installed: pip install \"{driver}\"") from None
    except ValueError as error:
        hint = "" if protocol in fsspec.available_protocols() else (
            "; data may lie in folders and at URLs such as s3://, gs://, http(s):// and hf://")
        raise InputError(f"cannot use {location}: {error}{hint}") from None
