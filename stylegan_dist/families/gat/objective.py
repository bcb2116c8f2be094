"""GAT's part of the objective: levels under noise, both penalties in every step, the running mean of w of each class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.augment import Augmentation
from stylegan_dist.config import Config
from stylegan_dist.families.gat.config import LEVELS
from stylegan_dist.families.gat.levels import noised
from stylegan_dist.families.gat.networks import Generator
from stylegan_dist.families.r3gan.objective import R3GanObjective
from stylegan_dist.objective.game import ever
from stylegan_dist.objective.penalties import approximate_gradient_penalty
from stylegan_dist.objective.phases import MicroBatch, Phase
from stylegan_dist.objective.result import LossResult


class GatObjective(R3GanObjective):
    """Hyun et al. 2025, section 3: R3GAN's game, in which each image is judged at all levels at once.

    Generated images are [n, levels, C, H, W] up to the discriminator. Real ones are [n, C, H, W], and the same at all levels.
    """

    generator: Generator

    def __init__(self, config: Config, generator: Generator, discriminator: nn.Module, label_counts: Tensor | None):
        super().__init__(config, generator, discriminator, label_counts)
        self.forwards["g"] = generator.synthesis
        self.w_avg_decay = config.generator.w_avg_decay

    def phases(self) -> list[Phase]:
        """The discriminator's first."""
        c = self.config
        phases = sorted(super().phases(), key=lambda phase: phase.network)
        if c.penalty == "approximate" and c.penalty_interval == 1 and (ever(c.r1_gamma) or ever(c.r2_gamma)):
            phases[0] = Phase("d_main", "d", 1, (self.d_main_with_estimates,), second_order=False)
        return phases

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Images at all levels, the same z in the phases of both networks; and their w and labels."""
        w = self.generator.mapping(self.generator.draw(self.seed, "game", index), labels)
        return self.forwards["g"](w), (w, labels)

    def observe(self, made: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        """The sums of w of each class, and their numbers."""
        w, labels = made
        classes = len(self.generator.w_avg)
        if labels is None:
            belongs = w.new_ones(len(w), 1)
        else:  # a product, not `index_add`, so that GPUs add in one order
            belongs = (labels[:, None] == torch.arange(classes, device=w.device)).to(w.dtype)
        return {"w": belongs.t() @ w / self.batch, "w_count": belongs.sum(0) / self.batch}

    @torch.no_grad()
    def update_running(self, means: Mapping[str, Tensor]) -> None:
        if "w" not in means:
            return
        count, old = means["w_count"][:, None].to(self.generator.w_avg.dtype), self.generator.w_avg
        mean = means["w"].to(old.dtype) / count.clamp_min(0.5 / self.batch)
        # A running mean would never recover from a mean that is not finite.
        old.copy_(torch.where((count > 0) & mean.isfinite(), mean.lerp(old, self.w_avg_decay), old))

    def d_main_with_estimates(self, real: MicroBatch) -> LossResult:
        """The discriminator's side of the game, and the approximate penalties of the same logits.

        `d_main` and `d_penalty` would pass all images to the discriminator once more. With F forward passes of it, that are
        18 F instead of 12 F for both penalties.
        """
        c, labels, held_out = self.config, self.labels("d_main", real), self.judge_held_out(real)
        with torch.no_grad():
            fake, _ = self.generate("d_main", real.index, labels)
        sides = (("r1", "real", real.images, real.labels), ("r2", "fake", fake, labels))
        logits, penalties = {}, {}
        with self.precision_of_penalties():
            for name, side, images, of in sides:
                logits[side] = self.judge("d_main", side, images, of, real.index, twice=True)
                if ever(getattr(c, f"{name}_gamma")):
                    disturbed = self.judge("d_main", side, self.disturbed(name, images, real.index), of, real.index, twice=True)
                    penalties[name] = approximate_gradient_penalty(logits[side], disturbed, c.penalty_sigma)
        result = self.discriminator_result(logits["real"], logits["fake"], held_out)
        total, statistics = result.share, dict(result.statistics)
        for name, each in penalties.items():
            penalty = self.share(each)
            statistics[f"loss/{name}"] = penalty * self.weight(f"{name}_gamma", penalty) / 2
            total = total + statistics[f"loss/{name}"]
        return LossResult(total, statistics, result.running_means)

    def augmented(self, augmentation: Augmentation, purpose: str, images: Tensor, index: Tensor) -> Tensor:
        """All levels of an image alike."""
        if images.dim() == 4:
            return super().augmented(augmentation, purpose, images, index)
        every = super().augmented(augmentation, purpose, images.flatten(0, 1), index.repeat_interleave(images.shape[1]))
        return every.unflatten(0, images.shape[:2])

    def discriminate(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
                     twice: bool) -> Tensor:
        """Logits [n] of images under the noise of their levels, the same in all evaluations of a phase."""
        levels = images if images.dim() == 5 else images[:, None].expand(-1, LEVELS, -1, -1, -1)
        noise = randomness.normal(self.seed, f"{phase}.levels.{side}", index, levels.shape[1:]).to(levels.dtype)
        return (self.discriminator if twice else self.forwards["d"])(noised(levels, noise), labels)
