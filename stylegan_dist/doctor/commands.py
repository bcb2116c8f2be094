"""The verb `doctor` of the command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from stylegan_dist.arguments import add_verb, path
from stylegan_dist.doctor import all_reduce, gpus, operators, places, services, software, trial
from stylegan_dist.doctor.asking import examine
from stylegan_dist.doctor.record import Check, Finding, Options, Status, worst
from stylegan_dist.errors import EXIT_FAILURE, EXIT_OK
from stylegan_dist.redact import redact

# Each group has a process of its own, and the second one a folder to write to. Each process loads PyTorch, which takes longer
# than most checks. The operators come last: compiling them may take all the time that is left.
GROUPS: Sequence[Sequence[Check]] = (
    (*software.CHECKS, *gpus.CHECKS, *places.CHECKS),
    (*software.LIBRARY_CHECKS, *services.CHECKS, *all_reduce.CHECKS, *trial.CHECKS, *operators.CHECKS))
_COLOURS: dict[Status, str] = {"ok": "32", "warning": "33", "error": "1;31"}
_NAME, _STATUS = 26, 8  # columns
_HELP = """\
Each line is one fact: ok, a warning, or an error, with what to do about it. Looked at are Python, PyTorch, the driver and
each GPU; disks, memory and limits; libraries; the login of W&B; weights of feature networks; two processes that sum numbers;
one step of a real training of a tiny network; and the native operators, which are compiled if they are not there yet. It takes
half a minute, and two at most: what hangs is ended and named. Nothing is downloaded or sent.

exit codes: 0 training would start here, 1 it would not (there is an error)

examples:
  stylegan-dist doctor
  stylegan-dist doctor --run /scratch/runs/faces     # is there room for a run in that folder?
  stylegan-dist doctor --json > doctor.json          # {"overall": ..., "checks": [...], "versions": {...}}
  srun --gpus 1 stylegan-dist doctor                 # on a node of a cluster
"""


def add_doctor(verbs) -> None:
    """Add the verb to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "doctor", _doctor,
        help="say whether training would start here, and if not, what to do", epilog=_HELP,
        description="Say whether training would start on this machine, and if not, why, and what to do.",
    )
    parser.add_argument("--run", dest="folder", metavar="DIR", type=path("--run"), default=".",
                        help="folder of a run to come (default: the current folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def _doctor(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is temporary is removed
    options = Options(run=str(Path(args.folder)))
    if args.json:
        findings = examine(GROUPS, options, lambda name: None, lambda finding: None)
        print(json.dumps(as_object(findings), indent=2))
    else:
        page = _Page()
        findings = examine(GROUPS, options, page.begin, page.tell)
        page.end(findings)
    return EXIT_FAILURE if worst(findings) == "error" else EXIT_OK


def as_object(findings: list[Finding]) -> dict:
    """What `--json` prints; secrets are masked."""
    return {
        "overall": worst(findings),
        "checks": [{"name": one.name, "status": one.status, "text": redact(one.text), "remedy": redact(one.remedy)}
                   for one in findings],
        "versions": {one.name: one.version for one in findings if one.version},
    }


class _Page:
    """Prints lines as they become known; on a terminal coloured, and with the name of the check that is going on."""

    def __init__(self) -> None:
        self._moves = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._moves and not os.environ.get("NO_COLOR")

    def begin(self, name: str) -> None:
        if self._moves:
            print(f"\r\x1b[K{name} ...", end="", flush=True)

    def tell(self, finding: Finding) -> None:
        if self._moves:
            print("\r\x1b[K", end="")
        status = f"{finding.status:<{_STATUS}}"
        print(redact(f"{finding.name:<{_NAME}} {self._coloured(status, finding.status)} {finding.text}"))
        if finding.remedy:
            print(redact(f"{'':<{_NAME + _STATUS + 2}}-> {finding.remedy}"))
        sys.stdout.flush()

    def end(self, findings: list[Finding]) -> None:
        if self._moves:
            print("\r\x1b[K", end="")
        status = worst(findings)
        count = sum(finding.status == status for finding in findings)
        many = f"{count} {status}{'s' * (count > 1)}"
        print("\n" + self._coloured({"ok": "training would start here", "warning": f"training would start here; {many}",
                                     "error": f"training would not start here: {many}"}[status], status), flush=True)

    def _coloured(self, text: str, status: Status) -> str:
        return f"\x1b[{_COLOURS[status]}m{text}\x1b[0m" if self._colours else text
