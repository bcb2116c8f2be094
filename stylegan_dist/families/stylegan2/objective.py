"""StyleGAN2's part of the objective: style mixing, path length regularisation, the running mean of w."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stylegan_dist import ops, randomness
from stylegan_dist.config import Config
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator
from stylegan_dist.objective.game import Objective
from stylegan_dist.objective.penalties import path_lengths
from stylegan_dist.objective.phases import MicroBatch, Regulariser
from stylegan_dist.objective.result import LossResult


class StyleGan2Objective(Objective):
    """`running["path_mean"]` is the running mean of path lengths, `a` of Karras et al. 2020, equation 4."""

    RUNNING = ("path_mean",)
    generator: Generator

    def __init__(self, config: Config, generator: Generator, discriminator: Discriminator, label_counts: Tensor | None):
        super().__init__(config, generator, discriminator, label_counts)
        self.w_avg_decay = config.generator.w_avg_decay
        self.forwards["g"] = generator.synthesis
        self.noise = randomness.NoiseAddresses(generator.synthesis.noise_shapes, self.device)
        self.set_weight("path_length_weight", config.loss.path_length_weight)

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images, and their ws [n, num_ws, w_dim]."""
        ws = self._styles(phase, index, labels)
        return self._images(phase, index, ws, self.forwards["g"]), ws

    def observe(self, made: Tensor) -> dict[str, Tensor]:
        return {"w": made[:, 0].sum(0) / self.batch}  # the first layer never uses the second latent

    def reported(self) -> dict[str, Tensor]:
        return {"path_length/target": self.running["path_mean"]}

    def generator_regulariser(self) -> Regulariser | None:
        c = self.config
        return Regulariser("g_path", self.g_path, c.path_length_interval, True) if c.path_length_weight > 0 else None

    def g_path(self, real: MicroBatch) -> LossResult:
        """Path length regularisation (Karras et al. 2020, equation 4), on every n-th image.

        The target `a` is the running mean from before this step, a constant for all images, so that
        the penalty of an image does not depend on which others are in its micro-batch.
        """
        c = self.config
        every = slice(None, None, c.path_length_shrink)
        part = MicroBatch(real.images[every], None if real.labels is None else real.labels[every], real.index[every])
        ws = self._styles("g_path", part.index, self.labels("g_path", part))
        images = self._images("g_path", part.index, ws, self.generator.synthesis)
        direction = randomness.normal(self.seed, "g_path.direction", part.index, images.shape[1:])
        lengths = path_lengths(images, ws, direction.to(images.dtype))
        penalty = (lengths - self.running["path_mean"]).square()
        share = self.share(penalty * self.weight("path_length_weight", penalty)) * c.path_length_shrink
        mean = self.share(lengths) * c.path_length_shrink
        return LossResult(share * c.path_length_interval, {"loss/path_length": share, "path_length/mean": mean},
                         {"path_length": mean})

    @torch.no_grad()
    def update_running(self, means: Mapping[str, Tensor]) -> None:
        if "w" in means:
            self.generator.w_avg.copy_(means["w"].lerp(self.generator.w_avg, self.w_avg_decay))
        if "path_length" in means:
            mean, target = means["path_length"], self.running["path_mean"]
            # The running mean would never recover from a mean that is not finite.
            target.lerp_(torch.where(mean.isfinite(), mean, target), self.config.path_length_decay)

    def _styles(self, phase: str, index: Tensor, labels: Tensor | None) -> Tensor:
        """ws [n, num_ws, w_dim], some of two latents (Karras et al. 2019, section 3.1)."""
        g = self.generator
        z = g.draw(self.seed, phase, index)
        ws = g.mapping(z, labels)[:, None].expand(-1, g.num_ws, -1)
        if self.config.style_mixing > 0:
            z2 = randomness.normal(self.seed, f"{phase}.mixing_z", index, (g.z_dim,))
            other = g.mapping(z2, labels)[:, None]
            mixes = randomness.uniform(self.seed, f"{phase}.mixing", index) < self.config.style_mixing
            cutoff = 1 + randomness.integers(self.seed, f"{phase}.cutoff", index, g.num_ws - 1)
            layer = torch.arange(g.num_ws, device=index.device)
            ws = torch.where((mixes & (layer >= cutoff))[:, :, None], other, ws)
        return ws

    def _images(self, phase: str, index: Tensor, ws: Tensor, synthesis: Callable[..., Tensor]) -> Tensor:
        # Layers that draw their noise themselves take its address. The others take all maps at once.
        draw = randomness.noise_address if ops.draws_noise(ws) else self.noise.draw
        return synthesis(ws, draw(self.seed, f"{phase}.noise", index))
