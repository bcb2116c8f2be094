"""Whole runs that begin with the weights of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import TINY, trained
from safetensors.torch import load_file
from saving import assert_equal_tensors

from stylegan_dist.cli import main
from stylegan_dist.report.reading import read_run
from stylegan_dist.report.sections import facts

pytestmark = pytest.mark.slow
FROZEN = {f"{layer}.{kind}" for layer in ("fromrgb", "b8.conv0", "b8.conv1") for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def origin(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("origin") / "run"
    trained(small_shards, run, "run.kimg=0.08")
    return run


def checkpoint(run: Path, nimg: int, file: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/nimg-{nimg:08d}/{file}.safetensors")


def test_it_continues_without_its_origin(origin: Path, small_shards: Path, tmp_path: Path):
    """Two ranks, bit for bit, with layers that never move; and its origin stays known."""
    settings = (f"run.init_from={origin}", "run.seed=1", "discriminator.freeze_layers=3")
    trained(small_shards, tmp_path / "straight", "run.kimg=0.16", *settings, processes=2)
    run, aside = tmp_path / "parts", origin.with_name("aside")
    first = trained(small_shards, run, "run.kimg=0.08", *settings, processes=2).stdout
    origin.rename(aside)
    try:
        second = trained(small_shards, run, "run.kimg=0.16", *settings, processes=2).stdout
    finally:
        aside.rename(origin)
    assert_equal_tensors(*(folder / "checkpoints/nimg-00000160" for folder in (tmp_path / "straight", run)))
    before, after = checkpoint(origin, 80, "d"), checkpoint(run, 160, "d")
    assert {key for key in before if torch.equal(before[key], after[key])} == FROZEN
    assert not FROZEN & {name.rpartition(".")[0] for name in checkpoint(run, 160, "optimizer_d")}

    recorded = json.loads((run / "checkpoints/nimg-00000160/state.json").read_text())["origin"]
    assert recorded == json.loads((run / "origin.json").read_text())
    assert (recorded["path"], recorded["nimg"]) == (str(origin / "checkpoints/nimg-00000080"), 80)
    line = f"{recorded['path']}, 0.08 kimg, SHA-256 {recorded['sha256'][:12]}"
    assert all(line in text for text in (first, second))
    assert "3 layers frozen" in first
    with open(run / "log.txt", "a") as log:  # as a slow rank is told
        log.write("2026-01-01 00:00:00    rank 0     vm     291.0 ms\n")
    shown = dict(facts(read_run(run)))
    assert shown["transfer"].startswith(line)
    assert "loaded" in shown["transfer"]


def test_nothing_is_made_and_nothing_changes_after_an_error(origin: Path, small_shards: Path, tmp_path: Path, capsys):
    def error(run: Path, *overrides: str) -> str:
        capsys.readouterr()
        assert main(["train", *TINY, f"data.shards={small_shards}", f"run.dir={run}", *overrides]) == 2
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ")
        assert "\n" not in text
        return text

    assert "nowhere is not there" in error(tmp_path / "new", f"run.init_from={tmp_path}/nowhere")
    assert "run.init_strict=false" in error(tmp_path / "new", f"run.init_from={origin}", "generator.channel_max=8")
    assert not (tmp_path / "new").exists()
    assert "was trained with run.init_from=, not" in error(origin, f"run.init_from={tmp_path}", "run.kimg=1")
