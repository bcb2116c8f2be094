"""A real Slurm cluster for tests: two nodes on this machine, with fake GPUs (slurm/local-cluster)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOCAL_CLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "local-cluster"
SBIN = ":/usr/sbin:/usr/local/sbin"
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"})


class Cluster:
    """A running cluster. Its folder, and what the commands of Slurm need in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str | Path, seconds: float = 60, **more) -> str:
        """The standard output of a command that must succeed; `more` goes to `subprocess.run`."""
        done = subprocess.run(command, env=self.environment, text=True, stdin=subprocess.DEVNULL, timeout=seconds,
                              capture_output=True, **more)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, script: str | Path, *args: str | Path, cwd: Path | None = None) -> int:
        """The id of a new batch job. Options of sbatch come before the file of the script: `submit("--nodes=2", file)`."""
        return int(self.run("sbatch", "--parsable", script, *args, cwd=cwd).split(";")[0])

    def job(self, number: int | str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Restarts, ExitCode, Reason, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: int | str, states: Collection[str] = ENDED, seconds: float = 60) -> dict[str, str]:
        """The fields of a job once it is in one of the states. Fails after `seconds`, or if it ends otherwise."""
        until = time.monotonic() + seconds
        while (fields := self.job(number))["JobState"] not in states:
            assert fields["JobState"] not in ENDED, f"job {number} ended: {fields}"
            assert time.monotonic() < until, f"job {number} is not {states} after {seconds} s: {fields}"
            time.sleep(0.1)
        return fields

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Until all nodes are free: a job that may take fewer nodes than it asks for does not wait for what still ends."""
        until = time.monotonic() + seconds
        while (states := {*self.run("sinfo", "--noheader", "--Node", "--format=%T").split()}) != {"idle"}:
            assert time.monotonic() < until, f"nodes are {states} after {seconds} s"
            time.sleep(0.1)

    def cancel(self, *numbers: int) -> None:
        """End jobs, and wait until nothing of them is left."""
        self.run("scancel", *map(str, numbers))
        for number in numbers:
            self.wait_for(number, ENDED, 60)


@contextmanager
def local_cluster(*options: str) -> Iterator[Cluster]:
    """A cluster in a temporary folder; `options` are those of `slurm/local-cluster start`.

    Skips where Slurm is not installed, but fails there if CI is set.
    """
    if absent := [name for name in ("slurmctld", "slurmd", "munged", "sbatch")
                  if not shutil.which(name, path=os.environ["PATH"] + SBIN)]:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"{absent[0]} is not installed (slurm/local-cluster start --install)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for the paths of sockets
    try:
        subprocess.run([sys.executable, LOCAL_CLUSTER, "start", folder, *options], check=True, timeout=120,
                       stdout=subprocess.DEVNULL)
        yield Cluster(folder)
    finally:
        subprocess.run([sys.executable, LOCAL_CLUSTER, "stop", folder], check=True, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)
