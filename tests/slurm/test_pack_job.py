"""The array job that packs a set: the same bytes as one command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".source"}


@pytest.fixture(autouse=True)
def program(cluster, tmp_path, monkeypatch) -> None:
    """The `stylegan-dist` of this project, which a job finds in PATH."""
    path = tmp_path / "bin" / "stylegan-dist"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m stylegan_dist.cli "$@"\n')
    path.chmod(0o755)
    monkeypatch.setitem(cluster.environment, "STYLEGAN_DIST_HOME", str(ROOT))
    monkeypatch.setitem(cluster.environment, "PATH", f"{path.parent}:{os.environ['PATH']}")


def test_an_array_of_three_packs_the_same_bytes(cluster, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i:03d}.png")

    number = cluster.submit("--array=5-7", "--cpus-per-task=1", ROOT / "slurm" / "pack.sbatch", "images", "set",
                            "--resolution", "16", "--samples-per-shard", "9", cwd=tmp_path)
    for task in (5, 6, 7):
        state = cluster.wait_for(f"{number}_{task}", seconds=240)["JobState"]
        assert state == "COMPLETED", "".join(log.read_text() for log in tmp_path.glob("*.log"))
    pack(tmp_path / "images", tmp_path / "plain", PackOptions(ImageOptions(16), samples_per_shard=9, workers=1))
    assert contents(tmp_path / "set") == contents(tmp_path / "plain")
    assert not list(tmp_path.glob("set.parts-*"))


def test_a_task_that_fails_says_how_to_go_on(cluster, tmp_path):
    number = cluster.submit("--array=1-1", "--cpus-per-task=1", ROOT / "slurm" / "pack.sbatch", "nothing", "set",
                            "--resolution", "16", cwd=tmp_path)
    assert cluster.wait_for(f"{number}_1", seconds=120)["JobState"] == "FAILED"
    assert "submit the same array again" in next(tmp_path.glob("pack-*.log")).read_text()
