"""The state of the source that a run computes with."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

GIT_SECONDS = 10.0  # for one question; a network file system may be slow


@functools.cache
def source_state() -> dict[str, str | bool]:
    """The commit of the repository that this package is a part of, and whether files were changed since ("dirty").

    Empty where there is no such repository, or no git. It names no remote, whose address may hold a password. This starts
    processes: call it in the background.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else a repository that only has an environment inside
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, timeout=GIT_SECONDS, check=True, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
    return done.stdout.strip()
