"""Corrupt images while training: replaced, counted, named, whoever reads them; too many end the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from launching import TINY, trained
from servers import http_server
from servers import slow as slowly

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.kinds import image


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


def train(folder: Path | str, run_dir: Path, kimg: float, *overrides: str) -> int:
    return main(["train", *TINY, f"data.shards={folder}", f"run.dir={run_dir}", f"run.kimg={kimg}", "data.verify=never",
                 *overrides])


@pytest.mark.full
@pytest.mark.slow
def test_counted_and_named_on_any_number_of_ranks_and_after_a_restart(shards, tmp_path):
    folder, place = shards
    few = "data.max_bad_fraction=0.05"
    assert train(folder, tmp_path / "whole", 0.128, few) == 0
    for kimg in (0.064, 0.128):
        assert train(folder, tmp_path / "parts", kimg, few) == 0
    trained(folder, tmp_path / "ranks", "run.kimg=0.128", few, "data.verify=never", "data.workers=1", processes=2)
    whole = [record["data/replaced"] for record in records(tmp_path / "whole")]
    assert whole[-1] in (2, 3), "two epochs of 60, and 8 images more"
    assert whole == sorted(whole)
    for name in ("whole", "parts", "ranks"):
        assert [record["data/replaced"] for record in records(tmp_path / name)] == whole
        assert (tmp_path / name / "log.txt").read_text().count(place) == whole[-1]


def test_bytes_that_differ_from_the_index_stop_the_run_at_once(shards, tmp_path, capsys):
    """By default, before anything is decoded."""
    folder, place = shards
    assert train(folder, tmp_path / "run", 0.064, "data.max_bad_fraction=0.5", "data.verify=once") == 2
    error = capsys.readouterr().err
    assert f"{place.partition(',')[0]} is damaged" in error
    assert "data.verify=never" in error


def test_too_many_stop_the_run_and_a_larger_share_continues_it(shards, tmp_path, capsys):
    folder, place = shards
    run_dir = tmp_path / "run"
    assert train(folder, run_dir, 0.064) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert place in error[0]
    assert (run_dir / "log.txt").read_text().splitlines()[-1].endswith(error[0])
    assert "data.max_bad_fraction=0.001 of 6" in error[0]
    assert train(folder, run_dir, 0.064, "data.max_bad_fraction=0.5") == 0


@pytest.mark.full
@pytest.mark.parametrize("cause", ["decode", "disk", "network"])
def test_waiting_for_data_is_told_with_its_cause(labelled_shards, tmp_path, monkeypatch, cause):
    """A decoder, a disk and a server that are slow, one at a time."""
    slow = lambda function: lambda *args, **named: time.sleep(0.05) or function(*args, **named)  # noqa: E731
    with contextlib.ExitStack() as stack:
        place, cache = str(labelled_shards), f"data.cache={tmp_path / 'cache'}"
        if cause == "network":
            server = stack.enter_context(http_server(labelled_shards))
            place = server.url
            assert train(place, tmp_path / "run", 0.008, cache) == 0  # it begins with a look at all shards
            shutil.rmtree(tmp_path / "cache")
            server.fault = lambda name, number: slowly
        elif cause == "disk":
            monkeypatch.setattr(os, "pread", slow(os.pread))
        else:
            monkeypatch.setattr(image, "decode_into", slow(image.decode_into))
        monkeypatch.setattr("stylegan_dist.training.events.WAIT_ALLOWED", 0.0)
        monkeypatch.setattr("stylegan_dist.training.events.LEAST_WAIT", 0.0)
        assert train(place, tmp_path / "run", 0.016, cache) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    told = [line for line in log.splitlines() if "waiting for data took" in line]
    assert f"on rank 0; the cause is {cause} (" in told[-1]
    assert len(told) <= 2, "once a start"


@pytest.mark.parametrize(("share", "seconds"), [(1.0, 0.0), (0.0, 1000.0)])
def test_little_waiting_for_data_is_not_told(labelled_shards, tmp_path, monkeypatch, share, seconds):
    monkeypatch.setattr("stylegan_dist.training.events.WAIT_ALLOWED", share)
    monkeypatch.setattr("stylegan_dist.training.events.LEAST_WAIT", seconds)
    assert train(labelled_shards, tmp_path / "quiet", 0.032) == 0
    assert "waiting for data" not in (tmp_path / "quiet" / "log.txt").read_text()
