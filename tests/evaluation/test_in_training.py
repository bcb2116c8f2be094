"""Scores inside a training: those that are computed beside it, on any number of ranks, and the same weights as without."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from launching import ROOT, TIMEOUT, direct_environment, finished, started, train_command, trained, wait_for
from saving import FILES

from stylegan_dist.cli import main
from stylegan_dist.evaluation.record import NAME, read_evaluations
from stylegan_dist.files import file_digest
from stylegan_dist.training.best import read_best

EVALUATE = ROOT / "launch/evaluate.py"


@pytest.fixture(scope="module")
def options(labelled_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    network = tmp_path_factory.mktemp("network") / "own"
    assert main(["train-features", str(labelled_shards), str(network), "--kimg", "0.2", "--device", "cpu"]) == 0
    return ["evaluate.every_kimg=0.08", f"evaluate.network={network}", "evaluate.count=70", "run.kimg=0.16",
            "evaluate.metrics=kid,fid,pr,classes,ppl,accuracy"]


@pytest.fixture(scope="module")
def by_two(labelled_shards: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two ranks, which score two checkpoints."""
    run = tmp_path_factory.mktemp("scored") / "run"
    out = trained(labelled_shards, run, *options, processes=2).stdout
    assert out.count("best so far") == 2
    assert "classes with the largest Fréchet distances: " in out
    return run


def numbers(run: Path) -> list[tuple]:
    return sorted((one.nimg, one.digest, json.dumps({name: vars(score) for name, score in one.scores.items()}), one.by_class)
                  for one in read_evaluations(run))


def test_equal_to_those_beside_it_on_one_and_two_ranks(by_two: Path, tmp_path: Path):
    inside = numbers(by_two)
    assert [row[0] for row in inside] == [80, 160]
    shutil.copytree(by_two, tmp_path / "run")
    for world in (1, 2):
        (tmp_path / "run" / NAME).unlink()
        # On one core each, as the training was on one thread: several threads add in another order.
        command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, str(EVALUATE),
                   str(tmp_path / "run"), "--all", "--device", "cpu"]
        with contextlib.ExitStack() as stack:
            ranks = [stack.enter_context(started(command, **environment))
                     for environment in ([{}] if world == 1 else direct_environment(world))]
            said = [rank.communicate(timeout=TIMEOUT) for rank in ranks]
        assert not any(rank.returncode for rank in ranks), said
        assert sum(out.count("best so far") for out, _ in said) == 1
        assert numbers(tmp_path / "run") == inside
    assert read_best(tmp_path / "run") == read_best(by_two)


def test_training_is_the_same_without(by_two: Path, options: list[str], labelled_shards: Path, tmp_path: Path):
    trained(labelled_shards, tmp_path / "run", *options, "evaluate.every_kimg=0", processes=2)
    for name in FILES:
        file = Path("checkpoints/nimg-00000160", f"{name}.safetensors")
        assert file_digest(tmp_path / "run" / file) == file_digest(by_two / file)
    assert not (tmp_path / "run" / NAME).exists()


def test_scores_that_were_cut_off_are_computed_when_the_run_continues(by_two: Path, options: list[str], labelled_shards: Path,
                                                                      tmp_path: Path):
    shutil.copytree(by_two, tmp_path / "run")
    lines = (by_two / NAME).read_text().splitlines(keepends=True)
    (tmp_path / "run" / NAME).write_text(lines[0])  # as if it had been killed right before the second one was written
    trained(labelled_shards, tmp_path / "run", *options, "run.kimg=0.24")
    assert [row[0] for row in numbers(tmp_path / "run")] == [80, 160, 240]
    assert numbers(tmp_path / "run")[:2] == numbers(by_two)


@pytest.mark.parametrize(("wrong", "said"), [
    ("evaluate.metrics=fvd", "evaluate.metrics=fvd: there is no fvd"),
    ("evaluate.network=/nowhere", "/nowhere"),
])
def test_what_cannot_be_scored_is_refused_before_the_first_step(wrong: str, said: str, options: list[str],
                                                                labelled_shards: Path, tmp_path: Path):
    result = finished(train_command(labelled_shards, tmp_path / "run", *options, wrong))
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "run/checkpoints").glob("nimg-*"))


def test_a_request_to_stop_does_not_wait_for_scores(options: list[str], labelled_shards: Path, tmp_path: Path):
    """A million samples would take minutes; the stop comes before the first score, and the state is saved."""
    command = train_command(labelled_shards, tmp_path / "run", *options, "evaluate.count=1000000")
    with started(command) as process:
        wait_for(tmp_path / "run/checkpoints/nimg-00000080", process)
        process.terminate()
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75, out + err
    assert "stopped on request at 0.0" in out
    assert not (tmp_path / "run" / NAME).exists()
