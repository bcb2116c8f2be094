"""The parts of the page that are text: facts, faults, configurations, numbers."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterator, Sequence
from typing import Any

from stylegan_dist import __version__
from stylegan_dist.cluster.runs import duration
from stylegan_dist.config import config_of, dotted, to_dict
from stylegan_dist.errors import InputError
from stylegan_dist.report.evaluations import score_title
from stylegan_dist.report.foreign import shown
from stylegan_dist.report.html import Html, details, element, joined, table
from stylegan_dist.report.reading import RunFiles
from stylegan_dist.report.thinning import evenly
from stylegan_dist.report.values import NONE, kimg, number, percent, setting, when
from stylegan_dist.training.best import Best

MOST_ROWS = 200       # of a table of numbers
MOST_FAULTS = 30      # rows of a table of faults
OWN_FOLDER = "run.dir"


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """What a run is and how far it is, (name, value)."""
    status, total = run.status, _total(run)
    seen = f"{kimg(run.nimg)} kimg"
    if total:
        seen += f" of {kimg(total)} ({percent(run.nimg / total)})"
    found = [("seen", seen)]
    if status:
        found.insert(0, ("state", f"{status.state}{f', {status.doing}' if status.doing and status.state == 'running' else ''}"
                                  f" ({when(status.time)})"))
    if run.best:
        found.append(("best", describe_best(run.best)))
    if run.records:
        found.append(("trained", f"{duration(training_seconds(run))}, from {when(run.records[0].time)} "
                                 f"to {when(run.records[-1].time)}"))
        if (speed := run.records[-1].metrics.get("time/img_per_sec")) is not None:
            found.append(("throughput", f"{number(speed)} images per second at the last tick"))
    for name in ("transfer", "data", "engine", "generator", "discriminator", "precision", "batch", "loss"):
        if name in run.facts:
            found.append((name, run.facts[name]))
    found.append(("survived", _survived(run)))
    return found


def describe_best(best: Best) -> str:
    name = score_title(shown(best.metric))
    return f"{name} {number(best.value)} at {kimg(best.nimg)} kimg"


def _total(run: RunFiles) -> int:
    if run.status and run.status.total:
        return run.status.total
    value = run.config.get("run.kimg")
    return int(value * 1000) if isinstance(value, (int, float)) and 0 < value < 1e12 else 0


def _survived(run: RunFiles) -> str:
    warnings = sum(one.count for one in run.warnings)
    counts = ((len(run.restarts), "restart"), (len(run.rollbacks), "roll-back"), (warnings, "warning"))
    return ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts)


def training_seconds(run: RunFiles) -> float:
    """Seconds in which the steps that count were made: ticks without what was trained anew."""
    seconds, before = 0.0, 0
    for record in run.records:
        speed = record.metrics.get("time/img_per_sec", 0.0)
        if math.isfinite(speed) and speed > 0:
            seconds += (record.nimg - before) / speed
        before = record.nimg
    return min(seconds, 1e12)


def fact_list(run: RunFiles) -> Html:
    return element("dl", *(joined(element("dt", name), element("dd", value)) for name, value in facts(run)), class_="facts")


def summary(runs: Sequence[RunFiles]) -> Html:
    """Several runs in a table, a column each."""
    each = [dict(facts(run)) for run in runs]
    names = list(dict.fromkeys(name for one in each for name in one))
    rows = [[name, *(one.get(name, NONE) for one in each)] for name in names]
    return table(["", *(run.name for run in runs)], rows, "The runs", titled=False)


def differences(runs: Sequence[RunFiles]) -> Html:
    """Settings that are not the same in all runs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    missing = object()
    rows = [[key, *(setting(run.config[key]) if key in run.config else NONE for run in runs)]
            for key in keys if key != OWN_FOLDER and len({repr(run.config.get(key, missing)) for run in runs}) > 1]
    if not rows:
        return element("p", "Nothing in their configurations but the folder.", class_="soft")
    return table(["setting", *(run.name for run in runs)], rows, "What differs in their configurations", titled=False)


def configuration(run: RunFiles) -> Html | None:
    if not run.config:
        return None
    try:
        usual: dict[str, Any] = dotted(to_dict(config_of(str(run.config.get("generator.family", "stylegan2")))))
    except InputError:  # a family that this version does not have
        usual = {}
    rows, changed = [], 0
    for key, value in run.config.items():
        is_usual = key not in usual or usual[key] == value
        changed += not is_usual
        rows.append([key, setting(value), "" if is_usual else setting(usual[key])])
    return details(f"All {len(rows)} settings, {changed} of them not the default",
                   table(["setting", "value", "default, where it is another"], rows, f"Configuration of {run.name}"))


def versions(runs: Sequence[RunFiles]) -> Html:
    rows = [[f"{run.name}, its last start" if len(runs) > 1 else "the last start of the run", run.facts["versions"]]
            for run in runs if "versions" in run.facts]
    rows.append(["this report", f"stylegan_dist {__version__}, Python {platform.python_version()}, "
                                f"pillow {importlib.metadata.version('pillow')}"])
    return element("dl", *(joined(element("dt", name), element("dd", text)) for name, text in rows), class_="facts")


def faults(run: RunFiles) -> Html:
    """Restarts, roll-backs, jobs of Slurm and warnings, each in a table if there are any."""
    parts: list[Html] = []

    def add(title: str, head: list[str], rows: list[list[str]]) -> None:
        if rows:
            left = f" (the last {MOST_FAULTS} of {len(rows):,})" if len(rows) > MOST_FAULTS else ""
            parts.append(table(head, rows[-MOST_FAULTS:], f"{title}{left}"))

    add("Restarts", ["restart", "after kimg", "first record of it"],
        [[str(one.segment), kimg(one.nimg), when(one.time)] for one in run.restarts])
    add("Roll-backs", ["at kimg", "back to kimg", "why"],
        [[kimg(one.at), kimg(one.to) if one.reason else f"before {kimg(one.to)}", one.reason or "not known"]
         for one in run.rollbacks])
    add("Starts by Slurm", ["time", "job", "restart", "outcome", "checkpoint", "message"],
        [[when(float(row[0])) if row[0].isdigit() and len(row[0]) < 16 else row[0], *row[1:]] for row in run.slurm])
    rows = [[one.text, f"{one.count:,}", one.last] for one in run.warnings]
    if len(rows) > MOST_FAULTS:  # these are ordered by their number
        more = sum(one.count for one in run.warnings[MOST_FAULTS:])
        rows = [*rows[:MOST_FAULTS - 1], ["others", f"{more + run.warnings[MOST_FAULTS - 1].count:,}", ""]]
    add("Warnings in log.txt, alike but for numbers", ["warning", "times", "last"], rows)
    lines = [f"{len(run.abandoned):,} records were abandoned by roll-backs."] if run.abandoned else []
    last = run.records[-1].metrics if run.records else {}
    for name, text in (("data/replaced", "corrupt samples were replaced by others."),
                       ("guard/broken_steps", "of the last 100 steps had values that were not finite.")):
        if last.get(name):
            lines.append(f"{number(last[name])} {text}")
    if not parts and not lines:
        lines.append("None: no restart, no roll-back, no warning.")
    if run.status and run.status.message:
        lines.append(f"How it ended: {run.status.message}"[:1000])
    return joined(*(element("p", line) for line in lines), *parts)


def scores(run: RunFiles) -> Html | None:
    """All scores of a run."""
    if not run.evaluations:
        return None
    names = list(dict.fromkeys(name for one in run.evaluations for name in one.scores))[:20]
    rows = []
    for one in (run.evaluations[i] for i in evenly(len(run.evaluations), MOST_ROWS)):
        star = " \u2605" if run.best and run.best.nimg == one.nimg else ""
        cells = []
        for name in names:
            score = one.scores.get(name)
            error = f" \u00b1 {number(score.error, 2)}" if score and score.error else ""
            cells.append(number(score.value) + error if score else NONE)
        rows.append([kimg(one.nimg) + star, one.network, f"{one.count:,}", *cells])
    title = "Scores" if len(rows) == len(run.evaluations) else f"Scores, {len(rows)} of {len(run.evaluations)}"
    return details(f"All scores of {run.name} as a table",
                   table(["kimg", "network", "images", *map(score_title, names)], rows, title, numbers=True))


def numbers(run: RunFiles, names: Sequence[str]) -> Html | None:
    """The records of a run, evenly thinned, with the metrics that are drawn."""
    if not run.records:
        return None
    known = [name for name in names if any(name in record.metrics for record in run.records)]
    rows = [[kimg(record.nimg), *(number(record.metrics.get(name)) for name in known)]
            for record in (run.records[i] for i in evenly(len(run.records), MOST_ROWS))]
    part = "" if len(rows) == len(run.records) else f", {len(rows)} of {len(run.records):,} ticks, evenly spaced"
    return details(f"Numbers of {run.name} as a table", table(["kimg", *known], rows, f"metrics.jsonl of {run.name}{part}",
                                                              numbers=True))


def notes(runs: Sequence[RunFiles], more: Sequence[str]) -> Iterator[Html]:
    for run in runs:
        begin = f"{run.name}: " if len(runs) > 1 else ""
        yield from (element("li", begin + note) for note in run.notes)
    yield from (element("li", note) for note in more if note)
