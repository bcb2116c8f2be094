"""StyleGAN-V's part of the objective: which three frames are judged, and the running mean of w."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.config import Config
from stylegan_dist.families.stylegan_v.networks import SEEN, Generator
from stylegan_dist.objective.game import Objective


class StyleGanVObjective(Objective):
    """Three times are drawn for each number and phase. Real and generated clips of a number are seen at the same times."""

    generator: Generator

    def __init__(self, config: Config, generator: Generator, discriminator: nn.Module, label_counts: Tensor | None):
        super().__init__(config, generator, discriminator, label_counts)
        self.w_avg_decay = config.generator.w_avg_decay
        self.forwards["g"] = generator.synthesis

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Three frames [n, 3 * C, H, W] of each clip, and w [n, w_dim]."""
        g = self.generator
        w = g.mapping(g.draw(self.seed, phase, index), labels)
        codes = g.draw_motion(self.seed, phase, index, self.times(phase, index), g.frames - 1.0).to(w.dtype)
        return g.frames_by(self.forwards["g"], w, codes), w

    def observe(self, made: Tensor) -> dict[str, Tensor]:
        return {"w": made.sum(0) / self.batch}

    @torch.no_grad()
    def update_running(self, means: Mapping[str, Tensor]) -> None:
        if "w" in means:
            self.generator.w_avg.copy_(means["w"].lerp(self.generator.w_avg, self.w_avg_decay))

    def times(self, phase: str, index: Tensor) -> Tensor:
        """Three different frames of each clip in their order, int64 [n, 3]; all triples are equally likely."""
        frames = self.generator.frames
        # The frame's number is below the drawn word, so that no two are equal and all devices choose alike.
        keys = randomness.words(self.seed, f"{phase}.times", index, frames) * frames + torch.arange(frames, device=index.device)
        return keys.topk(SEEN).indices.sort(1).values

    def judge(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
              twice: bool = False) -> Tensor:
        """Also of whole clips, [n, frames * C, H, W]. Augmentation is the same for all frames of a clip."""
        g = self.generator
        if images.shape[1] == g.frames * g.channels:
            clips, times = images.unflatten(1, (g.frames, g.channels)), self.times(phase, index)
            place = times[:, :, None, None, None].expand(-1, -1, *clips.shape[2:])
            images = clips.gather(1, place).flatten(1, 2)
        return super().judge(phase, side, images, labels, index, twice)

    def discriminate(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
                     twice: bool) -> Tensor:
        network = self.discriminator if twice else self.forwards["d"]
        return network(images, labels, self.times(phase, index))
