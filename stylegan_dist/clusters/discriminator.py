"""The features that the discriminator of a run has learned, as a feature network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_dist.errors import InputError
from stylegan_dist.features.inputs import OwnSamples
from stylegan_dist.features.layers import Maps, Trunk
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.files import file_digest
from stylegan_dist.kinds import declared
from stylegan_dist.training.checkpoint import checkpoint_folder
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import MANIFEST, load_state
from stylegan_dist.training.snapshot import Which, find_checkpoint, load_discriminator


class _Penultimate(Trunk):
    """What the last layer of a discriminator sees."""

    discriminator: Any

    def __init__(self, discriminator: nn.Module, dimensions: int):
        super().__init__()
        self.discriminator, self.dimensions = discriminator, dimensions

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        return self.discriminator.features(x)


def discriminator_features(run_dir: Path, device: torch.device, which: Which = "newest") -> FeatureNetwork:
    """The features of the discriminator of a whole checkpoint, in full precision, of samples like those of its data.

    Its name is `run_` with the first digits of the checkpoint's SHA-256.

    Raises:
        InputError: not a run, no such checkpoint, one that is damaged, or a family whose discriminators have no features.
    """
    nimg = find_checkpoint(run_dir, which)
    folder = checkpoint_folder(run_dir, nimg)
    data, digest = load_state(folder).data, file_digest(folder / MANIFEST)
    network: Any = load_discriminator(run_dir, device, nimg)
    if not hasattr(network, "features"):
        raise InputError(f"the discriminators of the family {read_run_config(run_dir).generator.family} have no features: "
                         "give --features a network")
    with torch.no_grad():
        example = network.features(torch.zeros(1, data.channels, data.resolution, data.resolution, device=device))
    samples = OwnSamples(declared(data.array), data.resolution, data.channels)
    return FeatureNetwork(f"run_{digest[:8]}", digest, _Penultimate(network, example.shape[1]), samples, device)
