"""The cluster that job scripts are tried on: nodes, GPUs, preemption, an end that leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm import LOCAL_CLUSTER, Cluster, local_cluster

pytestmark = pytest.mark.full
ROOT = os.getuid() == 0


def processes_of(folder: Path) -> list[str]:
    """The names of processes that have the cluster's configuration in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_CONF={folder}/slurm.conf".encode() in (entry / "environ").read_bytes():
                found.append((entry / "comm").read_text().strip())
        except OSError:
            pass
    return found


def local(verb: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, LOCAL_CLUSTER, verb, folder, *options], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not ROOT, reason="nodes have names of their own if root starts them")
def test_each_node_has_its_name(cluster):
    assert sorted(cluster.run("srun", "--nodes=2", "hostname").split()) == ["n1", "n2"]
    assert cluster.run("srun", "--nodelist=n2", "getent", "hosts", "n1").split() == ["127.0.0.11", "n1"]


def test_a_job_gets_fake_gpus(cluster):
    script = 'echo "$CUDA_VISIBLE_DEVICES"'
    assert cluster.run("srun", "--nodes=2", "--gpus-per-node=2", "sh", "-c", script).split() == ["0,1", "0,1"]


@pytest.mark.parametrize("partition", ["batch", "nograce"])
def test_an_urgent_job_displaces_others_which_run_again(cluster, partition, tmp_path):
    victim = tmp_path / "victim.sh"
    victim.write_text("#!/bin/sh\nexec sleep 300\n")
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/sh\nexit 0\n")
    both = ("--nodes=2", "--exclusive", "--output=%j.log")
    first = cluster.submit(f"--partition={partition}", *both, victim, cwd=tmp_path)
    try:
        cluster.wait_for(first, {"RUNNING"})
        second = cluster.submit("--partition=urgent", *both, urgent, cwd=tmp_path)
        cluster.wait_for(second, {"COMPLETED"}, 90)
        until = time.monotonic() + 90
        while (fields := cluster.job(first))["Restarts"] != "1" or fields["JobState"] != "RUNNING":
            assert time.monotonic() < until, fields
            time.sleep(0.2)
    finally:
        cluster.cancel(first)


def test_two_clusters_live_side_by_side_and_leave_nothing(cluster, tmp_path):
    script = tmp_path / "stubborn.sh"
    script.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    with local_cluster("--nodes=1", "--gpus-per-node=0") as other:
        assert "idle" in cluster.run("sinfo", "--noheader")
        other.wait_for(other.submit("--output=%j.log", script, cwd=tmp_path), {"RUNNING"})
        group = other.folder / "cgroup" / "freezer"
        group = group.readlink() if group.is_symlink() else None
        assert {"munged", "slurmctld", "slurmd", "slurmstepd"} <= set(processes_of(other.folder))
        assert local("stop", other.folder).returncode == 0
        assert processes_of(other.folder) == []
        assert group is None or not group.exists()
        assert local("env", other.folder).returncode == 1
    assert "idle" in cluster.run("sinfo", "--noheader")


def test_start_again_brings_up_what_has_died_and_refuses_another_shape(tmp_path):
    with local_cluster("--nodes=1") as cluster:
        before = sorted(processes_of(cluster.folder))
        assert local("start", cluster.folder, "--nodes=1").returncode == 0
        assert sorted(processes_of(cluster.folder)) == before
        assert "stop" in local("start", cluster.folder, "--nodes=3").stderr
        end_slurmd(cluster)
        assert local("status", cluster.folder).returncode == 1
        assert local("start", cluster.folder, "--nodes=1").returncode == 0
        assert local("status", cluster.folder).returncode == 0
        cluster.run("srun", "true")


def end_slurmd(cluster: Cluster) -> None:
    pid = next(iter((cluster.folder / "run").glob("slurmd-*.pid"))).read_text()
    os.kill(int(pid), signal.SIGKILL)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    tmp_path.chmod(0o700)
    for verb in ("start", "stop"):
        refused = local(verb, tmp_path)
        assert refused.returncode == 1
        assert str(tmp_path) in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
