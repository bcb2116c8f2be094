"""Real runs whose folder is damaged, moved or deleted: nothing is lost without a word."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
from launching import TIMEOUT, TRAIN, direct_environment, finished, remove_in_use, started, train_command, trained, wait_for
from metrics_reader import read

from stylegan_dist.training.checkpoint import check_checkpoint, list_checkpoints, newest_whole_checkpoint
from stylegan_dist.training.lease import OWNERS_NAME, STATUS_NAME, read_status

pytestmark = [pytest.mark.slow, pytest.mark.full]
FREQUENT = ("checkpoint.every_kimg=0.04", "checkpoint.keep=2")


@pytest.mark.parametrize(("change", "processes"), [("move", 1), ("delete", 2), ("replace", 1)])
def test_a_folder_that_goes_ends_the_run(change: str, processes: int, small_shards: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    command = train_command(small_shards, run_dir, "run.kimg=1000")
    worlds = direct_environment(processes) if processes > 1 else [{}]
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(started(command, forked=True, **world)) for world in worlds]
        wait_for(run_dir / "checkpoints/nimg-00000080/manifest.json", ranks[0])
        run_dir.rename(tmp_path / "moved")
        if change == "delete":
            remove_in_use(tmp_path / "moved")
        elif change == "replace":
            run_dir.mkdir()
        said = [rank.communicate(timeout=TIMEOUT) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [2] * processes, said
    words = "replaced" if change == "replace" else "deleted or moved"
    assert f"error: the run's folder {run_dir} was {words}" in said[0][1]
    assert "Traceback" not in "".join(out + err for out, err in said)
    if change == "replace":  # a tick that was under way may have left its line there, but nothing else
        assert {entry.name for entry in run_dir.iterdir()} <= {"log.txt", "metrics.jsonl"}
    else:
        assert not run_dir.exists()
    if change == "move":  # it can be moved back, and goes on
        (tmp_path / "moved").rename(run_dir)
        nimg = newest_whole_checkpoint(run_dir)[0]
        trained(small_shards, run_dir, f"run.kimg={(nimg + 80) / 1000}")
        assert [record["nimg"] for record in read(run_dir / "metrics.jsonl")] == list(range(8, nimg + 81, 8))


def damage(folder: Path) -> None:
    os.truncate(folder / "g.safetensors", (folder / "g.safetensors").stat().st_size - 5)


def contents(run_dir: Path) -> dict[Path, bytes]:
    """All files, but what says who was there last."""
    return {path: path.read_bytes() for path in run_dir.rglob("*")
            if path.is_file() and path.name != STATUS_NAME and path.parent.name != OWNERS_NAME}


def test_damaged_checkpoints_do_not_take_the_last_whole_one_with_them(small_shards: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    trained(small_shards, run_dir, "run.kimg=0.32", *FREQUENT, "checkpoint.archive_kimg=0.08")
    checkpoints = dict(list_checkpoints(run_dir))
    assert list(checkpoints) == [40, 80, 160, 240, 280, 320]
    for nimg in (160, 240, 280, 320):
        damage(checkpoints[nimg])
    result = trained(small_shards, run_dir, "run.kimg=0.2", *FREQUENT)
    assert result.stdout.count("passing over a damaged checkpoint") == 4
    assert {nimg: check_checkpoint(folder) is None for nimg, folder in list_checkpoints(run_dir)} == {
        200: True, 160: True, 240: False, 280: False, 320: False}
    for folder in dict(list_checkpoints(run_dir)).values():
        if check_checkpoint(folder) is None:
            damage(folder)
    before = contents(run_dir)
    command = train_command(small_shards, run_dir, "run.kimg=0.4", *FREQUENT)
    refused = finished([sys.executable, *command[1:]])
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "no checkpoint in" in refused.stderr
    assert "nimg-00000320/g.safetensors is damaged" in refused.stderr
    assert "4 older" in refused.stderr
    assert contents(run_dir) == before
    status = read_status(run_dir)
    assert (status.state, "no checkpoint in" in status.message) == ("failed", True)


DIVERGING = """
import runpy
from stylegan_dist.training import loop
step = loop.step

def spoiled(run, *arguments):
    result = step(run, *arguments)
    if run.state.nimg == 104:
        next(run.state.discriminator.parameters()).data.view(-1)[0] = float("inf")
    return result

loop.step = spoiled
runpy.run_path({script!r}, run_name="__main__")
"""


def test_a_run_that_has_diverged_ends_at_its_last_good_checkpoint(small_shards: Path, tmp_path: Path):
    run_dir, entry = tmp_path / "run", tmp_path / "entry.py"
    entry.write_text(DIVERGING.format(script=str(TRAIN)))
    diverged = finished(train_command(small_shards, run_dir, "run.kimg=1000", entry=entry))
    assert diverged.returncode == 2, diverged.stdout + diverged.stderr
    assert "error: training has diverged" in diverged.stderr
    assert "at 0.16 kimg" in diverged.stderr  # the checkpoint, which is examined in the background
    assert "in d.safetensors" in diverged.stderr
    assert newest_whole_checkpoint(run_dir) == (80, [])
    assert read_status(run_dir).state == "diverged"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["nimg-00000080"]
