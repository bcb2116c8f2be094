"""A rank that hangs in a training step: the others end by themselves with its name, and leave stacks behind.

And one that is only slow: it is named, and the run goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import metrics_reader
import pytest
from launching import TIMEOUT, TINY, TRAIN, alive, direct_environment, started, wait_until

from stylegan_dist.monitor.monitor import METRICS_NAME

pytestmark = [pytest.mark.slow, pytest.mark.full]

# Far from run.timeout. A step of the tiny networks takes some tens of milliseconds.
SETTINGS = ("run.kimg=100", "run.hang_seconds=4", "monitor.tick_kimg=0.08", "checkpoint.every_kimg=100",
            "monitor.samples_kimg=100", "run.timeout=3600")

ENTRY = """
import os, runpy, time
from stylegan_dist.data.batches import BatchDataset
load = BatchDataset.load


def a_disk_that_never_answers(dataset, nimg, memory):
    time.sleep(3600)


def load_or_hang(dataset, nimg, memory):
    if os.environ["RANK"] == "1" and nimg > 640:
        a_disk_that_never_answers(dataset, nimg, memory)
    return load(dataset, nimg, memory)


BatchDataset.load = load_or_hang
runpy.run_path({script!r}, run_name="__main__")
"""


SLOW_ENTRY = """
import os, runpy, time
from stylegan_dist.engine.data_parallel import FlatLearner
accumulate = FlatLearner._accumulate


def slow(learner, jobs, counts):
    time.sleep(0.2 * (os.environ["RANK"] == "1"))
    return accumulate(learner, jobs, counts)


FlatLearner._accumulate = slow
runpy.run_path({script!r}, run_name="__main__")
"""


@contextlib.contextmanager
def two_ranks(shards: Path, run_dir: Path, entry: Path = TRAIN, *overrides: str):
    command = [sys.executable, str(entry), *TINY, f"data.shards={shards}", f"run.dir={run_dir}", *SETTINGS, *overrides]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(started(command, **environment)) for environment in direct_environment(2)]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_stopped_rank(stopped: int, labelled_shards: Path, tmp_path: Path):
    """Also rank 0, through which the ranks keep in touch; and the stopped one ends when it goes on."""
    run = tmp_path / "run"
    with two_ranks(labelled_shards, run) as ranks:
        # What follows a record are steps; where a rank stops in a checkpoint, the others wait for run.timeout.
        wait_until(lambda: (run / METRICS_NAME).exists() and (run / METRICS_NAME).read_text().count("\n") > 7)
        os.kill(ranks[stopped].pid, signal.SIGSTOP)
        _, err = ranks[1 - stopped].communicate(timeout=TIMEOUT)
        assert ranks[1 - stopped].returncode == 1, err
        error, = errors(err)
        assert re.search(rf"rank {stopped} \(n{stopped}.* does not answer", error)
        assert f"rank {stopped} (n{stopped}" in err.partition("error: ")[0], "said before"
        stacks = run / f"stacks/rank-{1 - stopped}.txt"
        assert "stylegan_dist/training/loop.py" in stacks.read_text()
        if stopped == 1:
            log = (run / "log.txt").read_text()
            assert error in log
            assert str(stacks.parent) in log.partition("error: ")[0]
        os.kill(ranks[stopped].pid, signal.SIGCONT)
        _, err = ranks[stopped].communicate(timeout=TIMEOUT)
        assert ranks[stopped].returncode == 1, err


def test_a_rank_that_hangs_in_python(labelled_shards: Path, tmp_path: Path):
    """It writes its own stack, is named by the other one, and ends as well."""
    entry, run = tmp_path / "entry.py", tmp_path / "run"
    entry.write_text(ENTRY.format(script=str(TRAIN)))
    with two_ranks(labelled_shards, run, entry) as ranks:
        said = [rank.communicate(timeout=TIMEOUT)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [1, 1], said
        assert not any(alive(rank.pid) for rank in ranks)
    assert "rank 1 (n1, process" in errors(said[0])[0]
    assert "is late: it is waiting for data" in said[0]
    assert "in a_disk_that_never_answers" in (run / "stacks/rank-1.txt").read_text()
    assert "in a_disk_that_never_answers" not in (run / "stacks/rank-0.txt").read_text()


def test_a_slow_rank(labelled_shards: Path, tmp_path: Path):
    """Both take the same time for a step, as one waits for the other."""
    entry, run = tmp_path / "entry.py", tmp_path / "run"
    entry.write_text(SLOW_ENTRY.format(script=str(TRAIN)))
    with two_ranks(labelled_shards, run, entry, "run.kimg=0.24", "run.hang_seconds=600") as ranks:
        said = [rank.communicate(timeout=TIMEOUT)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
    log = (run / "log.txt").read_text()
    first = next(line for line in log.partition("ranks need more than")[2].splitlines()[1:] if " ms" in line)
    assert "rank 1" in first
    assert "n1" in first
    assert "TFLOP/s per rank" in log
    last = metrics_reader.read(run / METRICS_NAME)[-1]
    assert last["time/rank_step_slowest"] > last["time/rank_step_median"] + 0.3
