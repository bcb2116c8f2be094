"""Trainings under several engines, started from a test, and how they differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from launching import ROOT, TINY, finished
from safetensors.torch import load_file

# A larger eps keeps different orders of sums comparable, see test_resume.py; and small steps keep small what it
# does if a rounding error carries one of the few features of these networks over the kink of its leaky ReLU.
CALM = ("optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=1e-4", "optim.d.lr=1e-4")
BATCH = 16
NETWORKS = ("g", "d", "g_ema")
OPTIMIZERS = ("optimizer_g", "optimizer_d")


class Runs:
    """Cases that have been trained, by name."""

    def __init__(self, folder: Path, shards: Path, steps: int, batch: int = BATCH):
        self.folder, self.shards, self.steps, self.batch = folder, shards, steps, batch

    def case(self, name: str, engine: str, *overrides: str, steps: int | None = None, start: Path | None = None,
             tiny: Sequence[str] = TINY, **more: object) -> dict:
        return {
            "engine": engine, "steps": steps or self.steps, "out": str(self.folder / name), "start": start and str(start),
            "overrides": [*tiny, *CALM, f"run.batch={self.batch}", f"data.shards={self.shards}", *overrides], **more,
        }

    def train(self, launches: list[tuple[int, list[dict]]]) -> None:
        """Cases on so many ranks each."""
        path = self.folder / "launches.json"
        path.write_text(json.dumps(launches))
        script = ROOT / "tests/helpers/engine_cases.py"
        result = finished([sys.executable, str(script), str(path)], timeout=7000, DS_ACCELERATOR="cpu")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]

    def checkpoint(self, name: str) -> Path:
        return max((self.folder / name / "checkpoints").iterdir())

    def facts(self, name: str) -> dict:
        return json.loads((self.checkpoint(name) / "state.json").read_text())


def tensors(folder: Path, file: str) -> dict[str, torch.Tensor]:
    """Of a file, or of its parts."""
    paths = sorted(folder.glob(f"{file}.safetensors")) or sorted(folder.glob(f"{file}-*.safetensors"))
    return {key: value for path in paths for key, value in load_file(path).items()}


def difference(one: Path, other: Path, files: Sequence[str] = NETWORKS, floor: float = 1.0) -> float:
    """The largest difference of any value, relative to the largest of its tensor, or to `floor` if that is smaller.

    1 is the size of weights and activations. Biases and noise strengths start at zero, and most terms of their
    gradients cancel: compared with their own size after a few steps, rounding is large.
    """
    worst = 0.0
    for file in files:
        a, b = tensors(one, file), tensors(other, file)
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].shape == b[key].shape
            worst = max(worst, float((a[key] - b[key]).abs().max()) / max(float(a[key].abs().max()), floor))
    return worst
