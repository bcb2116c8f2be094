"""Requests to stop that are no signals, and what a batch script is told of how a run has ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from launching import TIMEOUT, started, train_command, trained, wait_for, wait_until
from metrics_reader import read

from stylegan_dist.outcome import VARIABLE, leave_outcome
from stylegan_dist.training.interruption import EMPTY_LOOKS, StopRequest, forget_requests
from stylegan_dist.training.saved import load_state


@pytest.mark.parametrize(("text", "then"), [("requeue\n", "requeue"), ("hold", "hold"), ("please", "end")])
def test_a_file_says_what_becomes_of_the_job(text, then, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stylegan_dist.training.interruption.LOOK_SECONDS", 0.0)
    with StopRequest(tmp_path) as stop, StopRequest() as elsewhere:
        assert not stop.requested
        (tmp_path / "stop").write_text(text)
        assert stop.requested
        assert (stop.then, str(tmp_path / "stop") in stop.reason) == (then, True)
        assert not elsewhere.requested


def test_an_empty_file_may_get_its_word_a_moment_later(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stylegan_dist.training.interruption.LOOK_SECONDS", 0.0)
    with StopRequest(tmp_path) as stop, StopRequest(tmp_path) as other:
        (tmp_path / "stop").touch()
        assert not stop.requested
        assert [other.requested for _ in range(EMPTY_LOOKS + 1)] == [False] * EMPTY_LOOKS + [True]
        (tmp_path / "stop").write_text("requeue\n")
        assert stop.requested
    assert (stop.then, other.then) == ("requeue", "end")


def test_a_file_of_an_earlier_start_is_none_unless_a_script_has_made_it_for_this_one(tmp_path: Path, monkeypatch):
    (tmp_path / "stop").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "outcome"))
    forget_requests(tmp_path)
    assert (tmp_path / "stop").exists()
    monkeypatch.delenv(VARIABLE)
    forget_requests(tmp_path)
    assert not (tmp_path / "stop").exists()


def test_the_time_is_over():
    with StopRequest(until=time.monotonic() + 3600) as early, StopRequest(until=time.monotonic()) as late:
        assert not early.requested
        assert late.requested
        assert "run.max_hours" in late.reason


def test_the_first_rank_that_tells_an_outcome_is_right(tmp_path: Path, monkeypatch):
    leave_outcome("finished")  # nobody wants to know
    monkeypatch.setenv(VARIABLE, str(tmp_path / "outcome"))
    monkeypatch.setenv("MY_TOKEN", "a-secret-of-mine")
    leave_outcome("failed", "a-secret-of-mine is wrong\nsecond line")
    leave_outcome("finished")
    assert (tmp_path / "outcome").read_text() == "failed\n*** is wrong\n"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_file_stops_a_run_which_then_goes_on(processes, small_shards: Path, tmp_path: Path):
    run, outcome = tmp_path / "run", tmp_path / "outcome"
    command = train_command(small_shards, run, "run.kimg=1000", processes=processes)
    with started(command, forked=processes == 1, **{VARIABLE: str(outcome)}) as process:
        wait_for(run / "checkpoints/nimg-00000080/manifest.json", process)
        (run / "stop").write_text("hold\n")
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert outcome.read_text().startswith("stopped hold\n")
    assert not (run / "stop").exists()
    nimg = max(int(folder.name.removeprefix("nimg-")) for folder in (run / "checkpoints").iterdir())
    assert load_state(run / f"checkpoints/nimg-{nimg:08d}").nimg == nimg
    trained(small_shards, run, f"run.kimg={nimg / 1000 + 0.08:.3f}", processes=processes)
    assert [record["nimg"] for record in read(run / "metrics.jsonl")] == list(range(8, nimg + 81, 8))


@pytest.mark.slow
def test_how_it_ended_is_told(small_shards: Path, tmp_path: Path):
    def outcome_of(name: str, *overrides: str) -> str:
        command = train_command(small_shards, tmp_path / "run", *overrides)
        with started(command, forked=True, **{VARIABLE: str(tmp_path / name)}) as process:
            process.communicate(timeout=TIMEOUT)
        wait_until((tmp_path / name).exists)
        return (tmp_path / name).read_text()

    assert outcome_of("a", "run.kimg=1000", "run.max_hours=0.0000001").startswith("stopped requeue\n")
    assert outcome_of("b", "run.kimg=0.016") == "finished\n\n"
    assert outcome_of("c", "run.seed=1").startswith("failed\n")
    assert "run.seed" in (tmp_path / "c").read_text()
