"""The adaptive strength of augmentation (Karras et al. 2020b, section 3): p follows how well the discriminator knows the data.

Of augmented images in the discriminator's main phase, where D gives logits:

    r_t = E sign D(train)                                             0: it has no idea; 1: it knows all real images
    r_v = (E D(train) - E D(held out)) / (E D(train) - E D(fake))     0: it takes held-out images for those that it learns from;
                                                                      1: it takes them for generated ones

Every few steps p moves by a fixed amount, up where the statistic is above its target.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_dist.config.schema import AugmentConfig

STEPS = 4                                                             # between two moves, and two looks at held-out images
RUNNING = ("augment_p", "augment_signs", "augment_steps")             # names of the state
TARGETS = {"r_t": 0.6, "r_v": 0.5}                                    # published
LEAST_GAP = 1e-8                                                      # of E D(train) - E D(fake)
SIGNS = "augment_signs"                                               # of the sum that a step gives
LOGITS = ("augment_real", "augment_fake", "augment_held_out")         # likewise


class Controller(abc.ABC):
    """Works on the device, in place. All ranks have the same state, as it follows from sums over all of them.

    Attributes:
        names: of the running statistics that it needs, of `RUNNING`.
    Args:
        config: with a number as the target.
        running: float32 [] by these names, saved with the run.
        batch: images of a step.
    """

    names: tuple[str, ...]

    def __init__(self, config: AugmentConfig, running: Mapping[str, Tensor], batch: int):
        self.p = running["augment_p"]
        self.target = config.target
        self.batch = batch
        self.move = STEPS * batch / (config.kimg * 1000)

    @abc.abstractmethod
    def sums(self, real: Tensor, fake: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
        """What a micro-batch contributes to the numbers of `update`, float32 [], from its logits [n] of each kind of image."""

    @abc.abstractmethod
    def update(self, sums: Mapping[str, Tensor]) -> None:
        """Move p, after each step of the discriminator, from what `sums` gave in total over the global batch."""

    def _step(self, excess: Tensor) -> Tensor:
        """p after a move: up where `excess` is positive."""
        return (self.p + excess.sign() * self.move).clamp(0, 1)


class SignController(Controller):
    """Follows r_t, which needs no images but those of the training. Its state is p, and the signs and steps since p moved."""

    names = RUNNING

    def __init__(self, config: AugmentConfig, running: Mapping[str, Tensor], batch: int):
        super().__init__(config, running, batch)
        self.signs, self.steps = running["augment_signs"], running["augment_steps"]

    def sums(self, real: Tensor, fake: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
        """A whole number, so that it does not depend on how the batch was split."""
        return {SIGNS: real.sign().sum()}

    @torch.no_grad()
    def update(self, sums: Mapping[str, Tensor]) -> None:
        if SIGNS not in sums:
            return
        self.signs += sums[SIGNS].nan_to_num(0.0)
        self.steps += 1
        due = self.steps >= STEPS
        self.p.copy_(torch.where(due, self._step(self.signs - self.target * STEPS * self.batch), self.p))
        for count in (self.signs, self.steps):
            count.mul_(~due)


class HeldOutController(Controller):
    """Follows r_v in the steps that have held-out images, from the logits of these steps alone. Its state is p.

    The three means are of one state of the discriminator, whose logits may drift from step to step.
    """

    names = RUNNING[:1]

    def sums(self, real: Tensor, fake: Tensor, held_out: Tensor | None) -> dict[str, Tensor]:
        if held_out is None:
            return {}
        return dict(zip(LOGITS, (logits.sum() for logits in (real, fake, held_out)), strict=True))

    @torch.no_grad()
    def update(self, sums: Mapping[str, Tensor]) -> None:
        if LOGITS[0] not in sums:
            return
        real, fake, held_out = (sums[name] / self.batch for name in LOGITS)
        excess = r_v(real, fake, held_out) - self.target
        self.p.copy_(self._step(excess.nan_to_num(0.0)))


CONTROLLERS = {"r_t": SignController, "r_v": HeldOutController}


def r_v(real: Tensor, fake: Tensor, held_out: Tensor) -> Tensor:
    """The second statistic, [], from mean logits []."""
    return (real - held_out) / (real - fake).clamp(min=LEAST_GAP)


def measured(means: Mapping[str, float], controlled: bool) -> dict[str, float]:
    """Both statistics over a tick, as far as they are known, from the means that it reports.

    Args:
        controlled: whether p is.
    """
    found = {}
    if controlled and "sign/real" in means:
        found["augment/r_t"] = means["sign/real"]
    if "logits/held_out" in means:
        each = (torch.tensor(means[f"logits/{name}"], dtype=torch.float64) for name in ("real", "fake", "held_out"))
        found["augment/r_v"] = r_v(*each).item()
    return found
