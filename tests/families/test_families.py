"""A family is a folder: a toy, which nothing else knows, is trained, continued, drawn with, and refused where it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT
from PIL import Image
from safetensors.torch import load_file
from saving import assert_equal_tensors

from stylegan_dist import families
from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.objective import game

TOY = ("generator.family=toy", "run.batch=8", "run.device=cpu", "run.threads=1", "data.workers=0", "monitor.wandb=disabled",
       "monitor.tick_kimg=0.008", "checkpoint.every_kimg=0.04", "monitor.grid_columns=2", "monitor.grid_rows=2",
       "loss.penalty_interval=2", "run.batch_gpu=2")


@pytest.fixture
def toy(monkeypatch):
    """The toy is one of the families."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent)])
    yield
    for name in [name for name in sys.modules if name.startswith("stylegan_dist.families.toy")]:
        del sys.modules[name]


def train(shards: Path, run_dir: Path, kimg: float, *overrides: str) -> int:
    return main(["train", *TOY, f"data.shards={shards}", f"run.dir={run_dir}", f"run.kimg={kimg}", *overrides])


def test_a_toy_in_one_folder_is_trained_continued_and_drawn_with(toy, small_shards, tmp_path, capsys):
    assert train(small_shards, tmp_path / "whole", 0.08) == 0
    for kimg in (0.048, 0.08):
        assert train(small_shards, tmp_path / "parts", kimg) == 0
    last = "checkpoints/nimg-00000080"
    assert_equal_tensors(tmp_path / "whole" / last, tmp_path / "parts" / last)
    assert load_file(tmp_path / "whole" / last / "g.safetensors")["seen"] == 10
    states = [json.loads((tmp_path / run / last / "state.json").read_text()) for run in ("whole", "parts")]
    assert states[0]["brightness"] == states[1]["brightness"] != 0
    records = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["toy/brightness"] == pytest.approx(states[0]["brightness"])
    assert {"loss/g_main", "loss/r1"} <= records[-2].keys()

    assert main(["generate", str(tmp_path / "whole"), "--seeds", "0-3", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    drawn = [np.array(Image.open(path)) for path in sorted((tmp_path / "out").glob("seed*.png"))]
    assert [image.shape for image in drawn] == [(8, 8, 3)] * 4
    assert not np.array_equal(drawn[0], drawn[3])

    capsys.readouterr()
    assert train(small_shards, tmp_path / "whole", 0.16, "generator.family=stylegan2", "run.batch_gpu=8") == 2
    assert "generator.family" in capsys.readouterr().err


def test_a_toy_that_diverges_goes_back_with_other_draws(toy, small_shards, tmp_path, monkeypatch):
    plain = game.Objective.d_main

    def spoiled(self, real):
        result = plain(self, real)
        return result._replace(share=result.share * torch.nan) if self.seed == 0 and int(real.index[0]) >= 48 else result

    monkeypatch.setattr(game.Objective, "d_main", spoiled)
    assert train(small_shards, tmp_path / "run", 0.08, "guard.limit=1") == 0
    state = json.loads((tmp_path / "run/checkpoints/nimg-00000080/state.json").read_text())
    assert [(one["at"], one["to"]) for one in state["rollbacks"]] == [(72, 40)]
    assert load_file(tmp_path / "run/checkpoints/nimg-00000080/g.safetensors")["seen"] == 10


def test_a_plan_for_the_toy(toy, small_shards, tmp_path, capsys):
    assert main(["train", *TOY, f"data.shards={small_shards}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "latent: 4" in text
    assert "linear" in text


def test_knobs_of_another_family_are_refused_by_name(toy):
    assert load_config(None, ["generator.latent=7", "generator.family=toy"]).generator.latent == 7
    with pytest.raises(InputError, match=r"generator\.z_dim"):
        load_config(None, ["generator.family=toy", "generator.z_dim=8"])
    with pytest.raises(InputError, match=r"generator\.latent"):
        load_config(None, ["generator.latent=7"])


def test_a_family_that_is_not_there():
    with pytest.raises(InputError, match=r"generator\.family='toys'.*stylegan2"):
        load_config(None, ["generator.family=toys"])


def test_configurations_need_no_pytorch():
    code = "import sys; from stylegan_dist.config import load_config; load_config(None); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)
