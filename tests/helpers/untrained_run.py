"""A run that was never trained: tools must work with it all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from saving import save_checkpoint

from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.run_folder import RunFolder
from stylegan_dist.training.state import TrainState

TINY = ["data.shards=somewhere", "generator.z_dim=64", "generator.w_dim=64", "generator.channel_base=2048",
        "generator.channel_max=64", "discriminator.channel_base=64", "discriminator.channel_max=8",
        "discriminator.mapping_layers=1"]

R3GAN = ["data.shards=somewhere", "generator.family=r3gan", "generator.z_dim=16", "generator.class_dim=4",
         "generator.channel_base=256", "generator.channel_max=32"]


def make_run(path: Path, classes: int, channels: int = 3, resolution: int = 32, knobs: Sequence[str] = TINY,
             contrast: float = 1.0) -> Path:
    """A run whose averaged generator has random parameters; nothing was trained.

    Args:
        contrast: multiplies the weights of the colours of StyleGAN2.
    """
    names = [f"class{i}" for i in range(classes)] or None
    index = DatasetIndex(resolution, channels, "png", names, [4] * classes or None, [Shard("a.tar", 8, 1, "x", "a.npy", "y")])
    resolved = resolve(load_config(None, knobs), index)
    state = TrainState(resolved, index, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in state.ema.network.named_parameters():
            if name.endswith(("noise_strength", ".bias")) and ".affine" not in name:
                parameter.normal_(0, 0.3, generator=random)
            if "torgb" in name and ".affine" not in name:
                parameter.mul_(contrast)
        for buffer in state.ema.network.buffers():
            buffer.normal_(generator=random).abs_()  # magnitudes are positive
    state.nimg = 1000
    folder = RunFolder(path)
    folder.save_config(resolved.config)
    save_checkpoint(path, state.nimg, state.tensors(), state.facts())
    folder.close()
    return path
