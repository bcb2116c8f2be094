"""A wrong or partial launch ends in seconds, in one line that names the rank, the machine and the remedy."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from launching import ROOT, TIMEOUT, TINY, TRAIN, direct_environment, finished, free_port, late_entry, started, train_command

from stylegan_dist.cli import main

pytestmark = pytest.mark.slow
# Seconds that a rank waits for the others where one is missing. The others need less, also where much else is running.
PATIENCE = 20


@contextlib.contextmanager
def direct(shards: Path, run_dir: Path, *ranks: dict, world_size: int | None = None) -> Iterator[list[subprocess.Popen]]:
    """Ranks as srun starts them, one by one on machines n0, n1, ...: each with "overrides", "env" and "script" of its own."""
    with contextlib.ExitStack() as stack:
        processes = []
        for rank, known in zip(ranks, direct_environment(world_size or len(ranks)), strict=False):
            env = known | rank.get("env", {})
            command = [sys.executable, str(rank.get("script", TRAIN)), *TINY, f"data.shards={shards}",
                       f"run.dir={run_dir}", "run.kimg=0.016", *rank.get("overrides", ())]
            processes.append(stack.enter_context(started(command, forked="PYTHONPATH" not in env, **env)))
        yield processes


def the_errors(processes: Sequence[subprocess.Popen], code: int) -> list[str]:
    """The lines of error that each has printed; all must end soon with this code and without a traceback."""
    lines = []
    for process in processes:
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == code, err
        assert "Traceback" not in err
        lines += [line for line in err.splitlines() if line.startswith("error: ")]
    return lines


def refused(shards: Path, tmp_path: Path, *ranks: dict) -> str:
    """The line in which each machine says why these ranks cannot be a run; nothing must have been written."""
    with direct(shards, tmp_path / "run", *ranks) as processes:
        lines = the_errors(processes, 2)
    assert lines == [lines[0]] * len(ranks)
    assert not (tmp_path / "run").exists()
    return lines[0]


def test_other_configuration(labelled_shards: Path, tmp_path: Path):
    batch = "run.batch=12"
    message = refused(labelled_shards, tmp_path, {"overrides": [batch]},
                      {"overrides": [batch, "loss.r1_gamma=2", "optim.d.lr=0.5"]}, {"overrides": [batch]})
    assert "loss.r1_gamma is 1.0 on ranks 0, 2 (n0, n2), 2.0 on rank 1 (n1)" in message
    assert "optim.d.lr is 0.0025 on ranks 0, 2 (n0, n2), 0.5 on rank 1 (n1)" in message
    assert "same command" in message


@pytest.mark.full
def test_other_data(labelled_shards: Path, tmp_path: Path):
    other = tmp_path / "other"
    assert main(["pack", str(labelled_shards.parent / "images"), str(other), "--resolution", "16", "--labels", "folders"]) == 0
    message = refused(labelled_shards, tmp_path, {}, {"overrides": [f"data.shards={other}"]})
    assert f"different data: {labelled_shards} with SHA-256" in message
    assert "on rank 0 (n0)" in message
    assert f"{other} with SHA-256" in message


@pytest.mark.full
def test_no_data_on_one_machine(labelled_shards: Path, tmp_path: Path):
    message = refused(labelled_shards, tmp_path, {}, {"overrides": [f"data.shards={tmp_path / 'nowhere'}"]})
    assert "nowhere" in message
    assert "(on rank 1, n1)" in message


@pytest.mark.full
def test_other_code(labelled_shards: Path, tmp_path: Path):
    shutil.copytree(ROOT / "stylegan_dist", tmp_path / "stylegan_dist", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "stylegan_dist/objective/penalties.py").open("a") as file:
        file.write("# another version\n")
    message = refused(labelled_shards, tmp_path, {}, {"env": {"PYTHONPATH": str(tmp_path)}})
    assert "the ranks differ in code of stylegan_dist: " in message
    assert "on rank 0 (n0)" in message
    assert "on rank 1 (n1); install the same version" in message


@pytest.mark.full
def test_other_engine(labelled_shards: Path, tmp_path: Path):
    """One machine was started with another accelerate configuration file."""
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    message = refused(labelled_shards, tmp_path, {}, {"env": zero})
    assert "differ in engine: data parallel on rank 0 (n0), DeepSpeed, generator ZeRO-2" in message
    assert "same --config_file" in message


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_on_one_machine(labelled_shards: Path, tmp_path: Path):
    message = refused(labelled_shards, tmp_path, {}, {"overrides": ["run.device=cuda"]})
    assert "rank 1 (n1): run.device=cuda but PyTorch sees no GPU" in message


@pytest.mark.full
def test_a_world_of_one_machine_in_a_step_of_two(labelled_shards: Path, tmp_path: Path):
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURMD_NODENAME": "n0"}
    message = refused(labelled_shards, tmp_path, {"env": step}, {"env": step})
    assert "srun started this on 2 machines" in message
    assert "ranks 0-1 (n0)" in message
    assert "run.world_size" in message


def test_a_rank_taken_twice(labelled_shards: Path, tmp_path: Path):
    with direct(labelled_shards, tmp_path / "run", {}, {}, {"env": {"RANK": "1"}}) as processes:
        lines = the_errors(processes, 2)
    assert all("two processes are rank 1: one on n" in line for line in lines)
    assert len(lines) == 3


@pytest.mark.full
def test_what_may_differ(labelled_shards: Path, tmp_path: Path):
    """Machines may keep the same shards in different places."""
    copy = shutil.copytree(labelled_shards, tmp_path / "copy")
    with direct(labelled_shards, tmp_path / "run", {},
                {"overrides": [f"data.shards={copy}", "data.workers=1", "data.prefetch=2"]}) as processes:
        assert the_errors(processes, 0) == []
    assert (tmp_path / "run/checkpoints/nimg-00000016").is_dir()


@pytest.mark.full
@pytest.mark.parametrize("how", ["not started", "stopped"])
def test_a_missing_rank(how: str, labelled_shards: Path, tmp_path: Path):
    present = {"overrides": [f"run.timeout={PATIENCE}"]}
    with contextlib.ExitStack() as stack:
        ranks = [present, present] if how == "not started" else [present, present, present]
        processes = stack.enter_context(direct(labelled_shards, tmp_path / "run", *ranks, world_size=3))
        if how == "stopped":
            os.kill(processes[2].pid, signal.SIGSTOP)
        lines = the_errors(processes[:2], 1)
    assert len(lines) == 2
    for line in lines:
        assert re.search(rf"rank 2 of 3 .*{PATIENCE} s.* n0, n1", line)


@pytest.mark.full
@pytest.mark.parametrize("sleeper", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_rank_that_sleeps_under_the_launcher(sleeper: int, labelled_shards: Path, tmp_path: Path):
    """Also rank 0, as the launcher serves the store."""
    command = train_command(labelled_shards, tmp_path / "run", f"run.timeout={PATIENCE}", processes=2,
                            entry=late_entry(tmp_path, sleeper, 600))
    result = finished(command, SLURMD_NODENAME="n7")
    assert result.returncode != 0
    line, = {line for line in result.stderr.splitlines() if line.startswith("error: ")}  # said twice: at once, and last
    assert re.search(rf"rank {sleeper} of 2 .*{PATIENCE} s.* n7", line)


@pytest.mark.full
def test_rank_0_is_not_there(labelled_shards: Path, tmp_path: Path):
    """Without a launcher nobody else serves the store."""
    alone = {"overrides": ["run.timeout=2"], "env": {"RANK": "1"}}
    with direct(labelled_shards, tmp_path / "run", alone, world_size=2) as processes:
        line, = the_errors(processes, 1)
    assert re.search(r"rank 1 on n0 cannot reach .*127\.0\.0\.1", line)
    assert "--main_process_ip" in line


@pytest.mark.full
def test_ranks_that_come_but_do_not_connect(labelled_shards: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text("import sys, time\nfrom stylegan_dist.engine import engine\n"
                      "engine.measure_network = lambda ranks: time.sleep(600)\n"
                      "from stylegan_dist.cli import main\nsys.exit(main(['train', *sys.argv[1:]]))\n")
    soon = [f"run.timeout={PATIENCE}"]
    with direct(labelled_shards, tmp_path / "run", {"overrides": soon}, {"overrides": soon, "script": script}) as processes:
        line, = the_errors(processes[:1], 1)
    assert "ranks 0-1 (n0, n1)" in line
    assert "GLOO_SOCKET_IFNAME" in line


@pytest.mark.full
def test_after_the_start_ranks_wait_as_long_as_run_timeout(labelled_shards: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text("import time, torch\nfrom stylegan_dist.config.schema import RunConfig\n"
                      "from stylegan_dist.engine import engine\n"
                      f"engine.patience = lambda timeout: {PATIENCE}\n"
                      "ranks = engine.Engine(RunConfig(device='cpu', timeout=600))\n"
                      f"time.sleep({PATIENCE + 2} * ranks.rank)\nassert ranks.sum(torch.ones(1)) == 2\nranks.close()\n")
    with direct(labelled_shards, tmp_path / "run", {"script": script}, {"script": script}) as processes:
        assert the_errors(processes, 0) == []


@pytest.mark.full
@pytest.mark.parametrize("config", ["multinode.yaml", pytest.param("multinode-zero2.yaml", marks=pytest.mark.exhaustive)])
def test_two_machines_of_the_same_name(config: str, labelled_shards: Path, tmp_path: Path):
    port = str(free_port())
    commands = [
        train_command(labelled_shards, tmp_path / "run", "run.kimg=0.016", "run.world_size=2", config=config, processes=2,
                      launch_flags=("--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1",
                                    "--main_process_port", port))
        for rank in (0, 1)
    ]
    with started(commands[0]) as first, started(commands[1]) as second:
        out, err = first.communicate(timeout=TIMEOUT)
        assert first.returncode == 0, out + err
        assert second.wait(timeout=TIMEOUT) == 0
    assert "2 x CPU" in out
    assert "GB/s per rank in an all-reduce, 1 machine" in out
