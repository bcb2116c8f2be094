"""Folders and files that only this user can have written.

Other users can write to some places, such as a name in the shared temporary folder. Such a place may hold forged
content or lead to another file. Every check is made on an open descriptor, because a name can mean another file a
moment later.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from stylegan_dist.files import checked_descriptor


class NotPrivate(Exception):
    """Others may have written it. The message says how, as in "it belongs to mallory"."""


def private_folder(folder: str | os.PathLike) -> Path:
    """Make a folder for this user alone, or see that it is one. A symbolic link is followed if it is the user's own.

    Returns: its real, absolute path.
    Raises:
        NotPrivate: others may change it, or a folder or link that leads to it.
        OSError: it cannot be made.
    """
    path = Path(os.path.abspath(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.parent.resolve() / path.name
    if path.is_symlink():
        if (owner := path.lstat().st_uid) not in (os.geteuid(), 0):
            raise NotPrivate(f"it is a symbolic link of {_name(owner)}")
        path = path.resolve()
    for parent in path.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise NotPrivate(f"anybody may replace it, because {parent} is writable for all and has no sticky bit")
    path.mkdir(mode=0o700, exist_ok=True)
    os.close(checked_descriptor(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _check))
    return path


def open_private(path: str | os.PathLike, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file in a private folder. A new file is readable for this user only.

    Raises:
        NotPrivate: it is a link, a pipe, or of somebody else.
        OSError: it cannot be opened.
    """
    def check(status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate("it is not a file")
        _check(status)

    try:
        return checked_descriptor(path, flags | os.O_NOFOLLOW, check)
    except OSError:
        if os.path.islink(path) or (os.path.lexists(path) and not os.path.isfile(path)):
            raise NotPrivate("it is a link or no file") from None
        raise


def user_folder(name: str) -> Path | None:
    """A private folder for what this user's programs remember: in $XDG_CACHE_HOME, ~/.cache or the temporary folder.

    Returns: None where none of them will do.
    """
    places = []
    home = Path(os.path.expanduser("~"))
    if (chosen := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        places.append(Path(chosen) / "stylegan-dist")
    elif home.is_absolute() and os.path.isdir(home) and home.stat().st_uid == os.geteuid():  # not that of the caller of sudo
        places.append(home / ".cache" / "stylegan-dist")
    places.append(Path(tempfile.gettempdir()) / f"stylegan-dist-{os.geteuid()}")
    for place in places:
        try:
            private_folder(place)
            return private_folder(place / name)
        except (OSError, NotPrivate):
            continue
    return None


def _check(status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise NotPrivate(f"it belongs to {_name(status.st_uid)}, not to {_name(os.geteuid())}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotPrivate(f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})")


def _name(user: int) -> str:
    try:
        return f"{pwd.getpwuid(user).pw_name} (uid {user})"
    except KeyError:  # as in many containers
        return f"uid {user}"
