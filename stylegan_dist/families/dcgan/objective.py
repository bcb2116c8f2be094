"""DCGAN's part of the objective: plain latents."""

from __future__ import annotations

from torch import Tensor

from stylegan_dist.families.dcgan.networks import Generator
from stylegan_dist.objective.game import Objective


class DcGanObjective(Objective):
    """The game of Goodfellow et al. 2014. Real and generated images are normalised apart, as groups of their own."""

    generator: Generator

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        return self.forwards["g"](self.generator.draw(self.seed, phase, index), labels), None
