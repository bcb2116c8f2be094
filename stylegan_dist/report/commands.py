"""The verb `report` of the command line."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from stylegan_dist.arguments import add_verb, path
from stylegan_dist.errors import EXIT_OK

_EXAMPLES = """\
examples:
  stylegan-dist report runs/photos                          # writes runs/photos/report.html
  stylegan-dist report runs/a runs/b runs/c --out abc.html  # side by side; what differs in their configurations first

The file needs no server and no network, holds everything that it shows, and has at most 10 MB. A run may go on meanwhile.
docs/report.md says what is in it.
"""


def add_report(verbs) -> None:
    """Add the verb to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "report", _report,
        help="what one or several runs have done, as one HTML file", epilog=_EXAMPLES,
        description="Write what runs have done into one HTML file: samples with a slider through the whole training, losses\n"
        "and scores tied to it, faults survived, configuration. Missing parts are left out; secrets are masked.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=path("RUN"), help="folder of a run")
    parser.add_argument("--out", metavar="FILE", type=path("--out"),
                        help="the file (default: RUN/report.html, of several runs report.html in the current folder)")


def _report(args: argparse.Namespace) -> int:
    from stylegan_dist.report.page import REPORT_NAME, write_report  # slow to import, and not needed for the other verbs

    began = time.perf_counter()
    runs = [Path(run) for run in args.runs]
    out = Path(args.out) if args.out else (runs[0] / REPORT_NAME if len(runs) == 1 else Path(REPORT_NAME))
    report = write_report(runs, out)
    for note in report.notes:
        print(f"  {note}")
    print(f"{report.path}: {report.bytes / 1e6:.1f} MB, written in {time.perf_counter() - began:.0f} s; open it in a browser")
    return EXIT_OK
