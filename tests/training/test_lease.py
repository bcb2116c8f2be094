"""Who trains in a folder where locks have no effect: one of several claimants, the living one, whatever the clocks say."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import ROOT, TIMEOUT, TRAIN, started, train_command, trained, wait_for, wait_until
from metrics_reader import read
from saving import assert_equal_tensors

from stylegan_dist.errors import InputError
from stylegan_dist.training import lease
from stylegan_dist.training.lease import OWNERS_NAME, STATUS_NAME, Lease, TakenOver, read_status


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)


def of_another_machine(run: Path, number: int = 1) -> None:
    """As if that start had been on a machine of which nothing can be found out here."""
    path = run / OWNERS_NAME / f"{number:08d}"
    start = json.loads(path.read_text())
    path.write_text(json.dumps(start | {"life": {"boot": "another", "namespace": "", "began": ""}}))


def test_it_tells_what_the_run_does(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    claim = Lease(tmp_path)
    claim.where = lambda: ("training", 80)
    claim.update(state="running", total=160)
    wait_until(lambda: read_status(tmp_path).state == "running")
    status = read_status(tmp_path)
    assert (status.doing, status.nimg, status.total) == ("training", 80, 160)
    assert (status.owner.job, status.owner.restart, status.owner.process) == ("4711", 2, os.getpid())
    beat = status.beat
    wait_until(lambda: read_status(tmp_path).beat > beat)
    monkeypatch.setenv("MY_TOKEN", "a-secret-of-mine")
    claim.release("failed", "wrong\nwith a-secret-of-mine")
    assert (read_status(tmp_path).state, read_status(tmp_path).message) == ("failed", "wrong with ***")


def test_a_start_that_is_refused_keeps_what_is_known_of_the_run(tmp_path, quick):
    first = Lease(tmp_path)
    first.update(state="running", nimg=80, total=160, checkpoint=80, processes=2)
    first.release("stopped")
    Lease(tmp_path).release("failed", "another seed")
    status = read_status(tmp_path)
    assert (status.state, status.message) == ("failed", "another seed")
    assert (status.nimg, status.total, status.checkpoint) == (80, 160, 80)


def test_the_last_words_may_hold_what_is_no_text(tmp_path, quick):
    Lease(tmp_path).release("failed", "corrupt image \udc80.png")
    assert read_status(tmp_path).message == "corrupt image ?.png"


def test_nothing_is_permitted_after_the_release_or_where_nobody_can_say(tmp_path, quick, monkeypatch):
    claim = Lease(tmp_path)

    def unanswered(*arguments, **more):
        raise OSError(errno.EIO, "no answer")

    claim.check(surely=True)
    with monkeypatch.context() as fault:
        fault.setattr(lease.os, "stat", unanswered)
        claim.check()
        with pytest.raises(OSError, match="no answer"):
            claim.check(surely=True)
    claim.release("finished")
    with pytest.raises(TakenOver, match="released"):
        claim.check()


def test_a_file_server_that_answers_nobody_does_not_make_an_owner_silent(tmp_path, quick, monkeypatch):
    """One look takes longer than an owner may be silent; after that it is heard again."""
    first, look, looks = Lease(tmp_path), lease._look, []
    of_another_machine(tmp_path)

    def slow(path):
        found = look(path)
        looks.append(1)
        if len(looks) == 2:
            time.sleep(5 * lease.PATIENCE * lease.BEAT_SECONDS)
            return before
        return found

    before = look(tmp_path)
    monkeypatch.setattr(lease, "_look", lambda path: before if len(looks) < 1 and looks.append(1) is None else slow(path))
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        Lease(tmp_path)
    first.release("finished")


def test_a_living_owner_is_left_alone_whatever_the_clocks_say(tmp_path, quick):
    first = Lease(tmp_path)
    of_another_machine(tmp_path)
    for when in (0, 4_000_000_000):  # a clock that was set back, and one that is ahead
        os.utime(tmp_path / STATUS_NAME, (when, when))
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            Lease(tmp_path)
    first.check()
    first.release("stopped")
    Lease(tmp_path).release("finished")


@pytest.mark.parametrize("when", [0, 4_000_000_000])
def test_one_that_gives_no_sign_of_life_is_followed(when, tmp_path, quick, monkeypatch):
    first = Lease(tmp_path)
    of_another_machine(tmp_path)
    first._ended.set()  # its thread stops, as with its machine
    first._wake.set()
    first._thread.join()
    first._ended.clear()
    os.utime(tmp_path / STATUS_NAME, (when, when))
    second = Lease(tmp_path)
    second.check()
    with pytest.raises(TakenOver, match=f"process {os.getpid()}"):
        first.check()
    first._write()  # it comes back, and must not write over what the other tells
    assert read_status(tmp_path).owner == second.owner
    second.release("finished")


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    code = (f"import os\nfrom pathlib import Path\nfrom stylegan_dist.training.lease import Lease\n"
            f"Lease(Path({str(tmp_path)!r}))\nos._exit(0)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)
    assert read_status(tmp_path).state == "starting"
    claim = Lease(tmp_path)  # with the patience of 15 s for one that could be alive
    assert claim.owner.number == 2
    claim.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', "x" * 100_000])
def test_a_damaged_status_file(content, tmp_path, quick):
    (tmp_path / STATUS_NAME).write_text(content)
    assert read_status(tmp_path) is None
    Lease(tmp_path).release("finished")
    assert read_status(tmp_path).state == "finished"


def test_of_claimants_at_the_same_moment_one_wins(tmp_path):
    go, code = tmp_path / "go", """if True:
        import sys, time
        from pathlib import Path
        from stylegan_dist.errors import InputError
        from stylegan_dist.training.lease import Lease
        run, go = map(Path, sys.argv[1:])
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        while not go.exists():
            pass
        try:
            claim = Lease(run)
        except InputError:
            sys.exit(3)
        time.sleep(1)
        claim.release("finished")
    """
    run = tmp_path / "run"
    run.mkdir()
    claimants = [subprocess.Popen([sys.executable, "-c", code, run, go], stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for one in claimants:
            assert one.stdout.readline() == b"ready\n"
        go.touch()
        assert sorted(one.wait(TIMEOUT) for one in claimants) == [0, 3, 3, 3]
    finally:
        for one in claimants:
            one.kill()


def without_locks(folder: Path) -> Path:
    """launch/train.py on a file system where every lock succeeds."""
    script = folder / "train.py"
    script.write_text(f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport stylegan_dist.files as files\n"
                      f"files.try_lock = lambda *args, **more: True\nrunpy.run_path({str(TRAIN)!r}, run_name='__main__')\n")
    return script


@pytest.mark.slow
@pytest.mark.full
def test_two_incarnations_do_not_mix(small_shards: Path, tmp_path: Path):
    """The first is stopped, the second takes over, the first goes on: it ends, and the run is as if there had been one."""
    length = "run.kimg=0.8"
    trained(small_shards, tmp_path / "straight", length)
    run = tmp_path / "run"
    command = train_command(small_shards, run, length, entry=without_locks(tmp_path))
    with started(command) as first:
        wait_for(run / "checkpoints/nimg-00000080/manifest.json", first)
        first.send_signal(signal.SIGSTOP)
        with started(command) as second:
            wait_until(lambda: read_status(run).owner.process == second.pid, "the second takes over")
            wait_until(lambda: read_status(run).state == "running" or second.poll() is not None, "the second trains")
            first.send_signal(signal.SIGCONT)
            said = first.communicate(timeout=TIMEOUT)[1]
            assert second.wait(TIMEOUT) == 0
    assert first.returncode == 2
    assert f"process {second.pid}" in said
    assert_equal_tensors(*(folder / "checkpoints/nimg-00000800" for folder in (tmp_path / "straight", run)))
    assert [record["nimg"] for record in read(run / "metrics.jsonl")] == list(range(8, 801, 8))
    assert read_status(run).state == "finished"
