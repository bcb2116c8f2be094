"""Checkpoints in the background: of the moment at which they were begun, and whole whenever the process dies."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from launching import wait_until
from safetensors.torch import load_file
from tiny_states import contents, new_state, save_small, step

from stylegan_dist.config.schema import CheckpointConfig, Config
from stylegan_dist.errors import InputError
from stylegan_dist.ranks import ALONE
from stylegan_dist.training import checkpoint, tensor_file
from stylegan_dist.training import saver as saver_module
from stylegan_dist.training.best import remember_best
from stylegan_dist.training.checkpoint import check_checkpoint, checkpoint_folder, list_checkpoints, newest_whole_checkpoint
from stylegan_dist.training.lease import TakenOver
from stylegan_dist.training.run_folder import RunFolder
from stylegan_dist.training.saved import NAMES
from stylegan_dist.training.saver import Saver
from stylegan_dist.training.tensor_file import TensorFile

STATE = {"segment": 0, "path_mean": 0.5, "statistics": {}, "config": {},
         "data": {"fingerprint": "x", "resolution": 8, "channels": 3, "num_classes": 0}}


def saver_of(run_dir: Path, lease=None, **settings) -> Saver:
    config = Config()
    config.run.batch, config.checkpoint = 40, CheckpointConfig(**settings)
    return Saver(run_dir, ALONE, config, lease)


def tensors_of(value: float) -> dict:
    return {name: {} for name in NAMES} | {"g": {"w": torch.full((50,), value)}, "d": {"b": torch.ones(3)}}


def begin(saver: Saver, nimg: int, tensors: dict | None = None) -> None:
    saver.begin(nimg, tensors or tensors_of(nimg), STATE | {"nimg": nimg})


@pytest.fixture
def gate(monkeypatch):
    """The disk takes nothing while this is not set."""
    opened, write = threading.Event(), TensorFile.write
    opened.set()

    def late(*arguments):
        assert opened.wait(600)
        return write(*arguments)

    monkeypatch.setattr(TensorFile, "write", late)
    yield opened
    opened.set()


def test_the_state_may_change_while_it_is_written(tmp_path, gate):
    state, saver = new_state(), saver_of(tmp_path)
    step(state, 0)
    expected, nimg = contents(state), state.nimg
    gate.clear()
    saver.begin(state.nimg, state.tensors(), state.facts())
    step(state, 1)
    gate.set()
    outcome = saver.wait()
    assert (outcome.nimg, outcome.failure, outcome.diverged, outcome.warnings) == (nimg, "", "", [])
    restored = new_state()
    restored.restore(checkpoint_folder(tmp_path, nimg))
    assert contents(restored) == expected != contents(state)


def test_what_came_of_it_is_told_once(tmp_path, gate):
    saver = saver_of(tmp_path)
    assert saver.look() is saver.wait() is None
    gate.clear()
    begin(saver, 100)
    assert saver.look() is None
    assert list_checkpoints(tmp_path) == []
    gate.set()
    assert saver.wait().nimg == 100
    assert saver.look() is saver.wait() is None
    assert list_checkpoints(tmp_path) == [(100, checkpoint_folder(tmp_path, 100))]


def test_a_disk_that_does_not_answer_is_waited_for_with_a_bound(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.1)
    saver = saver_of(tmp_path)
    saver._timeout = 0.2
    gate.clear()
    begin(saver, 100)
    assert "run.timeout" in saver.wait().failure
    begin(saver, 200)  # in other memory
    thread = saver._save.thread
    gate.set()
    saver._timeout = 600
    assert saver.wait().nimg == 200
    thread.join()
    wait_until(lambda: [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000200"])


def test_a_save_that_was_given_up_does_not_get_its_name(tmp_path, monkeypatch):
    """Neither after its process has told that the run has ended, nor when another has taken it over."""
    folder, entered, opened = RunFolder(tmp_path), threading.Event(), threading.Event()

    def slow(path):
        entered.set()
        opened.wait()

    monkeypatch.setattr(checkpoint, "_sync", slow)
    monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.1)
    saver = saver_of(tmp_path, folder.lease)
    begin(saver, 100)
    entered.wait()
    thread = saver._save.thread
    saver.close(0)
    folder.close()
    opened.set()
    thread.join()
    assert list_checkpoints(tmp_path) == []


def test_old_ones_are_removed(tmp_path):
    saver = saver_of(tmp_path, keep=2)
    for nimg in (100, 200, 300, 400):
        begin(saver, nimg)
        assert bool(saver.wait().warnings) == (nimg == 400)  # the damage of 300 is told
        if nimg == 200:
            remember_best(tmp_path, "fid", 100, 1.0)
        if nimg == 300:
            os.truncate(checkpoint_folder(tmp_path, 300) / "g.safetensors", 10)
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [100, 200, 300, 400]
    begin(saver, 500)
    saver.wait()
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [100, 400, 500]


def test_values_that_are_not_finite(tmp_path):
    saver = saver_of(tmp_path)
    begin(saver, 100)
    saver.wait()
    begin(saver, 200, tensors_of(float("nan")))
    assert saver.wait().diverged == "w in g.safetensors has values that are not finite"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000100"]


@pytest.mark.parametrize(("failing", "error"), [
    ("stylegan_dist.training.tensor_file.TensorFile.write", OSError(28, "No space left on device")),
    ("stylegan_dist.training.checkpoint._measure", OSError(28, "No space left on device")),
    ("pathlib.Path.rename", OSError(28, "No space left on device")),
    ("stylegan_dist.training.saver.judge", ZeroDivisionError("No space left: a fault of the program")),
])
def test_a_failure_leaves_nothing_behind_and_the_next_one_works(failing, error, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    saver = saver_of(tmp_path)
    begin(saver, 100)
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        begin(saver, 200)
        assert "No space left" in saver.wait().failure
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000100"]
    begin(saver, 300)
    assert saver.wait().failure == ""
    assert newest_whole_checkpoint(tmp_path) == (300, [])


def test_no_room_to_begin(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    saver = saver_of(tmp_path)
    with pytest.raises(InputError, match="checkpoints"):
        begin(saver, 100)
    assert saver.wait() is None


def test_a_run_that_ends_does_not_wait_for_ever(tmp_path, monkeypatch):
    """It gives a short time, then gives up; nothing is left but the older checkpoint."""
    monkeypatch.setattr(tensor_file, "PIECE", 1)
    saver, write, begun = saver_of(tmp_path), TensorFile.write, threading.Event()
    begin(saver, 100)
    saver.wait()

    def endless(file, path, cancelled):
        begun.set()
        while not cancelled():
            pass
        return write(file, path, cancelled)

    monkeypatch.setattr(TensorFile, "write", endless)
    begin(saver, 200)
    assert begun.wait(600)
    saver.close(0.1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000100"]
    assert saver.look() is None


# Two owners

def test_an_owner_that_was_replaced_publishes_and_removes_nothing(tmp_path, gate):
    folder = RunFolder(tmp_path)
    saver = saver_of(tmp_path, folder.lease, keep=1)
    save_small(tmp_path, 100)
    gate.clear()
    begin(saver, 200)
    unfinished, = (tmp_path / "checkpoints").glob(".*")
    assert folder.lease.owner.token in unfinished.name
    (tmp_path / ".owners" / "00000002").write_text("")
    gate.set()
    assert "taken over" in saver.wait().taken
    with pytest.raises(TakenOver):
        folder.check()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000100"]
    folder.close()


def test_an_earlier_owner_leaves_what_a_later_one_writes(tmp_path):
    folder = RunFolder(tmp_path)
    save_small(tmp_path, 100)
    names = [f".nimg-00000200.{number:08x}{'0' * 24}.tmp" for number in (0, 1, 2)]
    for name in [*names, ".nimg-00000300.tmp", ".nimg-00000050.removed.tmp"]:
        (tmp_path / "checkpoints" / name).mkdir()
    saver = saver_of(tmp_path, folder.lease)
    begin(saver, 400)
    saver.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [names[2], "nimg-00000100", "nimg-00000400"]
    folder.close()


# Killed

class Counted:
    """Kills this process right before its change to the disk of a number."""

    def __init__(self, number: int):
        self.left = number
        sync, opened = os.fsync, builtins.open

        def fsync(descriptor):
            self.count()
            sync(descriptor)

        class File:
            def __init__(self, *arguments, **options):
                self.file = opened(*arguments, **options)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(inner, piece):  # noqa: N805
                self.count()
                return inner.file.write(piece)

            def fileno(self):
                return self.file.fileno()

        os.fsync = fsync
        tensor_file.open = File
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_before(number: int, work) -> bool:
    """Run `work` in a process that is killed at a change to the disk; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        try:
            Counted(number)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.full
@pytest.mark.parametrize("leased", [False, True])
def test_killed_at_any_point(leased, tmp_path, monkeypatch):
    """Of two saves in the background, with removing: there is always a whole checkpoint, and the best one."""
    monkeypatch.setattr(tensor_file, "PIECE", 100)
    start, run, seen = tmp_path / "start", tmp_path / "run", set()
    start.mkdir()
    for nimg in (100, 200, 300):
        save_small(start, nimg, {"g": {"w": torch.full((4,), float(nimg))}})
    remember_best(start, "fid", 100, 1.0)

    def work():
        folder = RunFolder(run) if leased else None
        saver = saver_of(run, folder and folder.lease, keep=1)
        for nimg in (400, 500):
            begin(saver, nimg)
            saver.wait()

    for number in range(10_000):
        shutil.copytree(start, run)
        came_so_far = killed_before(number, work)
        newest, damage = newest_whole_checkpoint(run)
        assert not damage
        assert newest in (300, 400, 500)
        assert torch.all(load_file(checkpoint_folder(run, newest) / "g.safetensors")["w"] == newest)
        assert check_checkpoint(checkpoint_folder(run, 100)) is None
        seen.add(newest)
        if number % 10 == 0 or not came_so_far:  # the next process clears up
            folder = RunFolder(run)
            saver = saver_of(run, folder.lease, keep=1)
            begin(saver, 600)
            saver.wait()
            folder.close()
            assert {path.name for path in (run / "checkpoints").iterdir()} <= {"nimg-00000100", "nimg-00000600", "best.json"}
        shutil.rmtree(run)
        if not came_so_far:
            break
    assert number > 50  # so many changes to the disk were looked at
    assert seen == {300, 400, 500}
