"""How far images are from those whose latents are wanted: pixels at several sizes, and features. One number for each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from stylegan_dist.errors import InputError
from stylegan_dist.features.inputs import OwnSamples
from stylegan_dist.features.layers import Maps, Trunk
from stylegan_dist.features.network import FeatureNetwork, between
from stylegan_dist.features.registry import NETWORKS, open_features
from stylegan_dist.latents.trained import Trained
from stylegan_dist.training.snapshot import load_discriminator

OWN = "discriminator"
NONE = "none"
_SIZES = 3                    # of the image at which pixels are compared: whole, 1/2, 1/4
_LEAST = 4                    # pixels of a side


class DiscriminatorTrunk(Trunk):
    """The maps of a discriminator's blocks; features are the means of the last ones.

    A discriminator knows the data of the run, whatever it is, and is in every checkpoint.
    """

    def __init__(self, network: nn.Module, channels: int):
        super().__init__()
        self.network, self.dimensions = network, channels

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        found = self.network.block_maps(x)  # type: ignore[operator]
        if maps is not None:
            maps += found
        return found[-1].mean((2, 3))


def open_loss_features(name: str, trained: Trained) -> FeatureNetwork | None:
    """The feature network of a loss.

    Args:
        name: "discriminator": of the same checkpoint; "none"; or as of `open_features`.
    Raises:
        InputError: there is no such network; it cannot compare what the run makes.
    """
    if name == NONE:
        return None
    shape = trained.shape
    if name != OWN:
        network = open_features(name, trained.device)
        network.check(shape.resolution, shape.channels)
        return network
    judge = load_discriminator(trained.run_dir, trained.device, trained.nimg)
    if not hasattr(judge, "block_maps"):
        raise InputError(f"the discriminator of {trained.run_dir} has no maps to compare: choose another of --features "
                         f"{', '.join(NETWORKS)}, or {NONE}")
    with torch.no_grad():
        example = torch.zeros(1, shape.channels, shape.resolution, shape.resolution, device=trained.device)
        channels = DiscriminatorTrunk(judge, 0)(example).shape[1]
    samples = OwnSamples(trained.kind, shape.resolution, shape.channels)
    return FeatureNetwork(OWN, trained.digest, DiscriminatorTrunk(judge, channels), samples, trained.device)


class Loss:
    """pixels + weight x features, of each image alone.

    Pixels: the mean squared difference, averaged over the whole image, its half and its quarter. Features:
    `FeatureNetwork.distance`. With a mask both look at known pixels alone: in the hole, images are compared with themselves.

    Args:
        targets: float32 [N, C, R, R] in the range of networks.
        missing: bool [1, 1, R, R], or None.
        features: None for none.
        weight: of the features.
    """

    def __init__(self, targets: Tensor, missing: Tensor | None, features: FeatureNetwork | None, weight: float):
        self.targets, self.missing, self.features, self.weight = targets, missing, features, weight
        self._known = None if missing is None else (~missing).float()
        self._directions: Maps | None = None
        if features is not None and missing is None:
            with torch.no_grad():
                self._directions = features.directions(targets)

    def rows(self, rows: Tensor) -> Loss:
        """The loss of other rows: int64 [M], numbers of targets."""
        return Loss(self.targets[rows], self.missing, self.features, self.weight)

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [N] of images [N, C, R, R]; differentiable."""
        loss = self.pixels(images)
        if self.features is not None and self.weight:
            loss = loss + self.weight * self.distance(images)
        return loss

    def pixels(self, images: Tensor) -> Tensor:
        """The part of the pixels, float32 [N]."""
        difference, known = images - self.targets, self._known
        # Black and white are reached by everything beyond, too, because pictures are cut there.
        difference = torch.where(self.targets >= 1, difference.clamp(max=0), difference)
        difference = torch.where(self.targets <= -1, difference.clamp(min=0), difference)
        if known is not None:
            difference = difference * known
        losses = []
        for size in range(_SIZES):
            if size:
                if min(difference.shape[2:]) // 2 < _LEAST:
                    break
                difference = avg_pool2d(difference, 2)
                known = None if known is None else avg_pool2d(known, 2)
            squares = difference.square().mean((1, 2, 3))
            losses.append(squares if known is None else squares / known.mean())
        return torch.stack(losses).mean(0)

    def distance(self, images: Tensor) -> Tensor:
        """The part of the features before it is weighted, float32 [N]; zeros without a network."""
        if self.features is None:
            return images.new_zeros(len(images))
        directions = self._directions
        if directions is None:
            assert self.missing is not None
            directions = self.features.directions(torch.where(self.missing, images.detach(), self.targets))
        return between(self.features.directions(images), directions)
