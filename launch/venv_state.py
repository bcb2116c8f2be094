"""Is a virtual environment complete? Run with its Python, by launch/setup.sh; needs nothing but the standard library.

    python -I launch/venv_state.py ready EXTRAS    exit code 0 if EXTRAS of this project are installed, and whole
    python -I launch/venv_state.py mend            make pip install again what is not whole
    python -I launch/venv_state.py done EXTRAS     note that EXTRAS have been installed

What is installed is compared with pip's own lists of files and sizes: an interrupted pip, a full disk or a deleted folder leave
packages behind that pip itself takes for installed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
STAMP = Path(sys.prefix, "stylegan-dist-installed.json")


def wanted() -> str:
    """Changes with everything that decides what is to be installed."""
    digest = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    for name in ("setup.py", "pyproject.toml", "constraints.txt", "stylegan_dist/__init__.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def installed() -> dict[str, str]:
    """Name and version of what is there and whole."""
    return {one.name: one.version for one in distributions(path=[str(SITE)]) if whole(one)}


def whole(distribution: Distribution) -> bool:
    """Whether all files are there, as long as pip has written them."""
    try:
        record = distribution.read_text("RECORD")
        if not record or not distribution.name or not distribution.version:
            return False
        return all(os.stat(SITE / path).st_size == int(size or -1) for path, _, size in csv.reader(record.splitlines())
                   if size and not path.endswith(".pyc"))
    except (OSError, ValueError, KeyError):
        return False


def noted() -> dict:
    try:
        note = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("wanted") == wanted() else {}


def ready(extras: str) -> bool:
    note = noted()
    return extras in note.get("extras", ()) and note["installed"].items() <= installed().items() and leads_here()


def leads_here() -> bool:
    """Whether it is this copy of the project that is installed."""
    for one in distributions(path=[str(SITE)], name="stylegan-dist"):
        return json.loads(one.read_text("direct_url.json") or "{}").get("url") == ROOT.as_uri()
    return False


def mend() -> None:
    """Without its metadata pip takes a package for missing."""
    for info in SITE.glob("*.dist-info"):
        if not whole(Distribution.at(info)):
            print(f"not whole: {info.name.removesuffix('.dist-info')}")
            shutil.rmtree(info)
    for left_behind in SITE.glob("~*"):  # pip's names for what it was about to replace
        shutil.rmtree(left_behind, ignore_errors=True)


def done(extras: str) -> None:
    note = {"wanted": wanted(), "extras": sorted({extras, *noted().get("extras", ())}), "installed": installed()}
    part = STAMP.with_suffix(".part")
    part.write_text(json.dumps(note, indent=1))
    part.replace(STAMP)


if __name__ == "__main__":
    if sys.argv[1] == "ready":
        sys.exit(0 if ready(sys.argv[2]) else 1)
    elif sys.argv[1] == "mend":
        mend()
    else:
        done(sys.argv[2])
