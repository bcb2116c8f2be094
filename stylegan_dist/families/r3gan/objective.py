"""R3GAN's part of the objective: plain latents, and both penalties in every step of the discriminator."""

from __future__ import annotations

import torch

from stylegan_dist.objective.game import Objective, ever
from stylegan_dist.objective.penalties import gradient_penalty
from stylegan_dist.objective.phases import MicroBatch, Phase, phases_of
from stylegan_dist.objective.result import LossResult


class R3GanObjective(Objective):
    """Huang et al. 2024, section 3: a relativistic game with R1 and R2."""

    def phases(self) -> list[Phase]:
        c = self.config
        if c.penalty == "exact" and c.penalty_interval == 1 and (ever(c.r1_gamma) or ever(c.r2_gamma)):
            of_d = Phase("d_main", "d", 1, (self.d_main_with_penalties,), second_order=True)
            return [*phases_of("g", self.g_main, None), of_d]
        return super().phases()

    def d_main_with_penalties(self, real: MicroBatch) -> LossResult:
        """The discriminator's side of the game, and the penalties of the same logits.

        `d_main` and `d_penalty` would pass all images to the discriminator twice. With F forward passes of it, that are 18 F
        instead of 12 F for both penalties.
        """
        c, labels, held_out = self.config, self.labels("d_main", real), self.judge_held_out(real)
        with torch.no_grad():
            fake, _ = self.generate("d_main", real.index, labels)
        fake, images = fake.detach().requires_grad_(ever(c.r2_gamma)), real.images.detach().requires_grad_(ever(c.r1_gamma))
        fake_logits = self.judge("d_main", "fake", fake, labels, real.index, twice=True)
        real_logits = self.judge("d_main", "real", images, real.labels, real.index, twice=True)
        result = self.discriminator_result(real_logits, fake_logits, held_out)
        total, statistics = result.share, dict(result.statistics)
        for name, logits, leaf in (("r1", real_logits, images), ("r2", fake_logits, fake)):
            if leaf.requires_grad:
                penalty = self.share(gradient_penalty(logits, leaf))
                statistics[f"loss/{name}"] = penalty * self.weight(f"{name}_gamma", penalty) / 2
                total = total + statistics[f"loss/{name}"]
        return LossResult(total, statistics, result.running_means)
