"""Jobs of slurm/train.sbatch on a local cluster, what a cluster does to them, and what must come of it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import ROOT, TINY, wait_until
from metrics_reader import read
from safetensors.torch import load_file
from saving import assert_equal_tensors
from slurm import Cluster

SECONDS = 400  # for a whole job, against hanging only
LENGTH = "run.kimg=0.4"
TICKS = list(range(8, 401, 8))


class TrainJob:
    """A job on two nodes with one process on each, unless `options` say otherwise.

    Args:
        options: of sbatch.
        settings: overrides of the configuration; the length is among them.
        home: a folder that looks like the repository, for another launch/train.py.
    """

    def __init__(self, cluster: Cluster, shards: Path, run: Path, *options: str, settings: tuple[str, ...] = (LENGTH,),
                 home: Path = ROOT):
        self.cluster, self.run = cluster, run
        self.log = run.parent / f"{run.name}.log"
        self.number = cluster.submit(
            "--nodes=2", "--gpus-per-node=1", f"--output={self.log}", "--export=ALL,OMP_NUM_THREADS=1", *options,
            home / "slurm/train.sbatch", "launch/presets/auto.yaml", *TINY, f"data.shards={shards}", f"run.dir={run}",
            *settings, cwd=home)

    def wait(self, *states: str) -> dict[str, str]:
        return self.cluster.wait_for(self.number, states or ("COMPLETED",), SECONDS)

    def wait_for_checkpoint(self) -> None:
        wait_until((self.run / "checkpoints/nimg-00000080").exists, self.text())

    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def processes(self, *words: str) -> list[int]:
        """Of this run, with all the words in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            command = command_of(int(entry.name))
            if all(word in command for word in (f"run.dir={self.run}", *words)):
                found.append(int(entry.name))
        return sorted(found)

    def ranks(self) -> list[int]:
        return [pid for pid in self.processes("launch/train.py") if "accelerate" not in command_of(pid)]

    def launchers(self) -> list[int]:
        return [pid for pid in self.processes("accelerate") if "launch/train.py" in command_of(pid)]

    def outcomes(self) -> list[str]:
        return [line.split("\t")[3] for line in (self.run / "restarts.tsv").read_text().splitlines()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def job(*args, **more) -> Iterator[TrainJob]:
    """On nodes that are free. The job is cancelled at the end, and its log shown where a test fails."""
    args[0].wait_until_idle()
    started = TrainJob(*args, **more)
    try:
        yield started
    except BaseException:
        print(started.text())
        raise
    finally:
        started.cluster.cancel(started.number)


def assert_same_run(one: Path, other: Path) -> None:
    """The last weights, bit for bit, and a record without a gap or a repetition."""
    assert_equal_tensors(*(run / "checkpoints/nimg-00000400" for run in (one, other)))
    assert [record["nimg"] for record in read(other / "metrics.jsonl")] == TICKS


def comes_back_on_one_node(cluster: Cluster, shards: Path, straight: Path, run: Path, *options: str) -> None:
    """The same samples and draws; sums over fewer ranks are rounded in another way."""
    with job(cluster, shards, run, "--nodes=1-2", *options) as train:
        train.wait_for_checkpoint()
        cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
        try:
            warning(train)
            train.wait("COMPLETED")
        finally:
            cluster.run("scontrol", "update", "nodename=n2", "state=resume")
        assert train.outcomes() == ["stopped requeue", "finished"]
        assert re.search(r"continued by (1|2) process(es)?, by (2|4) before", (run / "log.txt").read_text())
        assert [record["nimg"] for record in read(run / "metrics.jsonl")] == TICKS
        one, other = (load_file(folder / "checkpoints/nimg-00000400/g.safetensors") for folder in (straight, run))
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 0.02


def warning(job: TrainJob) -> None:
    """What --signal=B:USR1@300 sends before the time limit, and preemption where the cluster is set so."""
    job.cluster.run("scancel", "--batch", "--signal=USR1", str(job.number))


def requeue(job: TrainJob) -> None:
    job.cluster.run("scontrol", "requeue", str(job.number))


def displace(job: TrainJob) -> None:
    """A job of a higher partition wants the nodes."""
    script = job.run.parent / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 2\n")
    job.cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", f"--output={job.run.parent}/urgent.log", script)


def node_down(job: TrainJob) -> None:
    job.cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")


def kill_rank(job: TrainJob) -> None:
    os.kill(job.ranks()[-1], signal.SIGKILL)


def kill_launcher(job: TrainJob) -> None:
    os.kill(job.launchers()[-1], signal.SIGKILL)


def kill_batch_shell(job: TrainJob) -> None:
    (shell,) = (pid for pid in job.processes("slurm_script", "launch/presets") if "srun" not in command_of(pid))
    os.kill(shell, signal.SIGKILL)


def stop_rank(job: TrainJob) -> None:
    wait_until(lambda: len(read(job.run / "metrics.jsonl")) > 22, "the watchdog knows how long a step takes")
    os.kill(job.ranks()[-1], signal.SIGSTOP)


def damage_newest(job: TrainJob) -> None:
    """The newest checkpoint; then the run must continue from the one before."""
    newest = job.run / "checkpoints/nimg-00000160/g.safetensors"
    wait_until((newest.parent / "manifest.json").exists, "a second checkpoint")
    os.truncate(newest, newest.stat().st_size // 2)
    kill_rank(job)


# What is done; options of the job and settings; whether Slurm starts the job again (False: the script starts the training
# again; None: either); outcomes that starts before the last may have. "lost": nobody was left to tell it.
DISTURBANCES: dict[str, tuple] = {
    "USR1": (warning, (), True, {"stopped requeue"}),
    "preemption with grace": (displace, ("--partition=batch",), True, {"stopped requeue"}),
    "preemption without grace": (displace, ("--partition=nograce",), True, {"stopped requeue", "lost", "failed"}),
    "scontrol requeue": (requeue, (), True, {"stopped requeue", "lost", "failed"}),
    "node down": (node_down, (), True, {"stopped requeue", "lost", "failed"}),
    "kill -9 of a rank": (kill_rank, (), False, {"failed", "stopped requeue", "lost"}),
    "kill -9 of a launcher": (kill_launcher, (), None, {"failed", "stopped requeue", "lost"}),
    "SIGSTOP of a rank": (stop_rank, ("run.hang_seconds=8",), False, {"failed"}),
    "newest checkpoint damaged": (damage_newest, (), False, {"failed", "lost"}),
}
