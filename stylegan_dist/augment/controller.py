"""The adaptive strength of augmentation (Karras et al. 2020b, section 3): p follows how well the discriminator knows the data.

r_t = E sign D(x) over the augmented real images of the discriminator's main phase. It is 0 where the discriminator has no idea,
and 1 where it knows all real images. Every few steps p moves by a fixed amount, up where r_t is above its target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.config.schema import AugmentConfig

STEPS = 4                                                             # between two moves
RUNNING = ("augment_p", "augment_signs", "augment_steps")             # names of the state
SIGNS = "augment_signs"                                               # of the sum that a step gives


class Controller:
    """Works on the device, in place. All ranks have the same state, as it follows from sums over all of them.

    Args:
        running: float32 [] by the names of `RUNNING`, saved with the run: p; the sum of signs and the steps since it moved.
        batch: images of a step.
    """

    def __init__(self, config: AugmentConfig, running: dict[str, Tensor], batch: int):
        self.p, self.signs, self.steps = (running[name] for name in RUNNING)
        self.target = config.target
        self.batch = batch
        self.move = STEPS * batch / (config.kimg * 1000)

    @torch.no_grad()
    def update(self, signs: Tensor) -> None:
        """After each step of the discriminator.

        Args:
            signs: float32 [], the sum of sign D(x) over the real images of the global batch. Being a whole number it does not
                depend on how the batch was split.
        """
        self.signs += signs.nan_to_num(0.0)
        self.steps += 1
        due = self.steps >= STEPS
        direction = (self.signs - self.target * STEPS * self.batch).sign()
        self.p.copy_(torch.where(due, (self.p + direction * self.move).clamp(0, 1), self.p))
        for count in (self.signs, self.steps):
            count.mul_(~due)
