"""The search for latents: Adam on one latent for each image, or on one for each place of the network (W+).

The schedule is that of Karras et al. 2020, appendix D: the learning rate rises over the first 5 % of the steps and falls over
the last 25 %; noise on the latents falls to nothing over the first 75 %; noise maps are optimised, too, and kept free of
structure. W+ follows Abdal et al. 2019.

Images of a batch do not know of each other: losses, gradients and the state of Adam belong to one image each, and draws are
addressed by (seed, image number, step). Another batch gives the same result up to the rounding of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from stylegan_dist import randomness
from stylegan_dist.latents.inputs import STEP_BITS
from stylegan_dist.latents.loss import Loss
from stylegan_dist.latents.trained import Trained

LR = 0.1
_RISE, _FALL = 0.05, 0.25        # parts of the steps
_LATENT_NOISE = 0.05             # of the spread, at the beginning
_LATENT_NOISE_UNTIL = 0.75       # part of the steps
_MAPS_WEIGHT = 1e5               # of the regularisation of noise maps
_SMALLEST_MAP = 8                # pixels of a side at which that ends

Report = Callable[[Tensor], None]  # takes the losses of a step, float32 [N] on the device


@dataclass(frozen=True)
class Rows:
    """What is searched for, one row for each image.

    Attributes:
        latents: [N, ...], or in W+ [N, P, ...].
        mean: [N, ...], the mean latent of the row's class.
        spread: [N], of the row's class.
        whitening: [N, D, D], as of `Population`.
        labels: int64 [N], or None.
        numbers: int64 [N], of the images, which address draws.
        maps: noise maps [N, 1, H, W]; none where the fixed ones are used.
    """

    latents: Tensor
    mean: Tensor
    spread: Tensor
    whitening: Tensor
    labels: Tensor | None
    numbers: Tensor
    maps: list[Tensor]

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.latents[rows], self.mean[rows], self.spread[rows], self.whitening[rows],
                    None if self.labels is None else self.labels[rows], self.numbers[rows],
                    [values[rows] for values in self.maps])

    def widened(self, places: int) -> Rows:
        """The same in W+: the latent of each row at every place."""
        return replace(self, latents=self.latents[:, None].repeat(1, places, *[1] * (self.latents.dim() - 1)))


def draw(trained: Trained, rows: Rows) -> Tensor:
    """The images of rows, float32 [N, C, R, R] in the range of networks."""
    return trained.generator.synthesize(rows.latents, rows.labels, rows.maps or "const")


@torch.no_grad()
def losses_of(trained: Trained, loss: Loss, rows: Rows) -> Tensor:
    """float32 [N]."""
    return loss(draw(trained, rows))


@dataclass(frozen=True)
class Search:
    """How latents of a generator are searched for, the same for all images.

    Attributes:
        seed: of the draws.
        batch: rows that are computed at once where there are several starts.
        with_maps: noise maps of the images' own are searched for, too.
        report: called after each step, with nothing that waits for the device.
    """

    trained: Trained
    seed: int
    batch: int = 8
    with_maps: bool = False
    report: Report = lambda _: None


def search(how: Search, loss: Loss, rows: Rows, steps: int, purpose: str, pull: float = 0.0) -> Rows:
    """Better rows after `steps` steps of Adam.

    Args:
        loss: of the same rows.
        purpose: of the draws.
        pull: weight of the distance from the mean: the mean square of the whitened values, 1 for usual latents (Wulff and
            Torralba 2020 likewise, in another coordinate system).
    """
    latents = rows.latents.detach().clone().requires_grad_()
    maps = [values.detach().clone().requires_grad_() for values in rows.maps]
    optimizer = torch.optim.Adam([latents, *maps], lr=LR, betas=(0.9, 0.999))
    scale = rows.spread.view(-1, *[1] * (latents.dim() - 1))
    wide = latents.dim() > rows.mean.dim()
    mean = rows.mean[:, None] if wide else rows.mean
    for step in range(steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = LR * learning_rate(done)
        current = latents
        if strength := latent_noise(done):
            noise = randomness.normal(how.seed, purpose, (rows.numbers << STEP_BITS) + step, latents.shape[1:])
            current = latents + noise * (strength * scale)
        each = loss(draw(how.trained, replace(rows, latents=current, maps=maps)))
        total = each + _MAPS_WEIGHT * roughness(maps) if maps else each
        if pull:
            apart = (latents - mean).flatten(2 if wide else 1)
            total = total + pull * (apart.view(len(apart), -1, apart.shape[-1]) @ rows.whitening).square().mean((1, 2))
        optimizer.zero_grad(set_to_none=True)
        total.sum().backward()
        optimizer.step()
        with torch.no_grad():
            for values in maps:
                values.copy_(normalised(values))
        how.report(each.detach())
    return replace(rows, latents=latents.detach(), maps=[values.detach() for values in maps])


def learning_rate(done: float) -> float:
    """The factor of the learning rate when a part of the steps is done, from 0 to 1."""
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / _FALL))
    return fall * min(1.0, done / _RISE)


def latent_noise(done: float) -> float:
    """The standard deviation of the noise on latents, in units of their spread, when a part of the steps is done."""
    return _LATENT_NOISE * max(0.0, 1 - done / _LATENT_NOISE_UNTIL)**2


def roughness(maps: list[Tensor]) -> Tensor:
    """How much neighbouring values of noise maps have to do with each other, float32 [N].

    For each map and its averages over 2 x 2, 4 x 4, ... pixels, down to 8 pixels a side: the squares of the mean products of
    neighbours, across and down. White noise has none.

    Args:
        maps: [N, 1, H, W] each.
    """
    terms = []
    for values in maps:
        while True:
            for dimension in (2, 3):
                terms.append((values * values.roll(1, dimension)).mean((1, 2, 3)).square())
            if min(values.shape[2:]) <= _SMALLEST_MAP:
                break
            values = avg_pool2d(values, 2)
    return torch.stack(terms).sum(0)


def normalised(values: Tensor) -> Tensor:
    """Maps [N, 1, H, W] with mean 0 and mean square 1, each."""
    values = values - values.mean((2, 3), keepdim=True)
    return values * values.square().mean((2, 3), keepdim=True).rsqrt()
