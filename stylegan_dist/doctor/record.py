"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]
SEVERITY: tuple[Status, ...] = ("ok", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One fact, for one line.

    Attributes:
        name: what it is about, in a few words.
        status: "error" where training would not start, or would compute something wrong.
        remedy: what to do, where it is not ok.
        version: of a library.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""
    version: str = ""


def ok(name: str, text: str, version: str = "") -> Finding:
    return Finding(name, "ok", text, "", version)


def warning(name: str, text: str, remedy: str, version: str = "") -> Finding:
    return Finding(name, "warning", text, remedy, version)


def error(name: str, text: str, remedy: str, version: str = "") -> Finding:
    return Finding(name, "error", text, remedy, version)


@dataclass(frozen=True)
class Options:
    """What the checks are told.

    Attributes:
        run: folder of the run to come.
        scratch: an empty folder for what the checks write; empty where there is none.
    """

    run: str = "."
    scratch: str = ""


@dataclass(frozen=True)
class Check:
    """A function that looks at one thing.

    Attributes:
        name: also of the finding where the function fails.
        function: of a module, as another process calls it by its name.
        seconds: that it may take.
        stuck: what to do where it takes longer, or crashes.
        needs: names of checks without which it is not tried.
        late: the status where it takes longer.
    """

    name: str
    function: Callable[[Options], Iterator[Finding]]
    seconds: float
    stuck: str
    needs: tuple[str, ...] = ()
    late: Status = "error"


def not_tried(name: str, lacking: Iterable[str]) -> Finding:
    """What stands for a check without what it needs."""
    return warning(name, f"not tried, because of: {', '.join(sorted(lacking))}", "correct that first")


def worst(findings: list[Finding]) -> Status:
    """The status of all together."""
    return max((finding.status for finding in findings), key=SEVERITY.index, default="ok")
