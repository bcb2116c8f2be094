"""What a cluster does to a job, on two nodes of a real Slurm: the rows of docs/reliability.md that users meet often.

Each case ends with the weights of a run that nobody has disturbed. All rows: test_fault_matrix.py.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from launching import ROOT, trained, wait_until
from train_jobs import DISTURBANCES, LENGTH, assert_same_run, comes_back_on_one_node, job

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def straight(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs, on two ranks."""
    run = tmp_path_factory.mktemp("straight") / "run"
    trained(small_shards, run, LENGTH, processes=2)
    return run


@pytest.mark.parametrize("name", ["USR1", "preemption with grace", "kill -9 of a rank"])
def test_goes_on_by_itself_with_the_same_weights(name, cluster, small_shards: Path, straight: Path, tmp_path: Path):
    disturb, options, again, outcomes = DISTURBANCES[name]
    with job(cluster, small_shards, tmp_path / "run", *options) as train:
        train.wait_for_checkpoint()
        disturb(train)
        train.wait("COMPLETED")
        assert train.outcomes()[-1] == "finished"
        assert {*train.outcomes()[:-1]} <= outcomes
        assert (train.restarts() > 0) == again
        assert_same_run(straight, train.run)
        assert not list(train.run.glob(".outcome*"))


def test_what_is_cancelled_stays_dead_and_has_saved_its_state(cluster, small_shards: Path, tmp_path: Path):
    with job(cluster, small_shards, tmp_path / "run", settings=("run.kimg=1000",)) as train:
        train.wait_for_checkpoint()
        cluster.run("scancel", str(train.number))
        ended = train.wait("CANCELLED")
        time.sleep(10)  # longer than a job that was given back needs to start
        assert cluster.job(train.number)["JobState"] == "CANCELLED"
        assert ended["Restarts"] == "0"
        assert train.outcomes() == ["stopped requeue"]
        assert train.ranks() == []


def test_a_stop_that_keeps_the_place_in_the_queue(cluster, small_shards: Path, straight: Path, tmp_path: Path):
    with job(cluster, small_shards, tmp_path / "run") as train:
        train.wait_for_checkpoint()
        (train.run / "stop").write_text("hold\n")
        wait_until(lambda: cluster.job(train.number)["JobState"] == "PENDING", "the job waits")
        assert "held" in cluster.job(train.number)["Reason"].lower()
        cluster.run("scontrol", "release", str(train.number))
        train.wait("COMPLETED")
        assert train.outcomes() == ["stopped hold", "finished"]
        assert_same_run(straight, train.run)


def test_the_same_failure_twice_without_progress_is_the_last(cluster, small_shards: Path, tmp_path: Path):
    with job(cluster, small_shards, tmp_path / "run", settings=("run.batch=7",)) as train:
        train.wait("FAILED")
        assert train.outcomes() == ["failed", "failed"]
        assert "run.batch=7" in (train.run / "restarts.tsv").read_text()


def test_one_node_instead_of_two(cluster, small_shards: Path, straight: Path, tmp_path: Path):
    comes_back_on_one_node(cluster, small_shards, straight, tmp_path / "run")


def test_scripts_have_no_mistakes_that_a_linter_finds():
    for script in (ROOT / "slurm").glob("*.sbatch"):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


