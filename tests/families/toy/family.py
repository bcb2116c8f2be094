"""Networks, objective and rules of the toy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stylegan_dist.config import Config
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Dense, Precision
from stylegan_dist.objective.game import Objective


class Painter(Generator):
    """One linear layer."""

    def __init__(self, shape: SampleShape, latent: int):
        super().__init__()
        self.num_classes, self.z_dim = shape.num_classes, latent
        self.sides = (shape.channels, shape.resolution, shape.resolution)
        self.dense = Dense(latent + shape.num_classes, shape.channels * shape.resolution**2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        parts = [z] if labels is None else [z, nn.functional.one_hot(labels, self.num_classes).to(z.dtype)]
        return self.dense(torch.cat(parts, 1)).unflatten(1, self.sides)

    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        return z

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str = "const") -> Tensor:
        return self(latents, labels)


class Critic(nn.Module):
    """One linear layer."""

    def __init__(self, shape: SampleShape, gain: float, precision: Precision):
        super().__init__()
        self.gain, self.precision = gain, precision
        self.dense = Dense(shape.channels * shape.resolution**2, 1)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.dense(images.flatten(1))[:, 0].square() * self.gain


class ToyObjective(Objective):
    """Has a running statistic of its own, and a buffer that it moves."""

    RUNNING = ("brightness",)

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        images = self.forwards["g"](self.generator.draw(self.seed, phase, index), labels)
        return images, images

    def observe(self, made: Tensor) -> dict[str, Tensor]:
        return {"brightness": self.share(made.mean(dim=(1, 2, 3)))}

    @torch.no_grad()
    def update_running(self, means) -> None:
        if "brightness" in means:
            self.running["brightness"].lerp_(means["brightness"], 0.5)
            self.generator.seen.add_(1)

    def reported(self) -> dict[str, Tensor]:
        return {"toy/brightness": self.running["brightness"]}


class Toy(Family):
    """Makes noise."""

    objective = ToyObjective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Painter:
        return Painter(shape, config.generator.latent)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Critic:
        return Critic(shape, config.discriminator.gain, precision)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        auto(config.generator, "generator", "latent", 4, "toys are small")
        auto(config.loss, "loss", "r1_gamma", 0.25, "toys are harmless")

    def check(self, config: Config, resolution: int) -> None:
        pass

    def group(self, config: Config) -> tuple[int, str]:
        return 1, "nothing"

    def learning_rate(self, resolution: int) -> float:
        return 0.01

    def describe(self, config: Config) -> str:
        return "linear"


FAMILY = Toy()
