"""What the tests of families have in common: an index without data, batches, and a run that is continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import reference
import torch
from saving import assert_equal_tensors
from torch import Tensor

from stylegan_dist.cli import main
from stylegan_dist.config import Config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator


def index_of(resolution: int, classes: int = 0, channels: int = 3, encoding: str = "png", **more: Any) -> DatasetIndex:
    """Of a set that is nowhere, with 8 samples of each class."""
    names = [f"class{i}" for i in range(classes)] if classes else None
    shard = Shard("a.tar", 8 * max(classes, 1), 1, "0", "a.npy", "0")
    return DatasetIndex(resolution, channels, encoding, names, [8] * classes if classes else None, [shard], **more)


def batch_of(samples: Tensor, classes: int = 0) -> MicroBatch:
    """Samples 100, 101, ... of a run."""
    return MicroBatch(samples, torch.arange(len(samples)) % classes if classes else None, torch.arange(100, 100 + len(samples)))


def with_random_networks(objective: Callable[..., Any], config: Config, shape: SampleShape) -> Any:
    """An objective of networks with random weights, in float64."""
    device, classes = torch.device("cpu"), shape.num_classes
    g, d = build_generator(config, shape, device), build_discriminator(config, shape, device)
    for seed, network in enumerate((g, d)):
        reference.randomize(network, seed)
        for p in network.parameters():
            p.data /= p[0].numel() ** 0.5
    return objective(config, g.double(), d.double(), torch.tensor([8] * classes) if classes else None)


def check_continued(folder: Path, overrides: Sequence[str], kimg: tuple[float, float]) -> Path:
    """Train FOLDER/whole at once, and FOLDER/parts with a stop between: all tensors must be equal. Returns the last checkpoint
    of the first."""
    def train(name: str, until: float, *more: str) -> Path:
        assert main(["train", *overrides, f"run.dir={folder / name}", f"run.kimg={until}", *more]) == 0
        return folder / name / f"checkpoints/nimg-{round(1000 * until):08d}"

    whole = train("whole", kimg[1], "monitor.pictures_kimg=1")
    _, parts = (train("parts", until) for until in kimg)
    assert_equal_tensors(whole, parts)
    return whole
