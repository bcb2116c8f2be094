"""What runs are doing, read from their folders and from Slurm; and how one is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stylegan_dist.cluster.slurm import Job, call, job_of
from stylegan_dist.cluster.submit import JOB_NAME, is_fresh, read_job
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.training.checkpoint import list_checkpoints
from stylegan_dist.training.interruption import STOP_NAME
from stylegan_dist.training.lease import BEAT_SECONDS, PATIENCE, STATUS_NAME, Status, read_status
from stylegan_dist.training.run_folder import CONFIG_NAME

RESTARTS_NAME = "restarts.tsv"  # a line for each start, by slurm/train.sbatch
MOST_RUNS = 10_000


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        state: queued, held, starting, running, preempted, stopped, finished, diverged, failed, dead (no sign of life), or
            unknown, for a run of an older version.
        detail: what it is doing, or why it has ended.
        images_per_second: at the last tick.
        seconds_left: at that rate.
        checkpoint: images at the newest one.
        restarts: how often it was continued.
        job: of Slurm, if it has one that has not ended.
    """

    path: str
    state: str
    detail: str
    nimg: int
    total: int
    images_per_second: float | None
    seconds_left: float | None
    checkpoint: int
    restarts: int
    job: str


def find_runs(folders: Sequence[str]) -> list[Path]:
    """The runs among the folders, and directly in those that are none.

    Raises:
        InputError: a folder is not there, or no run is.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}: give that of a run, or one with runs in it")
        found += [folder] if is_run(folder) else sorted(filter(is_run, folder.iterdir()))[:MOST_RUNS]
    if not found:
        raise InputError(f"there is no run in {', '.join(folders)}")
    return found


def is_run(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (CONFIG_NAME, JOB_NAME, STATUS_NAME))


def report(runs: Sequence[Path]) -> list[RunReport]:
    """The state of each run.

    Whether a run lives shows in that its status.json changes. Clocks of machines are not trusted: where the file looks old or
    comes from the future, a second look some seconds later decides.
    """
    first = {run: _seen(run) for run in runs}
    doubtful = [run for run in runs if _claims_to_live(read_status(run)) and not is_fresh(run)]
    if doubtful:
        deadline = time.monotonic() + PATIENCE * BEAT_SECONDS
        while time.monotonic() < deadline and any(_seen(run) == first[run] for run in doubtful):
            time.sleep(0.2)
    dead = {run for run in doubtful if _seen(run) == first[run]}
    return [_report(run, run in dead) for run in runs]


def _claims_to_live(status: Status | None) -> bool:
    return status is not None and status.state in ("starting", "running")


def _seen(run: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        state = os.stat(run / STATUS_NAME)
        return state.st_mtime_ns, state.st_ino
    return 0, 0


def _report(run: Path, dead: bool) -> RunReport:
    status, restarts, checkpoints = read_status(run), _restarts(run), list_checkpoints(run)
    newest = checkpoints[-1][0] if checkpoints else 0
    try:
        job, doubt = job_of(read_job(run)), ""
    except InputError as error:
        job, doubt = None, str(error)
    state, detail = _state(status, dead, job, restarts[-1] if restarts else [])
    alive = state in ("starting", "running")
    nimg = status.nimg if status and alive else max(newest, status.nimg if status and state == "finished" else 0)
    rate = status.images_per_second if status else None
    total = status.total if status else 0
    left = (total - nimg) / rate if rate and total > nimg else None
    detail = "; ".join(filter(None, (detail, doubt)))
    return RunReport(str(run), state, detail, nimg, total, rate if alive else None, left if alive else None, newest,
                     status.segment if status else 0, job.number if job else "")


def _state(status: Status | None, dead: bool, job: Job | None, last: list[str]) -> tuple[str, str]:
    """(state, detail).

    Args:
        last: the fields of the last line of restarts.tsv.
    """
    if job and job.state in ("queued", "held") and not (_claims_to_live(status) and not dead):
        preempted = job.state == "queued" and last and last[1] == job.number
        return ("preempted, queued" if preempted else job.state), job.reason
    if status is None:
        if job:
            return "starting", ""
        return ("failed", last[5] or "it has ended before it has begun to train; see its log") if last else ("unknown", "")
    if _claims_to_live(status):
        if dead and job and job.state == "running":
            return "dead", "no sign of life, though its job is running"
        if dead:
            return "dead", f"no sign of life {status.owner.describe()}; the same command continues"
        return status.state, status.doing
    if job and job.state == "running":
        return "starting", ""
    return status.state, status.message


def _restarts(run: Path) -> list[list[str]]:
    """The lines of restarts.tsv: time, job, restart, outcome, checkpoint, message."""
    try:
        with open(run / RESTARTS_NAME, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split("\t") for line in file]
    except OSError:
        return []
    return [line for line in lines if len(line) == 6]


def table(reports: Sequence[RunReport]) -> str:
    """For people: a line a run."""
    names = ("run", "state", "kimg", "done", "img/s", "left", "checkpoint", "restarts", "job")
    rows = [names, *(_row(one) for one in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = []
    for row, detail in zip(rows, ("", *(one.detail for one in reports)), strict=True):
        text = "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                         for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        lines.append(f"{text}  {detail}".rstrip())
    return "\n".join(lines)


def _row(one: RunReport) -> tuple[str, ...]:
    done = f"{one.nimg / one.total:.0%}" if one.total else ""
    rate = f"{one.images_per_second:.4g}" if one.images_per_second else ""
    saved = f"{one.checkpoint / 1000:g}" if one.checkpoint else "none"
    left = duration(one.seconds_left)
    return one.path, one.state, f"{one.nimg / 1000:g}", done, rate, left, saved, str(one.restarts), one.job


def duration(seconds: float | None) -> str:
    """Such as 3d 4h, 2h 05m, 4m, 30s; empty for None."""
    if seconds is None:
        return ""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m" if minutes else f"{seconds:.0f}s"


def as_json(reports: Sequence[RunReport]) -> str:
    return json.dumps([asdict(one) for one in reports], indent=1)


def stop(run: Path, end: bool = False) -> str:
    """Ask a run to save its state and stop; returns what happens now, for people.

    Args:
        end: end its job of Slurm; otherwise the job keeps its place in the queue and waits there.
    Raises:
        InputError: it is no run, or does nothing that could be stopped.
    """
    if not is_run(run):
        raise InputError(f"{run} is not the folder of a run")
    (one,) = report([run])
    job = job_of(one.job) if one.job else None
    if job and job.state in ("queued", "held"):
        if end:
            call("scancel", job.number)
            return f"job {job.number} has not been running and is cancelled"
        if job.state == "queued":
            call("scontrol", "hold", job.number)
        return f"job {job.number} has not been running; it waits in the queue for: scontrol release {job.number}"
    if one.state not in ("starting", "running") and not job:
        raise InputError(f"{run} is {one.state}: there is nothing to stop")
    try:
        write_whole(run / STOP_NAME, "end\n" if end or job is None else "hold\n")
    except OSError as error:
        raise InputError(f"cannot write {run / STOP_NAME}: {error.strerror}") from None
    then = "it ends; the same command continues"
    if job:
        then = ("its job ends; submit it again to continue" if end
                else f"its job waits in the queue for: scontrol release {job.number}")
    return f"asked: after its next step the run saves its state, and {then}"
