"""The game of 2014: dropout in the discriminator."""

from __future__ import annotations

from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.families.mlp.networks import Discriminator
from stylegan_dist.objective.game import Objective


class MlpObjective(Objective):
    """Goodfellow et al. 2014, section 3."""

    discriminator: Discriminator

    def discriminate(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
                     twice: bool) -> Tensor:
        """Logits [n] with dropout, which is drawn anew for each image in each phase, in the generator's, too."""
        uniform = randomness.uniform(self.seed, f"{phase}.dropout.{side}", index, self.discriminator.draws)
        return (self.discriminator if twice else self.forwards["d"])(images, labels, uniform)
