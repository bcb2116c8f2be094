"""A checkpoint that is waited for, and the pruning of checkpoints, outside of a run; and whether two are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stylegan_dist.config.schema import CheckpointConfig, Config
from stylegan_dist.errors import Diverged, InputError
from stylegan_dist.ranks import ALONE, Ranks
from stylegan_dist.training.checkpoint import Tensors, prune_checkpoints
from stylegan_dist.training.saved import checkpoint_folder
from stylegan_dist.training.saver import Saver

FILES = ("g", "d", "g_ema", "optimizer_g", "optimizer_d")


def assert_equal_tensors(one: Path, other: Path) -> None:
    """All tensors of two checkpoints, to the last bit."""
    for file in FILES:
        a, b = (load_file(folder / f"{file}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), (file, key)


def save_checkpoint(run_dir: Path, nimg: int, tensors: Tensors, state: Mapping[str, Any], ranks: Ranks = ALONE,
                    file_bytes: int = 1 << 30) -> Path:
    """Save one checkpoint, remove none, and raise what a run would tell. All ranks must call it."""
    config = Config()
    config.run.batch, config.checkpoint = 1, CheckpointConfig(keep=1_000_000, file_mib=file_bytes / 2**20)
    saver = Saver(run_dir, ranks, config)
    saver.begin(nimg, tensors, state)
    outcome = saver.wait()
    assert outcome is not None
    if outcome.diverged:
        raise Diverged(outcome.diverged)
    if outcome.failure:
        raise InputError(outcome.failure)
    return checkpoint_folder(run_dir, nimg)


def prune(run_dir: Path, keep: int, archive: int = 0) -> list[str]:
    """What a run does that keeps so many of its checkpoints, all saved at an interval, and one each `archive` images."""
    return prune_checkpoints(run_dir, CheckpointConfig(keep=keep, archive_kimg=archive / 1000, every_kimg=0.001), batch=1)
