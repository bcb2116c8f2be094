"""StyleGAN3's part of the objective: running magnitudes of the generator's signals, and the blur of configuration R."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stylegan_dist.config import Config
from stylegan_dist.config.schedules import extremes
from stylegan_dist.families.stylegan3.networks import Generator
from stylegan_dist.objective.game import Objective, ever
from stylegan_dist.ops.convolution import conv2d


class StyleGan3Objective(Objective):
    """Karras et al. 2021. The phase of the discriminator, and no other, moves the generator's buffers."""

    OBSERVED = "d_main"
    generator: Generator

    def __init__(self, config: Config, generator: Generator, discriminator: nn.Module, label_counts: Tensor | None):
        super().__init__(config, generator, discriminator, label_counts)
        self.forwards["g"] = generator.synthesis
        self.w_avg_decay = config.generator.w_avg_decay
        self.magnitude_decay = 0.5 ** (self.batch / (1000 * config.generator.magnitude_half_life_kimg))
        self.blurs = ever(config.loss.blur_sigma)
        if self.blurs:
            self.add_weight("blur_sigma", config.loss.blur_sigma)
        self.radius = int(3 * max(extremes(config.loss.blur_sigma)))

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Images; in `d_main` also their w [n, w_dim], and the mean squares [n, layers + 1] of what the layers saw."""
        g = self.generator
        ws = g.styles(g.draw(self.seed, phase, index), labels)
        if phase != self.OBSERVED:
            return self.forwards["g"](ws), None
        images, energies = g.synthesis.measured(ws)
        return images, (ws[:, 0], energies)

    def observe(self, made: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {name: values.sum(0) / self.batch for name, values in zip(("w", "magnitudes"), made, strict=True)}

    @torch.no_grad()
    def update_running(self, means: Mapping[str, Tensor]) -> None:
        for name, buffer, decay in (("w", self.generator.w_avg, self.w_avg_decay),
                                    ("magnitudes", self.generator.synthesis.magnitudes, self.magnitude_decay)):
            if name in means:
                mean = means[name].to(buffer.dtype)
                # A running mean would never recover from a mean that is not finite.
                buffer.copy_(torch.where(mean.isfinite(), mean, buffer).lerp(buffer, decay))

    def reported(self) -> dict[str, Tensor]:
        return {"blur/sigma": self.weights["blur_sigma"]} if self.blurs else {}

    def judge(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
              twice: bool = False) -> Tensor:
        if self.blurs:
            images = blur(images, self.weights["blur_sigma"].to(images.dtype), self.radius)
        return super().judge(phase, side, images, labels, index, twice)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve with 2^-(x / sigma)^2 of |x| <= 3 sigma, with zeros around the image (Karras et al. 2021, appendix F).

    The filter has a fixed number of taps, so that a recorded graph sees a sigma that moves. At sigma below 1/3 nothing changes.

    Args:
        images: [N, C, H, W].
        sigma: [], pixels.
        radius: of the filter, at least 3 sigma.
    """
    place = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    line = torch.where(place.abs() <= (3 * sigma).floor(), torch.exp2(-(place / sigma.clamp_min(1e-3)).square()), 0)
    line, channels = line / line.sum(), images.shape[1]
    for shape, pad in (((-1, 1), (0, 0, radius, radius)), ((1, -1), (radius, radius, 0, 0))):
        weight = line.view(1, 1, *shape).expand(channels, 1, -1, -1)
        images = conv2d(nn.functional.pad(images, pad), weight, groups=channels)
    return images
