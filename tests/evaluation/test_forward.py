"""Scores reach W&B and TensorBoard, whoever is there to send them."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import add_scores
from launching import trained
from metrics_reader import read
from small_features import small_features
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_reader import read_offline_runs

from stylegan_dist.cli import main
from stylegan_dist.evaluation import evaluate as evaluating
from stylegan_dist.evaluation import reals
from stylegan_dist.evaluation.forward import forward_results
from stylegan_dist.evaluation.record import read_evaluations
from stylegan_dist.training.lease import Lease

TRACKED = ("monitor.wandb=offline", "monitor.tensorboard=true")


@pytest.mark.full
def test_scores_of_a_run_that_ended_and_of_one_that_goes_on(small_shards: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: small_features(device))
    monkeypatch.setattr(reals, "user_folder", lambda name: tmp_path)
    run = tmp_path / "run"
    trained(small_shards, run, "run.kimg=0.16", *TRACKED)
    assert main(["evaluate", str(run), "--count", "40", "--device", "cpu", "--all", "--metrics", "kid"]) == 0
    expected = {one.nimg: pytest.approx(one.scores["kid_small"].value) for one in read_evaluations(run)}
    assert set(expected) == {80, 160}

    def shown() -> tuple[dict, dict]:
        """Scores in the newest file of W&B, and in TensorBoard, named after their count, which is not that of the run."""
        newest, events = read_offline_runs(run)[-1], EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
        assert newest.values("loss/g_main") == {
            record["nimg"]: pytest.approx(record["loss/g_main"]) for record in read(run / "metrics.jsonl")}
        rows = [(row["eval/nimg"], row["eval/kid_small_40"]) for row in newest.history if "eval/kid_small_40" in row]
        points = [(event.step, event.value) for event in events.Scalars("eval/kid_small_40")]
        assert len(dict(rows)) == len(rows)
        assert len(dict(points)) == len(points)
        return dict(rows), dict(points)

    assert shown() == (expected, expected)
    starts = len(read_offline_runs(run))
    assert main(["evaluate", str(run), "--count", "40", "--device", "cpu", "--metrics", "kid"]) == 0  # nothing new
    assert len(read_offline_runs(run)) == starts

    trained(small_shards, run, "run.kimg=0.24", *TRACKED)
    assert shown() == (expected, expected)


def test_a_training_that_goes_on_is_left_alone(small_shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    trained(small_shards, run, "run.kimg=0.08", "monitor.tensorboard=true")
    add_scores(run, 80, fd=1.0)
    before, said = sorted((run / "tensorboard").iterdir()), []
    lease = Lease(run)
    try:
        forward_results(run, said.append)
        assert sorted((run / "tensorboard").iterdir()) == before
    finally:
        lease.release("finished")
    forward_results(run, said.append)
    assert len(list((run / "tensorboard").iterdir())) > len(before)
    assert said == []
