"""Where files lie: local paths and URLs that fsspec knows, behind four functions.

A location decides by its scheme alone which driver reads it: fsspec's chains ("a::b") and the file systems that wrap
others are never used, because with them a location could run code or reach files that it does not name.

Network faults are ordinary: every access is tried again with growing, jittered pauses before it becomes
an `InputError` that names the place and the cause. What is refused, or no request at all, is told at once.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec
from braceexpand import braceexpand
from fsspec.callbacks import Callback

from stylegan_dist.errors import InputError
from stylegan_dist.files import file_digest, open_regular
from stylegan_dist.records import MAX_BYTES, shorten
from stylegan_dist.redact import carries_secret, mask_location, mask_urls

MOST_LOCATIONS = 10_000_000  # that one pattern may stand for
_DEEPEST = 50                # braces inside each other
ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds; doubles with every attempt, 15 in all
CONNECT_SECONDS, SILENT_SECONDS = 20, 60  # without a connection, without a byte
SLOWEST = 1000         # bytes a second, on average over SILENT_SECONDS; who sends less is taken for silent
ANSWER_SECONDS = 180   # that a web server may take to say what there is
DRIVERS = {"s3": "stylegan-dist[s3]", "gs": "stylegan-dist[gs]", "gcs": "stylegan-dist[gs]", "http": "stylegan-dist[http]",
            "https": "stylegan-dist[http]", "hf": "stylegan-dist[hf]"}
_WRAPPING = ("reference", "simplecache", "filecache", "blockcache", "cached", "zip", "tar", "libarchive", "dir", "generic",
             "data", "git", "async_wrapper", "dask")
_IPV6 = re.compile(r"://\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]")
_WEB = ("http", "https")
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ESPIPE)  # trying again does not help
_DENIED = (401, 403, 407)                                          # nor after these answers of a web server
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_THERE = "there is no such file"
_RESULT = TypeVar("_RESULT")


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something else than a local file."""
    return "://" in location and not location.startswith("file://")


def check_is_local(name: str, place: str | os.PathLike) -> None:
    """Raises InputError where one of the places that `pack` works with is a URL."""
    check_location(os.fspath(place))
    if is_remote(os.fspath(place)):
        raise InputError(f"{name} of pack must be on this machine, not at {place}: fetch the data or "
                         "upload the shards with the tool of that storage, or read finished shards from there "
                         "(stylegan-dist index)")


def local_path(location: str) -> Path:
    """The path of a local location, which may be a file:// URL."""
    return Path(location.removeprefix("file://"))


def join(folder: str, name: str) -> str:
    """The location of a file in a folder or below a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(local_path(folder) / name)


def check_location(location: str, index: str = "") -> None:
    """Refuse what must not be read or printed: locations are shown, and stored in configurations.

    Args:
        index: the place of the index that names the location; such a file may come from anybody. "": the user does.

    Raises:
        InputError: the URL has a password or a query; is a command or a chain; what an index names is at no
            storage that we have a driver for, or on this machine while the index is not.
    """
    where = f"{index} says that its shards are at" if index else "cannot use"
    if command := re.match(rf"(pipe|{'|'.join(DRIVERS)}):(?!//)", location, re.IGNORECASE):
        if os.path.exists(location):
            return
        raise InputError(f"{where} {command[1]}:{'...' if command[1] == 'pipe' else ''}, which is no URL: give folders, or "
                         "URLs that begin like s3:// or https://; commands are never run")
    scheme = location.partition("://")[0]
    if is_remote(location) and ("::" in _IPV6.sub("://", location) or scheme in _WRAPPING):
        raise InputError(f"{where} {mask_location(location)}: chained URLs (::) and file systems inside others are not read; "
                         "several files are named with braces and wildcards")
    if carries_secret(location):
        raise InputError(f"the place {mask_location(location)} carries a password, a token or a signature, which would be "
                         "stored and shown: give credentials to the storage driver through its environment variables or files "
                         "instead (in the name of a file write %40 for @ and %23 for #)")
    if not is_remote(location):
        if index and is_remote(index):
            raise InputError(f"{where} {location}, a folder of this machine, although the index itself comes from elsewhere; "
                             "it is not trusted")
        return
    if index and scheme not in DRIVERS:
        raise InputError(f"{where} {mask_location(location)}; it is not trusted: an index may name folders and URLs such as "
                         f"{', '.join(f'{name}://' for name in DRIVERS)}")


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
        if not has_wildcards(location):
            found.append(location)
            continue
        if any("**" in step and step != "**" for step in location.split("/")):
            raise InputError(f"cannot list {mask_location(location)}: ** must stand alone between slashes; write * for a part "
                             "of a name")
        matches = retrying(partial(_glob, location), f"list {location}")
        if not matches:
            raise InputError(f"nothing matches {location}: correct the pattern")
        found += matches
    return found


def has_wildcards(location: str) -> bool:
    """Whether it is a pattern that names what is there: with `*`, `?` or `[`."""
    return any(character in _IPV6.sub("://", location) for character in "*?[")


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
    """The content of a small file, 2^28 bytes at most where it comes from a URL.

    Args:
        check: raises ValueError with the reason when what a URL gave is not what was promised.

    Raises:
        InputError: it cannot be had; at once if it is not there.
    """
    def read() -> bytes:
        files, path = _open(location)
        with tempfile.NamedTemporaryFile(prefix="stylegan-dist-") as file:
            try:
                files.get_file(path, file.name, callback=_Watch(MAX_BYTES))
            except FileNotFoundError as error:  # the user's mistake much more often than the network's
                if _cause(error) != _NOT_THERE:
                    raise
                raise InputError(f"cannot read {location}: {_NOT_THERE}; correct the place, or make it first "
                                 "(stylegan-dist pack, stylegan-dist index)") from None
            content = Path(file.name).read_bytes()
            _checked(lambda: check(content), file.name)
            return content
    try:
        if is_remote(location):
            return retrying(read, f"read {location}")
        with open_regular(local_path(location)) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read {location}: {error.strerror}") from None


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
        files, path = _open(location, ANSWER_SECONDS)
        record = files.info(path)
        return record.get("size"), (record.get("ETag") or "").strip('"')
    return retrying(ask, f"find {location}")


def download(location: str, path: str | os.PathLike, check: Callable[[], None], most: int | None = None) -> None:
    """Fetch a file whole into a local file that is there already, until `check` is content.

    Args:
        check: raises ValueError with the reason when what has arrived is not what was promised; its `offset`, where it has
            one, is the byte that the message names.
        most: bytes that it may have; what is longer is not fetched to its end.

    Raises:
        InputError: it cannot be had; the message names the location, the byte that was reached, and the cause.
        OSError: the local disk is full.
    """
    def fetch() -> None:
        files, remote = _open(location)
        files.get_file(remote, str(path), callback=_Watch(most))
        _checked(check, path)
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
            answer = getattr(error.__cause__ if isinstance(error, FileNotFoundError) else error, "status", None)
            if answer in _DENIED or isinstance(error, _WebPage) or (isinstance(error, OSError) and error.errno in _REFUSED):
                raise InputError(f"cannot {cause}") from None
        if attempt < ATTEMPTS:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise InputError(f"cannot {cause} ({ATTEMPTS} attempts in {time.monotonic() - began:.0f} s); check that the file is there "
                     "and whole, the disk or the network, and the credentials")


class _WebPage(ValueError):
    """A page for people came instead of a file."""


class _Watch(Callback):
    """Ends a transfer that brings more than was promised, or next to nothing for long."""

    def __init__(self, most: int | None):
        super().__init__()
        self._most = most
        self._since, self._before = time.monotonic(), 0

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self._most is not None and self.value > self._most:
            raise ValueError(f"more than the {self._most} bytes that it may have: altered")
        if (seconds := time.monotonic() - self._since) > SILENT_SECONDS:
            if self.value - self._before < SLOWEST * seconds:
                raise ValueError(f"only {self.value - self._before} bytes arrived in {seconds:.0f} s")
            self._since, self._before = time.monotonic(), self.value


def _checked(check: Callable[[], object], path: str | os.PathLike) -> None:
    """What `check` says of a file that was fetched, and why that may be so."""
    try:
        check()
    except ValueError:
        with open(path, "rb") as file:
            if not re.match(rb"\s*<(!doctype html|html)", file.read(200), re.IGNORECASE):
                raise
        raise _WebPage("what came is a web page, not the file: the server may ask for a login, or explain an error there"
                       ) from None


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        # fsspec takes whatever keeps a web server from answering for a missing file, and says why behind it.
        behind = error.__cause__
        refused = getattr(behind, "status", None) not in (None, 404, 410)
        lost = isinstance(behind, OSError) and not isinstance(behind, FileNotFoundError)
        return _cause(behind) if isinstance(behind, Exception) and (refused or lost) else _NOT_THERE
    text = getattr(error, "strerror", None) if not hasattr(error, "host") else None  # aiohttp's texts name host and port
    text = mask_urls(" ".join((text or str(error)).split())) or type(error).__name__
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


def _glob(location: str) -> list[str]:
    """What a location with wildcards matches, as full locations."""
    files, path = _open(location, ANSWER_SECONDS)
    if location.partition("://")[0] in _WEB:
        scheme, _, rest = location.partition("://")
        host, *steps = rest.split("/")
        found, listed = [f"{scheme}://{host}"], True
        for step in steps:
            if listed := has_wildcards(step):
                found = [f"{folder}/{name}" for folder in found for name in fnmatch.filter(_links(files, folder), step)]
            else:
                found = [f"{folder}/{step}" for folder in found]
        return [one for one in found if listed or files.exists(one, strict=True)]
    matches = sorted(str(match) for match in files.glob(path))
    return [files.unstrip_protocol(match) for match in matches] if is_remote(location) else matches


def _links(files: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The names that a web server lists in a folder; their places in the path vary."""
    return sorted({name.rstrip("/").rpartition("/")[2] for name in files.ls(folder + "/", detail=False)})


def _open(location: str, most_seconds: float | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The driver of a location, and the location's path as the driver wants it; `most_seconds`: of one request."""
    scheme = location.partition("://")[0] if is_remote(location) else "file"
    try:
        driver = fsspec.get_filesystem_class(scheme)  # not url_to_fs, which takes locations apart at "::"
        options = {}
        if scheme in _WEB:
            import aiohttp

            if not (parts := urlsplit(location)).hostname or parts.port == 0:  # raises ValueError where it is no URL
                raise ValueError("it names no server")
            # Its own limit is on the whole request, whatever the size; ours are on silence. Proxies as curl takes them.
            timeout = aiohttp.ClientTimeout(total=most_seconds, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        return driver(**driver._get_kwargs_from_urls(location), **options), driver._strip_protocol(location)
    except ImportError:
        extra = DRIVERS.get(scheme, "the driver that fsspec names for it")
        raise InputError(f"{mask_location(location)} needs a driver that is not installed: pip install \"{extra}\"") from None
    except (TypeError, ValueError) as error:
        hint = "" if scheme in fsspec.available_protocols() else (
            "; data may lie in folders and at URLs such as s3://, gs://, http(s):// and hf://")
        raise InputError(f"cannot use {mask_location(location)}: {mask_urls(str(error))}{hint}") from None
