"""GAT as a family: construction of its networks, and its rules for `auto`."""

from __future__ import annotations

import math

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.gat.config import LEVELS
from stylegan_dist.families.gat.networks import Discriminator, Generator
from stylegan_dist.families.gat.objective import GatObjective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.game import ever

SIDE = 16            # tokens in a row
HEAD_WIDTH = 64
LEARNING_RATE = 2e-4 * 768        # of a width
HALF_LIFE = math.log(0.5) / math.log(0.999)  # steps, of an average that keeps 0.999 in each


class Gat(Family):
    """Hyun et al. 2025."""

    objective = GatObjective
    attends = True

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        loss = config.loss
        twice = loss.penalty == "exact" and (ever(loss.r1_gamma) or ever(loss.r2_gamma))
        return Discriminator(shape, config.discriminator, precision, config.run.recompute, plain=twice)

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        """Transformers know nothing of the resolution; what stands for a place is computed."""
        if before.channels != now.channels and name.startswith(("embed.",) if network == "d" else ("synthesis.heads.",)):
            return name.endswith("modulation.weight") or name.endswith("modulation.bias")
        by_class = {"g": ("mapping.embed.", "w_avg"), "d": ("mapping.embed.",)}[network]
        if not (before.num_classes and now.num_classes):
            by_class = {"g": ("mapping.embed.", "mapping.first.", "w_avg"), "d": ("mapping.", "out.")}[network]
        return before.num_classes == now.num_classes or not name.startswith(by_class)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        g, d, optim = config.generator, config.discriminator, config.optim
        auto(g, "generator", "patch", max(resolution // SIDE, 1), "256 tokens")
        auto(g, "generator", "heads", max(g.width // HEAD_WIDTH, 1), "of width 64")
        auto(g, "generator", "hidden", 8 * g.width // 3, "8/3 width")
        for name in ("patch", "depth", "width"):
            auto(d, "discriminator", name, getattr(g, name), "as the generator")
        same = d.width == g.width
        auto(d, "discriminator", "heads", g.heads if same else max(d.width // HEAD_WIDTH, 1),
             "as the generator" if same else "of width 64")
        auto(d, "discriminator", "hidden", 8 * d.width // 3, "8/3 width")
        auto(config.loss, "loss", "r2_gamma", config.loss.r1_gamma, "as R1")
        for name, settings, width in (("g", optim.g, g.width), ("d", optim.d, d.width)):
            if settings.name.startswith("Adam"):
                auto(settings, f"optim.{name}", "lr", LEARNING_RATE / width, "0.0002 x 768 / width")
        auto(config.ema, "ema", "half_life_kimg", round(config.run.batch * HALF_LIFE / 1000, 4), "a decay of 0.999 a step")

    def check(self, config: Config, resolution: int) -> None:
        if config.generator.depth % LEVELS:
            raise InputError(f"generator.depth={config.generator.depth} must be a multiple of {LEVELS}: an output follows each "
                             "quarter of the blocks")
        for name in ("generator", "discriminator"):
            settings = getattr(config, name)
            if resolution % settings.patch or settings.patch == resolution:
                raise InputError(f"{name}.patch={settings.patch} does not cut {resolution} px into several whole tokens: "
                                 f"choose {', '.join(str(2**i) for i in range(resolution.bit_length() - 1))}")
            if settings.width % (4 * settings.heads):
                raise InputError(f"{name}.width={settings.width} must be a multiple of 4 {name}.heads = {4 * settings.heads}: "
                                 "a position needs a sine and a cosine of both axes in every head")

    def group(self, config: Config) -> tuple[int, str]:
        return 1, "nothing: no images are tied together"

    def learning_rate(self, resolution: int) -> float:
        return 0.0002

    def describe(self, config: Config) -> str:
        d = config.discriminator
        return f"transformer of {d.depth} blocks, width {d.width}, patches of {d.patch} px"


FAMILY = Gat()
