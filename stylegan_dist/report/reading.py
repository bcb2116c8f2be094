"""What the folder of a run holds, as far as it can be read. What is damaged or missing becomes a note, never an error.

All of it may have been written by others. Sizes are bounded, types are checked, and secrets are masked here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stylegan_dist.cluster.runs import RESTARTS_NAME
from stylegan_dist.config import dotted
from stylegan_dist.config.text import MAX_BYTES, read_yaml
from stylegan_dist.errors import InputError
from stylegan_dist.files import file_digest, open_regular
from stylegan_dist.monitor.jsonl import MAX_LINE, abandoned_path, damaged_path
from stylegan_dist.monitor.monitor import LOG_NAME, METRICS_NAME
from stylegan_dist.records import parse_json
from stylegan_dist.redact import redact
from stylegan_dist.report.evaluations import EVALUATION_NAME, Evaluation, read_evaluations
from stylegan_dist.report.foreign import LONGEST, MOST_NIMG, as_float, as_nimg, lines_of, shown
from stylegan_dist.report.values import kimg
from stylegan_dist.training.best import Best, read_best
from stylegan_dist.training.checkpoint import list_checkpoints
from stylegan_dist.training.lease import Status, read_status
from stylegan_dist.training.run_folder import CONFIG_NAME, SAMPLES_NAME
from stylegan_dist.training.saved import MANIFEST, checkpoint_folder

COUNTER = "guard/rollbacks"  # of a record: how often the run had gone back before
MOST_STATE = 1 << 24     # bytes of a checkpoint's state.json
MOST_KINDS = 500         # different warnings that are told apart
MOST_ROWS = 10_000       # lines of restarts.tsv
_GRID = re.compile(r"nimg-(\d{8,19})\.png")
_SOUNDS = re.compile(r"nimg-(\d{8,19})\.wav")
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)", re.DOTALL)
_FACT = re.compile(r"  (\S.*?) {3,}(\S.*)")
_MORE = re.compile(r" {8,}(\S.*)")


@dataclass(frozen=True)
class Record:
    """A line of metrics.jsonl."""

    nimg: int
    segment: int
    time: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Restart:
    """The run was continued: `nimg` were seen at the last record before."""

    segment: int
    nimg: int
    time: float


@dataclass(frozen=True)
class RollBack:
    """The run went back to an earlier checkpoint. Images seen, and why, if that is known."""

    at: int
    to: int
    reason: str


@dataclass
class Warnings:
    """Warnings in log.txt of one kind, numbers in them apart."""

    text: str
    count: int
    last: str


@dataclass
class RunFiles:
    """What is known of a run.

    Attributes:
        name: for people; no two runs of a report have the same.
        config: by dotted key.
        abandoned: records that the run has gone back from.
        damaged: lines of metrics.jsonl that are no records.
        slurm: lines of restarts.tsv: time, job, restart, outcome, checkpoint, message.
        facts: what the last start has told of itself in log.txt.
        grids: images seen -> file.
        sounds: likewise, where samples are sounds.
        notes: what is missing or damaged.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    abandoned: list[Record] = field(default_factory=list)
    damaged: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    best: Best | None = None
    status: Status | None = None
    slurm: list[list[str]] = field(default_factory=list)
    warnings: list[Warnings] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    rollbacks: list[RollBack] = field(default_factory=list)
    grids: dict[int, Path] = field(default_factory=dict)
    sounds: dict[int, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def restarts(self) -> list[Restart]:
        """Where the segment of a record is another than that of the one before."""
        found, segment, nimg = [], 0, 0
        for record in self.records:
            if record.segment != segment:
                segment = record.segment
                found.append(Restart(segment, nimg, record.time))
            nimg = record.nimg
        return found

    @property
    def nimg(self) -> int:
        """Images seen, by the newest of its files."""
        told = [self.status.nimg] if self.status else []
        return max([0, *told, *(record.nimg for record in self.records[-1:]), *list(self.grids)[-1:]])


def read_run(path: Path) -> RunFiles:
    """Read all of a run.

    Raises:
        InputError: the folder is not there, or has nothing of a run.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}: give that of a run")
    if not any(os.path.exists(path / name) for name in (CONFIG_NAME, METRICS_NAME, SAMPLES_NAME)):
        raise InputError(f"{path} is not the folder of a run: it has no {CONFIG_NAME}, {METRICS_NAME} or "
                         f"{SAMPLES_NAME}/")
    run = RunFiles(path, path.resolve().name)
    _read_config(run)
    run.records, run.damaged = _records(path / METRICS_NAME)
    if not run.records:
        run.notes.append(f"no curves: {METRICS_NAME} has no records" if os.path.exists(path / METRICS_NAME)
                         else f"no curves: there is no {METRICS_NAME}")
    if run.damaged:
        run.notes.append(f"{run.damaged} lines of {METRICS_NAME} are no records and are passed over")
    run.abandoned, _ = _records(abandoned_path(path / METRICS_NAME), ordered=False)
    if aside := sum(1 for _ in lines_of(damaged_path(path / METRICS_NAME))):
        run.notes.append(f"{aside} damaged lines were put aside in {damaged_path(path / METRICS_NAME).name} earlier")
    _read_scores(run)
    run.status = read_status(path)
    run.slurm = _slurm(path / RESTARTS_NAME)
    _read_log(run)
    run.rollbacks = _rollbacks(run)
    _leave_out_abandoned(run)
    _find_grids(run)
    return run


def _read_config(run: RunFiles) -> None:
    try:
        with open_regular(run.path / CONFIG_NAME) as file:
            content = read_yaml(file.read(MAX_BYTES + 1).decode("utf-8", "replace"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        run.config = {str(key): value for key, value in dotted(redact(content)).items()}
    except FileNotFoundError:
        run.notes.append(f"no configuration: there is no {CONFIG_NAME}")
    except (OSError, ValueError) as error:
        run.notes.append(f"no configuration: {CONFIG_NAME} is damaged ({shown(str(error))})")


def _records(path: Path, ordered: bool = True) -> tuple[list[Record], int]:
    """The records of a file, and how many of its lines are none. The last line may still be in the making."""
    records: list[Record] = []
    damaged = 0
    wrong = False
    for line in lines_of(path):
        damaged += wrong
        record = _record(line)
        wrong = record is None
        if record is not None:
            records.append(record)
    damaged += wrong and not _is_half(path)
    if ordered:  # a line that stands twice counts once
        records = list({record.nimg: record for record in sorted(records, key=lambda record: record.nimg)}.values())
    return records, damaged


def _is_half(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    try:
        with open_regular(path) as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def _record(line: bytes) -> Record | None:
    try:
        content = parse_json(line, MAX_LINE)
    except ValueError:
        return None
    if not isinstance(content, dict) or (nimg := as_nimg(content.get("nimg"))) is None:
        return None
    values = {name: value for name in content if "/" in name and (value := as_float(content[name])) is not None}
    return Record(nimg, as_nimg(content.get("segment")) or 0, as_float(content.get("time")) or 0.0, values)


def _read_scores(run: RunFiles) -> None:
    run.evaluations, wrong = read_evaluations(run.path)
    if wrong:
        run.notes.append(f"{wrong} lines of {EVALUATION_NAME} are no results and are passed over")
    if not run.evaluations:
        run.notes.append(f"no scores of {run.name}: {EVALUATION_NAME} has none")
    try:
        run.best = read_best(run.path)
    except InputError as error:
        run.notes.append(shown(str(error)))


def _slurm(path: Path) -> list[list[str]]:
    rows: list[list[str]] = []
    for line in lines_of(path):
        row = shown(line.decode("utf-8", "replace")).split("\t")
        if len(row) == 6 and len(rows) < MOST_ROWS:
            rows.append(row)
    return rows


def _read_log(run: RunFiles) -> None:
    """Count the warnings, and take the facts that the last start has listed."""
    kinds: dict[str, Warnings] = {}
    listing, name = False, ""
    for line in lines_of(run.path / LOG_NAME, 1 << 16):
        match = _LOG_LINE.fullmatch(line.decode("utf-8", "replace"))
        if match is None:
            continue
        stamp, text = match.groups()
        listed = text if len(text) <= LONGEST else ""  # patterns take long on very long lines
        fact, more = _FACT.fullmatch(listed), _MORE.fullmatch(listed)
        if fact and not more and (listing or fact[1] == "run"):  # which is the first one; other tables look alike
            if not listing:
                run.facts = {}
            listing, name = True, fact[1]
            run.facts[name] = shown(fact[2])
        elif more and listing:
            run.facts[name] = shown(f"{run.facts[name]}\n{more[1]}")
        else:
            listing = False
        if text.startswith("WARNING: "):
            text = text.removeprefix("WARNING: ")
            kind = re.sub(r"\d[\d.,:e+-]*", "#", text)[:200]
            if kind not in kinds and len(kinds) >= MOST_KINDS:
                kind = text = "other warnings"
            if kind not in kinds:
                kinds[kind] = Warnings(shown(text), 0, stamp)
            known = kinds[kind]
            known.count, known.last = known.count + 1, stamp
    run.warnings = sorted(kinds.values(), key=lambda one: -one.count)
    if not os.path.exists(run.path / LOG_NAME):
        run.notes.append(f"no warnings and versions: there is no {LOG_NAME}")


def _rollbacks(run: RunFiles) -> list[RollBack]:
    """As the newest checkpoint tells; those since then, or all if it cannot be read, as the abandoned records tell."""
    told: list[RollBack] = []
    with_checkpoint = list_checkpoints(run.path)
    if with_checkpoint:
        try:
            with open_regular(with_checkpoint[-1][1] / "state.json") as file:
                state = parse_json(file.read(MOST_STATE + 1), MOST_STATE)
            rows = state.get("rollbacks") if isinstance(state, Mapping) else None
            for row in rows if isinstance(rows, list) else []:
                at, to = (as_nimg(row.get(key)) if isinstance(row, Mapping) else None for key in ("at", "to"))
                if at is not None and to is not None:
                    told.append(RollBack(at, to, shown(str(row.get("reason", "")))))
        except (OSError, ValueError) as error:
            run.notes.append(f"the state of the checkpoint at {kimg(with_checkpoint[-1][0])} kimg cannot be read "
                             f"({shown(str(error))}); roll-backs are those of {METRICS_NAME}.abandoned")
    groups: list[list[Record]] = []
    for record in run.abandoned:
        before = groups[-1][-1] if groups else None
        if before and record.nimg > before.nimg and record.metrics.get(COUNTER) == before.metrics.get(COUNTER):
            groups[-1].append(record)
        else:
            groups.append([record])
    return told + [RollBack(group[-1].nimg, group[0].nimg, "") for group in groups[len(told):]]


def _leave_out_abandoned(run: RunFiles) -> None:
    """Leave out the scores of checkpoints that the run has gone back from, and that were not evaluated again.

    The checkpoint that is there tells which they are. Where it is gone, an evaluation that began before the first record after
    the run went back may have been of another one. Without any record nothing is known of that.
    """
    if not run.records:
        return

    def abandoned(one: Evaluation) -> bool:
        try:
            return file_digest(checkpoint_folder(run.path, one.nimg) / MANIFEST) != one.digest
        except OSError:
            return any(one.nimg > to and one.began < began for to, began in again)

    again = [(back.to, next((record.time for record in run.records if record.nimg > back.to), math.inf))
             for back in run.rollbacks]
    lowest = min((back.to for back in run.rollbacks), default=math.inf)
    kept = [one for one in run.evaluations if one.nimg <= lowest or not abandoned(one)]
    if gone := len(run.evaluations) - len(kept):
        run.notes.append(f"{gone} {'evaluations are' if gone > 1 else 'evaluation is'} left out: of checkpoints that the run "
                         "has gone back from")
    run.evaluations = kept


def _find_grids(run: RunFiles) -> None:
    try:
        names = os.listdir(run.path / SAMPLES_NAME)
    except OSError:
        names = []

    def files(pattern: re.Pattern) -> dict[int, Path]:
        found = {int(match[1]): run.path / SAMPLES_NAME / match[0] for match in map(pattern.fullmatch, names) if match}
        return {nimg: found[nimg] for nimg in sorted(found) if nimg <= MOST_NIMG}

    run.grids, run.sounds = files(_GRID), files(_SOUNDS)
    if not run.grids:
        run.notes.append(f"no pictures: there is no {SAMPLES_NAME}/nimg-*.png")
