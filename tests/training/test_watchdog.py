"""A training step that hangs: when it counts as that, and how the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stylegan_dist.engine.stacks import record_collectives
from stylegan_dist.engine.watchdog import LEAST_STEPS, PATIENCE, REMEMBERED_STEPS, StepLimit
from stylegan_dist.errors import EXIT_FAILURE


def step(limit: StepLimit, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        limit.add(0.0)  # waiting for data
        limit.add(seconds)


def test_no_limit_before_some_steps():
    limit = StepLimit(least=3, most=100)
    step(limit, 1.0, LEAST_STEPS - 1)
    assert limit.seconds is None
    step(limit, 0.1)
    assert limit.seconds == PATIENCE * 1.0


def test_no_limit_before_the_rarest_phase():
    limit = StepLimit(least=3, most=100)
    limit.expect(interval=64)
    step(limit, 1.0, 64)
    assert limit.seconds is None
    step(limit, 1.0)
    assert limit.seconds is not None


def test_a_first_step_that_compiles_is_forgotten():
    limit = StepLimit(least=3, most=100)
    step(limit, 500.0)
    step(limit, 0.001, REMEMBERED_STEPS - 1)
    assert limit.seconds == 100, "no more than the most"
    step(limit, 0.001)
    assert limit.seconds == 3, "no less than the least"


SCRIPT = """
import sys, time
from pathlib import Path
from stylegan_dist.engine import watchdog
from stylegan_dist.ranks import Ranks

watchdog.LOOK_SECONDS, watchdog.HOOK_SECONDS = 0.05, 1.0
folder, least = Path(sys.argv[1]), float(sys.argv[2])
dog = watchdog.Watchdog(ranks := Ranks(), ["a"], None, least, 600)
dog.on_death += [lambda text: time.sleep(600), lambda text: (folder / "status").write_text(text)]


def enter(step):
    ranks.enter("training", 8, step)
    dog.entered(step)


def reading_that_takes_long():
    print("reading", flush=True)
    time.sleep(float(sys.argv[4]))


with dog.watching_steps(folder / "stacks", 1, (folder / "log").write_text):
    for _ in range(2 * watchdog.LEAST_STEPS):
        enter(True)
    enter(False)
    time.sleep(float(sys.argv[3]))
    enter(True)
    reading_that_takes_long()
"""


@contextlib.contextmanager
def process(folder: Path, least: float, pause: float, reading: float) -> Iterator[subprocess.Popen]:
    """Some short steps, something that is no step and takes `pause` seconds, and a step whose reading takes long."""
    numbers = [str(seconds) for seconds in (least, pause, reading)]
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), *numbers], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_hanging_step_ends_the_process(tmp_path: Path):
    """Also where a hook hangs; what is no step may take longer."""
    with process(tmp_path, least=0.5, pause=3, reading=600) as hung:
        out, err = hung.communicate(timeout=300)
    assert hung.returncode == EXIT_FAILURE
    assert out == "reading\n"
    error = err.splitlines()[-1]
    assert error.startswith("error: rank 0 (a, process ")
    assert "training at 8 images" in error
    assert "last checkpoint" in error
    assert (tmp_path / "status").read_text() == error
    assert (tmp_path / "log").read_text() == error
    stacks = (tmp_path / "stacks/rank-0.txt").read_text()
    assert stacks.count("in reading_that_takes_long") == 1, "written once"


def test_a_process_that_was_stopped_does_not_hang(tmp_path: Path):
    with process(tmp_path, least=2, pause=0, reading=0.3) as stopped:
        assert stopped.stdout is not None
        stopped.stdout.readline()
        os.kill(stopped.pid, signal.SIGSTOP)
        time.sleep(5)  # more than twice the limit
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait(timeout=300) == 0
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(("version", "names"), [
    ("2.13.0+cpu", {"TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"}),
    ("2.6.0", {"TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}),
])
def test_the_flight_recorder_is_on(version: str, names: set[str], tmp_path: Path):
    env: dict[str, str] = {}
    record_collectives(env, tmp_path / "stacks", version)
    assert set(env) == {*names, "TORCH_NCCL_DUMP_ON_TIMEOUT"}
    assert str(tmp_path / "stacks") in str(env)


@pytest.mark.parametrize("name", ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_what_a_user_has_set_for_the_recorder_stays(name: str, tmp_path: Path):
    env = {name: "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    record_collectives(env, tmp_path, "2.13.0")
    assert env[name] == "0"
    assert env["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    assert sum("BUFFER_SIZE" in key for key in env) == 1
