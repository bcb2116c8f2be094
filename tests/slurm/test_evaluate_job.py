"""Scoring a run as a job of its own, with slurm/evaluate.sbatch."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import ROOT, TIMEOUT, trained

from stylegan_dist.evaluation.record import read_evaluations

pytestmark = pytest.mark.full


def test_a_job_that_watches_a_finished_run(cluster, small_shards: Path, tmp_path: Path):
    trained(small_shards, tmp_path / "run", "run.kimg=0.08")
    number = cluster.submit(
        f"--output={tmp_path}/log", "--export=ALL,OMP_NUM_THREADS=1", ROOT / "slurm/evaluate.sbatch", tmp_path / "run",
        "--watch", "--count", "8", "--metrics", "kid", "--device", "cpu", cwd=ROOT)
    cluster.wait_for(number, {"COMPLETED"}, TIMEOUT)
    (found,) = read_evaluations(tmp_path / "run")
    assert (found.nimg, list(found.scores)) == (80, ["kid_efflite0"])
    assert "best so far: kimg 0.08" in (tmp_path / "log").read_text()
