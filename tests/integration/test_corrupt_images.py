"""Corrupt images while training: replaced, counted, named, whoever reads them; too many end the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import TINY, trained

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index, load_offsets


@pytest.fixture
def shards(labelled_shards: Path, tmp_path: Path) -> tuple[Path, str]:
    """60 images of which one is corrupt, and where that is."""
    folder = Path(shutil.copytree(labelled_shards, tmp_path / "shards"))
    shard = load_index(folder).shards[2]
    offset = int(load_offsets(shard)[4][0])
    with open(folder / shard.name, "r+b") as file:
        file.seek(offset)
        file.write(b"damage")
    return folder, f"{folder / shard.name}, sample 4 at byte {offset}: not an image"


def records(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def train(folder: Path, run_dir: Path, kimg: float, *overrides: str) -> int:
    return main(["train", *TINY, f"data.shards={folder}", f"run.dir={run_dir}", f"run.kimg={kimg}", *overrides])


@pytest.mark.slow
def test_counted_and_named_on_any_number_of_ranks_and_after_a_restart(shards, tmp_path):
    folder, place = shards
    few = "data.max_bad_fraction=0.05"
    assert train(folder, tmp_path / "whole", 0.128, few) == 0
    for kimg in (0.064, 0.128):
        assert train(folder, tmp_path / "parts", kimg, few) == 0
    trained(folder, tmp_path / "ranks", "run.kimg=0.128", few, "data.workers=1", processes=2)
    whole = [record["data/replaced"] for record in records(tmp_path / "whole")]
    assert whole[-1] in (2, 3), "two epochs of 60, and 8 images more"
    assert whole == sorted(whole)
    for name in ("whole", "parts", "ranks"):
        assert [record["data/replaced"] for record in records(tmp_path / name)] == whole
        assert (tmp_path / name / "log.txt").read_text().count(place) == whole[-1]


def test_too_many_stop_the_run_and_a_larger_share_continues_it(shards, tmp_path, capsys):
    folder, place = shards
    run_dir = tmp_path / "run"
    assert train(folder, run_dir, 0.064) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert place in error[0]
    assert "data.max_bad_fraction=0.001 of 6" in error[0]
    assert train(folder, run_dir, 0.064, "data.max_bad_fraction=0.5") == 0


def test_waiting_for_data_is_told_with_its_cause(labelled_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("stylegan_dist.training.loop.WAIT_ALLOWED", 0.0)
    assert train(labelled_shards, tmp_path / "run", 0.032) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("waiting for data took") == 1
    assert "on rank 0; the cause is " in log
    monkeypatch.setattr("stylegan_dist.training.loop.WAIT_ALLOWED", 1.0)
    assert train(labelled_shards, tmp_path / "quiet", 0.032) == 0
    assert "waiting for data" not in (tmp_path / "quiet" / "log.txt").read_text()
