"""The fault matrix of docs/reliability.md: two nodes with two ranks each train on the handwritten digits.

`pytest -m exhaustive -rP tests/slurm/test_fault_matrix.py` prints the seconds of the table.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import ROOT, finished, remove_in_use, train_command, trained, wait_until
from metrics_reader import read
from slurm import local_cluster
from train_jobs import (
    DISTURBANCES,
    LENGTH,
    TrainJob,
    assert_same_run,
    comes_back_on_one_node,
    command_of,
    job,
    kill_batch_shell,
    warning,
)
from wandb_server import KEY, serve

pytestmark = pytest.mark.exhaustive
TWO = "--gpus-per-node=2"
# launch/train.py with a fault of the trainer's own. `once` is a file that does not exist before the fault.
ENTRY = """
import os, pathlib, runpy, signal, time
once = pathlib.Path({once!r})
{fault}
runpy.run_path({script!r}, run_name="__main__")
"""
KILLED_AT_A_CHECKPOINT = """
from stylegan_dist.training import saver
publish = saver.publish

def killed(temporary, final, *more):
    if final.name == "nimg-00000160" and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, final, *more)

saver.publish = killed
"""
CLOCK_SET_BACK = """
from stylegan_dist.training import loop
step, clock = loop.step, time.time

def stepped(run, *arguments):
    result = step(run, *arguments)
    if run.state.nimg >= 104:
        once.touch()
        time.time = lambda: clock() - 3600
    return result

if os.environ["SLURM_NODEID"] == "0":
    loop.step = stepped
"""
DEAF_AT_FIRST = """
from stylegan_dist.training import loop
step = loop.step

def waiting(run, *arguments):
    if run.state.nimg >= 120 and not once.exists():
        once.touch()
        time.sleep(3600)
    return step(run, *arguments)

loop.step = waiting
"""
NAN_ON_ONE_RANK = """
import torch
from stylegan_dist.objective.game import Objective
d_main = Objective.d_main

def spoiled(self, real):
    result = d_main(self, real)
    if os.environ["RANK"] == "3" and int(real.index[0]) >= 88 and self.seed == 0:
        return result._replace(share=result.share * torch.nan)
    return result

Objective.d_main = spoiled
"""


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs, on four ranks."""
    run = tmp_path_factory.mktemp("straight") / "run"
    trained(digits, run, LENGTH, processes=4)
    return run


def home_with(fault: str, folder: Path) -> Path:
    """A folder like the repository, whose launch/train.py has a fault."""
    home = folder / "home"
    (home / "launch").mkdir(parents=True)
    (home / "slurm").symlink_to(ROOT / "slurm")
    (home / ".venv").symlink_to(sys.prefix)
    for name in ("accelerate", "presets", "settings.py"):
        (home / "launch" / name).symlink_to(ROOT / "launch" / name)
    script = ENTRY.format(once=str(folder / "once"), fault=fault, script=str(ROOT / "launch/train.py"))
    (home / "launch/train.py").write_text(script)
    return home


@contextlib.contextmanager
def timed(name: str, train: TrainJob) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"row: {name}: {time.monotonic() - began:.0f} s to the end, outcomes {train.outcomes()}")


@pytest.mark.parametrize("name", DISTURBANCES)
def test_goes_on_by_itself_with_the_same_weights(name, cluster, digits: Path, straight: Path, tmp_path: Path):
    disturb, options, again, outcomes = DISTURBANCES[name]
    flags, settings = (tuple(one for one in options if one.startswith("--") == flag) for flag in (True, False))
    with job(cluster, digits, tmp_path / "run", TWO, *flags, settings=(LENGTH, *settings)) as train:
        train.wait_for_checkpoint()
        with timed(name, train):
            disturb(train)
            train.wait("COMPLETED")
        assert train.outcomes()[-1] == "finished"
        assert {*train.outcomes()[:-1]} <= outcomes
        if again is not None:
            assert (train.restarts() > 0) == again
        assert_same_run(straight, train.run)
        assert not list(train.run.glob(".outcome*"))


@pytest.mark.parametrize(("name", "fault", "outcomes"), [
    ("kill during a checkpoint", KILLED_AT_A_CHECKPOINT, {"failed", "lost"}), ("clock set back", CLOCK_SET_BACK, set())])
def test_faults_of_the_trainer_itself(name, fault, outcomes, cluster, digits: Path, straight: Path, tmp_path: Path):
    with job(cluster, digits, tmp_path / "run", TWO, home=home_with(fault, tmp_path)) as train:
        wait_until((tmp_path / "once").exists, "the fault")
        with timed(name, train):
            train.wait("COMPLETED")
        assert train.outcomes()[-1] == "finished"
        assert {*train.outcomes()[:-1]} == outcomes or (outcomes and {*train.outcomes()[:-1]} < outcomes)
        assert_same_run(straight, train.run)


def test_nan_on_one_rank_goes_back_in_place(cluster, digits: Path, tmp_path: Path):
    settings = (LENGTH, "guard.limit=3", "optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=0.001", "optim.d.lr=0.001")
    home = home_with(NAN_ON_ONE_RANK, tmp_path)
    with job(cluster, digits, tmp_path / "run", TWO, settings=settings, home=home) as train:
        train.wait_for_checkpoint()
        with timed("NaN on one rank", train):
            train.wait("COMPLETED")
        assert train.outcomes() == ["finished"]
        assert "roll-back 1 of 2" in (train.run / "log.txt").read_text()
    same = finished(train_command(digits, tmp_path / "same", *settings, processes=4, entry=home / "launch/train.py"))
    assert same.returncode == 0, same.stdout + same.stderr
    assert_same_run(tmp_path / "same", tmp_path / "run")


@pytest.mark.parametrize("name", ["W&B's server is down", "W&B's server hangs", "W&B's service is killed"])
def test_wandb_is_no_reason_to_stop(name, cluster, digits: Path, straight: Path, tmp_path: Path):
    with serve() as server:
        url = "http://127.0.0.1:9" if "down" in name else server.url
        if "hangs" in name:
            server.answering.clear()
        export = f"--export=ALL,OMP_NUM_THREADS=1,WANDB_BASE_URL={url},WANDB_API_KEY={KEY}"
        with job(cluster, digits, tmp_path / "run", TWO, export, settings=(LENGTH, "monitor.wandb=online")) as train:
            train.wait_for_checkpoint()
            with timed(name, train):
                if "killed" in name:
                    services = [child for pid in train.ranks() for child in psutil.Process(pid).children(recursive=True)]
                    assert services
                    for service in services:
                        service.kill()
                train.wait("COMPLETED")
            assert train.outcomes() == ["finished"]
            assert "W&B" in train.text()
            assert_same_run(straight, train.run)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_that_gets_room_again(digits: Path, straight: Path, tmp_path: Path):
    """On a cluster that starts after the disk is there: its nodes have mounts of their own."""
    run = tmp_path / "run"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", run], check=True, timeout=60)
    try:
        with local_cluster() as cluster, job(cluster, digits, run, TWO) as train:
            train.wait_for_checkpoint()
            with timed("disk full", train):
                with contextlib.suppress(OSError), (tmp_path / "run/filler").open("wb") as filler:
                    while True:
                        filler.write(bytes(1 << 16))
                wait_until(lambda: "checkpoint not saved" in train.text(), "a checkpoint that finds no room")
                assert os.strerror(errno.ENOSPC) in train.text() or "free" in train.text()
                (tmp_path / "run/filler").unlink()
                train.wait("COMPLETED")
            assert train.outcomes() == ["finished"]
            assert_same_run(straight, train.run)
    finally:
        subprocess.run(["umount", "--lazy", run], check=True, timeout=60)


def test_the_folder_is_removed(cluster, digits: Path, tmp_path: Path):
    with job(cluster, digits, tmp_path / "run", TWO, settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        began = time.monotonic()
        remove_in_use(train.run)
        train.wait("FAILED")
        print(f"row: folder removed: {time.monotonic() - began:.0f} s to the end")
        assert "was deleted or moved" in train.text()
        assert train.ranks() == []


def test_two_jobs_for_one_run(cluster, digits: Path, straight: Path, tmp_path: Path):
    """The second ends, and the first does not notice."""
    with job(cluster, digits, tmp_path / "run", TWO) as train:
        train.wait_for_checkpoint()
        options = ("--nodes=1", "--gpus-per-node=0", f"--output={tmp_path}/second.log")
        second = TrainJob(cluster, digits, tmp_path / "run", *options)
        began = time.monotonic()
        second.cluster.wait_for(second.number, ("FAILED",), 400)
        print(f"row: two jobs: {time.monotonic() - began:.0f} s to the end of the second")
        assert f"job {train.number} trains in" in (tmp_path / "second.log").read_text()
        train.wait("COMPLETED")
        assert (train.run / "job").read_text().split() == [str(train.number), "local"]
        assert_same_run(straight, train.run)


def test_a_warning_while_the_job_starts(cluster, digits: Path, straight: Path, tmp_path: Path, monkeypatch):
    """Modules and containers may take minutes to load."""
    site = tmp_path / "site.sh"
    site.write_text("source " + str(ROOT / "slurm/site.sh") + f"\nsite_setup() {{ : $NOT_SET; touch {tmp_path}/begun; "
                    f"if [ ! -e {tmp_path}/again ]; then sleep 10; fi; touch {tmp_path}/again; }}\n")
    export = f"--export=ALL,OMP_NUM_THREADS=1,STYLEGAN_DIST_SITE={site}"
    with job(cluster, digits, tmp_path / "run", TWO, export) as train:
        wait_until((tmp_path / "begun").exists, "the job")
        warning(train)
        train.wait("COMPLETED")
        assert "warned while nothing was running" in train.text()
        assert train.restarts() == 1
        assert train.outcomes() == ["finished"]
        assert_same_run(straight, train.run)


def test_a_word_of_the_user_is_not_written_over_by_a_warning(cluster, digits: Path, tmp_path: Path):
    with job(cluster, digits, tmp_path / "run", TWO, settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        (train.run / "stop").write_text("hold\n")
        warning(train)
        wait_until(lambda: cluster.job(train.number)["JobState"] == "PENDING", "the job waits")
        assert "held" in cluster.job(train.number)["Reason"].lower()
        assert train.outcomes() == ["stopped hold"]


def test_restarts_have_an_end(cluster, digits: Path, tmp_path: Path):
    export = "--export=ALL,OMP_NUM_THREADS=1,STYLEGAN_DIST_MOST_RESTARTS=1"
    with job(cluster, digits, tmp_path / "run", TWO, export, settings=("run.kimg=1000",)) as train:
        for number in (1, 2):
            wait_until(lambda number=number: "\nkimg " in "".join(train.text().split("start of")[number:]), "a step")
            warning(train)
            wait_until(lambda number=number: train.text().count("stopped on request") == number, "the stop")
        train.wait("FAILED")
        assert train.outcomes() == ["stopped requeue"] * 2
        assert "gives up after 1 restarts" in train.text()


def test_a_single_process_saves_its_state_before_it_ends(cluster, digits: Path, tmp_path: Path):
    """Without a launcher, which would die of the signal and leave it behind."""
    options = ("--nodes=1", "--export=ALL,OMP_NUM_THREADS=1,STYLEGAN_DIST_ACCELERATE=1gpu")
    with job(cluster, digits, tmp_path / "run", *options, settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        assert not any("bin/accelerate" in command_of(pid) for pid in train.processes())
        cluster.run("scancel", str(train.number))
        train.wait("CANCELLED")
        wait_until(lambda: (train.run / "restarts.tsv").exists(), "the end")
        assert train.outcomes() == ["stopped requeue"]


def test_what_does_not_stop_in_time_is_requeued_before_the_limit(cluster, digits: Path, straight: Path, tmp_path: Path):
    options = (TWO, "--time=1", "--signal=B:USR1@40")
    with job(cluster, digits, tmp_path / "run", *options, home=home_with(DEAF_AT_FIRST, tmp_path)) as train:
        train.wait_for_checkpoint()
        train.wait("COMPLETED")
        assert train.text().count("has not stopped in time") == 1
        assert_same_run(straight, train.run)


def test_one_node_instead_of_two(cluster, digits: Path, straight: Path, tmp_path: Path):
    comes_back_on_one_node(cluster, digits, straight, tmp_path / "run", TWO)


def test_a_real_time_limit(cluster, digits: Path, tmp_path: Path):
    options = (TWO, "--time=1", "--signal=B:USR1@30")
    with job(cluster, digits, tmp_path / "run", *options, settings=("run.kimg=0.8",)) as train:
        train.wait("COMPLETED")
        assert train.restarts() > 0
        assert {*train.outcomes()[:-1]} == {"stopped requeue"}
        assert [record["nimg"] for record in read(train.run / "metrics.jsonl")] == list(range(8, 801, 8))


def test_scancel_stays_dead(cluster, digits: Path, tmp_path: Path):
    with job(cluster, digits, tmp_path / "run", TWO, settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        with timed("scancel", train):
            cluster.run("scancel", str(train.number))
            train.wait("CANCELLED")
            wait_until(lambda: (train.run / "restarts.tsv").exists() and train.ranks() == [], "the ranks have ended")
        time.sleep(10)  # longer than a job that was given back needs to start
        assert cluster.job(train.number)["JobState"] == "CANCELLED"
        assert train.outcomes() == ["stopped requeue"]


def test_kill_9_of_the_batch_shell_ends_the_job_and_leaves_nothing(cluster, digits: Path, tmp_path: Path):
    with job(cluster, digits, tmp_path / "run", TWO, settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        began = time.monotonic()
        kill_batch_shell(train)
        train.wait("FAILED")
        wait_until(lambda: train.ranks() == [], "the ranks have ended")
        print(f"row: kill -9 of the batch shell: {time.monotonic() - began:.0f} s to the end")
