"""The checkpoint with the best score is kept, also where it is found while the run removes checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from saving import prune
from tiny_states import save_small

from stylegan_dist.errors import InputError
from stylegan_dist.training import best, checkpoint
from stylegan_dist.training.best import read_best, remember_best
from stylegan_dist.training.checkpoint import list_checkpoints, newest_whole_checkpoint, put_aside


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for nimg in (100, 200, 300, 400):
        save_small(tmp_path, nimg)
    return tmp_path


def left(run: Path) -> list[int]:
    return [nimg for nimg, _ in list_checkpoints(run)]


def test_the_best_is_kept(run):
    assert read_best(run) is None
    assert remember_best(run, "fid", 200, 5.0)
    assert vars(read_best(run)) == {"metric": "fid", "nimg": 200, "value": 5.0, "settings": ""}
    assert prune(run, 1, 0) == []
    assert left(run) == [200, 400]
    assert newest_whole_checkpoint(run) == (400, [])
    assert remember_best(run, "fid", 400, 4.0)
    save_small(run, 500)
    prune(run, 1, 0)
    assert left(run) == [400, 500]
    assert not list((run / "checkpoints").glob("*.tmp"))


def test_a_run_that_goes_back_forgets_a_score_of_the_branch_that_it_leaves(run):
    """Other weights will have seen as many images."""
    remember_best(run, "fid", 200, 5.0)
    put_aside(run, beyond=200)
    assert read_best(run).nimg == 200
    put_aside(run, beyond=100)
    assert read_best(run) is None
    save_small(run, 200)
    assert remember_best(run, "fid", 200, 7.0)


@pytest.mark.parametrize(("nimg", "value", "remembered"), [
    (300, 4.0, True), (300, math.nan, False), (300, -math.inf, False), (350, 1.0, False),
])
def test_what_can_be_the_best(nimg, value, remembered, run):
    assert remember_best(run, "fid", 200, 5.0)
    assert remember_best(run, "fid", nimg, value) == remembered
    assert read_best(run).nimg == (nimg if remembered else 200)


@pytest.mark.parametrize("content", [
    "{", "[]", '{"metric": "fid"}', '{"metric": "fid", "nimg": "300", "value": 1}', "x" * 100_000,
])
def test_a_damaged_file_is_a_warning(content, run, monkeypatch):
    monkeypatch.setattr(best, "_told", set())
    (run / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(InputError, match=r"best\.json is damaged"):
        read_best(run)
    news = prune(run, 2, 0)
    assert len(news) == 1
    assert "best.json is damaged" in news[0]
    assert left(run) == [300, 400]
    save_small(run, 500)
    assert prune(run, 2, 0) == []  # it was told
    assert remember_best(run, "fid", 400, 5.0)
    assert read_best(run).nimg == 400


def test_a_folder_in_its_place(run, monkeypatch):
    monkeypatch.setattr(best, "_told", set())
    (run / "checkpoints" / "best.json").mkdir()
    assert "best.json" in prune(run, 1, 0)[0]
    assert left(run) == [400]


@pytest.mark.parametrize("moment", ["before", "hidden", "removed"])
def test_found_while_it_is_removed(moment, run, monkeypatch):
    """Whatever the order: if it counts as the best, it stays."""
    found = []
    rename, delete = Path.rename, checkpoint._delete

    def score() -> None:
        monkeypatch.undo()
        found.append(remember_best(run, "fid", 100, 1.0))

    def renaming(path, target):
        if moment == "before":
            score()
        result = rename(path, target)
        if moment == "hidden":
            score()
        return result

    def deleting(hidden):
        if moment == "removed":
            score()
        delete(hidden)

    monkeypatch.setattr(Path, "rename", renaming)
    monkeypatch.setattr(checkpoint, "_delete", deleting)
    prune(run, 3, 0)
    assert found == [moment == "before"]
    assert (left(run) == [100, 200, 300, 400]) == found[0]
    assert (read_best(run) is not None) == found[0]


def test_written_between_two_looks(run, monkeypatch):
    """best.json is there when the run reads it, and the checkpoint is hidden when the other process looks for it."""
    look, looks = checkpoint.is_best, []

    def writing(run_dir, nimg, news):
        looks.append(nimg)
        if len(looks) == 2:
            (run / "checkpoints" / "best.json").write_text(json.dumps({"metric": "fid", "nimg": 100, "value": 1.0}))
        return look(run_dir, nimg, news)

    monkeypatch.setattr(checkpoint, "is_best", writing)
    prune(run, 3, 0)
    assert left(run) == [100, 200, 300, 400]
    assert looks == [100, 100]
    assert not list((run / "checkpoints").glob(".*"))
