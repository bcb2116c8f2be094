"""The game of 2014: plain latents, and dropout in the discriminator."""

from __future__ import annotations

from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.families.mlp.networks import Discriminator, Generator
from stylegan_dist.objective.game import Objective


class MlpObjective(Objective):
    """Goodfellow et al. 2014, section 3."""

    generator: Generator
    discriminator: Discriminator

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        return self.forwards["g"](self.generator.draw(self.seed, phase, index), labels), None

    def discriminate(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
                     twice: bool) -> Tensor:
        """Logits [n] with dropout, which is drawn anew for each image in each phase, in the generator's, too."""
        uniform = randomness.uniform(self.seed, f"{phase}.dropout.{side}", index, self.discriminator.draws)
        return (self.discriminator if twice else self.forwards["d"])(images, labels, uniform)
