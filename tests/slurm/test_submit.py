"""Submitting: what is refused before it waits in a queue, and the script; watching and stopping a real job."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from launching import TIMEOUT, TINY, trained, wait_until
from metrics_reader import read
from slurm import Cluster

from stylegan_dist.cli import main
from stylegan_dist.cluster import submit as submitting
from stylegan_dist.cluster.slurm import seconds_of
from stylegan_dist.errors import InputError


def submit(shards: Path, run: Path, *more: str) -> int:
    return main(["submit", "launch/presets/auto.yaml", *TINY, f"data.shards={shards}", f"run.dir={run}", *more])


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 5400), ("1:30", 90), ("24:00:00", 86400), ("2-12", 216000), ("1-0:30", 88200), ("1-1:1:1", 90061),
    ("UNLIMITED", float("inf")),
])
def test_times_as_slurm_writes_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-1", "1-"])
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="--time"):
        seconds_of(text)


@pytest.mark.parametrize(("more", "named"), [
    (["--nodes=3"], ["run.batch=8", "3 processes"]),
    (["data.shards=/nowhere"], ["/nowhere"]),
    (["--time=5"], ["--time=5", "--warning"]),
    (["--time=soon"], ["--time", "soon"]),
    (["--sbatch=--time=5"], ["--time"]), (["--sbatch=-N3"], ["--nodes"]), (["--sbatch=--gres=gpu:2"], ["--gpus-per-node"]),
    (["run.dir=a\\b"], ["backslash"]),
    (["--accelerate=zero9"], ["zero9", "zero2"]),
    (["run.device=cuda", "--gpus-per-node=0"], ["run.device=cuda"]),
    (["run.seeds=1"], ["run.seed"]),
    (["generator.z_dim=0"], ["generator.z_dim"]),
])
def test_what_cannot_work_is_refused(more, named, small_shards: Path, tmp_path: Path, capsys):
    assert submit(small_shards, tmp_path / "run", *more) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in named), said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_another_kind_or_a_finished_one_is_refused(small_shards: Path, tmp_path: Path, capsys):
    trained(small_shards, tmp_path / "run", "run.kimg=0.08")
    assert submit(small_shards, tmp_path / "run", "run.kimg=1", "run.seed=5", "--dry-run") == 2
    assert "run.seed=0" in capsys.readouterr().err
    assert submit(small_shards, tmp_path / "run", "run.kimg=0.08", "--dry-run") == 2
    assert "finished" in capsys.readouterr().err
    assert submit(small_shards, tmp_path / "run", "run.kimg=1", "--dry-run") == 0
    assert "continues at 0.08 of 1 kimg" in capsys.readouterr().out


def test_the_script_has_what_was_asked_for(small_shards: Path, tmp_path: Path, capsys, monkeypatch):
    site = tmp_path / "my site.sh"
    site.write_text('echo welcome\nSITE_SBATCH=(--account=vision "--comment=two words") SITE_SRUN=() SITE_RUN=()\n'
                    "site_setup() { :; }\n")
    monkeypatch.setenv("STYLEGAN_DIST_SITE", str(site))
    options = ["--nodes=2", "--gpus-per-node=2", "--time=1:00:00", "--accelerate=zero2", "--sbatch=--partition=a100",
               "--dry-run"]
    assert submit(small_shards, tmp_path / "a %j run", "monitor.wandb_name=it's mine", *options) == 0
    said = capsys.readouterr().out
    first, _, script = said.partition("#!/usr/bin/env bash\n")
    assert "batch 8 over 4 processes" in first
    directives = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in ("--nodes=2", "--gpus-per-node=2", "--time=1:00:00", "--account=vision", "--comment=two words",
                   "--partition=a100", "--job-name=a %j run", "--signal=B:USR1@300",
                   f"--output={tmp_path}/a %%j run/slurm-%j.out"):
        assert option in directives
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    (line,) = (line for line in script.splitlines() if line.startswith("set -- "))
    assert "monitor.wandb_name=it's mine" in shlex.split(line)
    assert "export STYLEGAN_DIST_ACCELERATE=zero2" in script
    assert not (tmp_path / "a %j run").exists()


def test_without_slurm(small_shards: Path, tmp_path: Path, capsys, monkeypatch):
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(empty))
    assert submit(small_shards, tmp_path / "run") == 2
    assert "sbatch" in capsys.readouterr().err


def test_a_job_of_another_cluster_on_the_same_disk_is_none_of_ours(tmp_path: Path, monkeypatch):
    for here, text, number in (("here", "", ""), ("here", "7", "7"), ("here", "7\nhere\n", "7"), ("here", "7\nthere\n", ""),
                               ("", "7\nthere\n", "7")):  # Slurm does not answer
        monkeypatch.setattr(submitting, "cluster_name", lambda here=here: here)
        (tmp_path / "job").write_text(text)
        assert submitting.read_job(tmp_path) == number


def test_a_job_that_ended_before_it_has_trained(tmp_path: Path, capsys):
    (tmp_path / "job").write_text("7\n")
    (tmp_path / "restarts.tsv").write_text("1\t7\t0\tfailed\t-\tthere is no such thing\n")
    seen = report_of(tmp_path, capsys)
    assert seen["state"] == "failed"
    assert seen["detail"].startswith("there is no such thing")


def report_of(run: Path, capsys) -> dict:
    capsys.readouterr()
    assert main(["runs", str(run), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    return one


@pytest.mark.full
def test_a_run_submitted_watched_stopped_released(cluster: Cluster, small_shards: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run, options = tmp_path / "run", ["--nodes=2", "--gpus-per-node=1", "run.kimg=1"]
    cluster.run("scontrol", "update", "partitionname=batch", "state=down")  # so that it waits for a while
    assert submit(small_shards, run, *options) == 0
    number = int(capsys.readouterr().out.split("submitted job ")[1].split()[0])
    try:
        assert (report_of(run, capsys)["state"], report_of(run, capsys)["job"]) == ("queued", str(number))
        assert submit(small_shards, run, *options) == 2
        assert f"job {number}" in capsys.readouterr().err
        assert main(["stop", str(run)]) == 0
        assert report_of(run, capsys)["state"] == "held"
        cluster.run("scontrol", "update", "partitionname=batch", "state=up")
        cluster.run("scontrol", "release", str(number))
        wait_until((run / "checkpoints/nimg-00000080").exists, "a checkpoint")
        seen = report_of(run, capsys)
        assert (seen["state"], seen["total"], seen["job"]) == ("running", 1000, str(number))
        assert seen["checkpoint"] >= 80
        assert main(["stop", str(run)]) == 0
        wait_until(lambda: report_of(run, capsys)["state"] == "held", "the job waits")
        cluster.run("scontrol", "release", str(number))
        cluster.wait_for(number, {"COMPLETED"}, TIMEOUT)
    finally:
        cluster.run("scontrol", "update", "partitionname=batch", "state=up")
        cluster.cancel(number)
    done = report_of(run, capsys)
    assert (done["state"], done["nimg"], done["restarts"], done["job"]) == ("finished", 1000, 1, "")
    assert [record["nimg"] for record in read(run / "metrics.jsonl")] == list(range(8, 1001, 8))
    assert main(["stop", str(run)]) == 2
    assert (run / f"slurm-{number}.out").is_file()
