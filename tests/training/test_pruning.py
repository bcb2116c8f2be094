"""Which checkpoints are removed: never the last whole one, whatever the damage, and whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from saving import prune
from tiny_states import save_small

from stylegan_dist.training import checkpoint
from stylegan_dist.training.checkpoint import (
    check_checkpoint,
    checkpoint_folder,
    list_checkpoints,
    newest_whole_checkpoint,
)


def left(run_dir: Path) -> list[int]:
    return [nimg for nimg, _ in list_checkpoints(run_dir)]


def damage(run_dir: Path, *nimgs: int, name: str = "g.safetensors") -> None:
    for nimg in nimgs:
        path = checkpoint_folder(run_dir, nimg) / name
        os.truncate(path, path.stat().st_size - 5)


def forget(monkeypatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(checkpoint, "_known", {})


@pytest.fixture
def ten(tmp_path):
    for nimg in range(100, 1001, 100):
        save_small(tmp_path, nimg)
    return tmp_path


@pytest.mark.parametrize(("keep", "archive", "left"), [
    (3, 0, [800, 900, 1000]), (1, 0, [1000]), (20, 0, list(range(100, 1001, 100))),
    (2, 300, [100, 300, 600, 900, 1000]), (1, 1000, [100, 1000]), (1, 10**9, [100, 1000]),
    (1, 100, list(range(100, 1001, 100))),
])
def test_prune(keep, archive, left, tmp_path):
    for nimg in range(100, 1001, 100):
        save_small(tmp_path, nimg)
        prune(tmp_path, keep, archive)  # as the loop does: the outcome is the same as at the end
        assert list_checkpoints(tmp_path)[-1][0] == nimg
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == left
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"nimg-{nimg:08d}" for nimg in left]


@pytest.mark.parametrize(("broken", "stay"), [
    ((), [900, 1000]), ((1000,), [800, 900, 1000]), ((900,), [800, 900, 1000]), ((800, 700), [900, 1000]),
    (range(300, 1001, 100), list(range(100, 1001, 100))), (range(200, 1001, 100), list(range(100, 1001, 100))),
    (range(100, 1001, 100), list(range(100, 1001, 100))), (range(100, 901, 100), list(range(100, 1001, 100))),
])
@pytest.mark.parametrize("new_process", [True, False])
def test_damaged_ones_do_not_count(broken, stay, new_process, ten, monkeypatch):
    damage(ten, *broken)
    if new_process:
        forget(monkeypatch)
    news = prune(ten, 2, 0)
    assert left(ten) == stay
    assert {nimg for nimg in broken if any(f"nimg-{nimg:08d}" in line for line in news)} == {n for n in broken if n in stay}
    assert prune(ten, 2, 0) == []  # it was told
    assert left(ten) == stay


def test_a_damaged_one_goes_when_enough_newer_ones_are_whole(ten):
    damage(ten, 900, 1000, name="state.json")
    for nimg, stay in ((1100, [800, 900, 1000, 1100]), (1200, [1100, 1200])):
        save_small(ten, nimg)
        prune(ten, 2, 0)
        assert left(ten) == stay


def test_the_archive_keeps_whole_ones(ten):
    damage(ten, 100, 400)
    prune(ten, 1, 300)
    assert left(ten) == [200, 300, 600, 900, 1000]  # 400 was never the first of its stretch
    damage(ten, 300)
    prune(ten, 1, 300)
    assert left(ten) == [200, 300, 600, 900, 1000]  # it is the only one of its stretch


def test_what_was_written_or_examined_is_not_read_again(ten, monkeypatch):
    forget(monkeypatch)
    newest_whole_checkpoint(ten)
    read = []

    def counting(folder, check=check_checkpoint):
        read.append(int(folder.name.removeprefix("nimg-")))
        return check(folder)

    monkeypatch.setattr(checkpoint, "check_checkpoint", counting)
    for nimg in (1100, 1200, 1300):
        save_small(ten, nimg)
        prune(ten, 3, 1000)
    assert read == [900, 100]  # to know that 900, 1000 and 1100 are 3, and that 100 is worth keeping
    save_small(ten, 1400)
    damage(ten, 1200)
    prune(ten, 3, 1000)
    assert read == [900, 100, 1200]
    assert left(ten) == [100, 1000, 1100, 1200, 1300, 1400]  # 1100 counts again


def test_a_link_to_another_disk_can_be_pruned(ten, tmp_path_factory):
    other = tmp_path_factory.mktemp("disk") / "old"
    shutil.move(checkpoint_folder(ten, 100), other)
    checkpoint_folder(ten, 100).symlink_to(other)
    prune(ten, 2, 0)
    save_small(ten, 1100)
    assert left(ten) == [900, 1000, 1100]
    assert sorted(path.name for path in (ten / "checkpoints").iterdir()) == [f"nimg-{nimg:08d}" for nimg in left(ten)]


def killed_before(number: int, work) -> bool:
    """Run `work` in a process that is killed right before its change to the disk of this number; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                seen += 1
                if seen > number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.parametrize("broken", [(), (300,)])
def test_killed_at_any_point_of_a_save_and_a_prune(broken, tmp_path):
    """There is always a whole checkpoint, and the next process clears up."""
    start = tmp_path / "start"
    start.mkdir()
    for nimg in (100, 200, 300):
        save_small(start, nimg, {"g": {"w": torch.full((4,), float(nimg))}})
    damage(start, *broken)
    before = newest_whole_checkpoint(start)[0]
    new = 300 if 300 in broken else 400  # over the damaged one, or after all

    def work():
        save_small(run, new, {"g": {"w": torch.full((4,), float(new))}})
        prune(run, 1, 0)

    run, seen = tmp_path / "run", set()
    for number in range(1000):
        shutil.copytree(start, run)
        came_so_far = killed_before(number, work)
        newest = newest_whole_checkpoint(run)[0]
        assert newest in (before, new)
        seen.add(newest)
        save_small(run, 500)
        prune(run, 1, 0)
        assert left(run) == [500]
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["nimg-00000500"]
        shutil.rmtree(run)
        if not came_so_far:
            break
    assert number > 20
    assert seen == {before, new}
