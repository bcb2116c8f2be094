"""StyleGAN-V as a family: construction of its networks, and its rules for `auto`."""

from __future__ import annotations

import re

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.stylegan2.family import FAMILY as STYLEGAN2
from stylegan_dist.families.stylegan2.family import check_widths, resolve_shared
from stylegan_dist.families.stylegan_v.networks import SEEN, Discriminator, Generator, joined_at
from stylegan_dist.families.stylegan_v.objective import StyleGanVObjective
from stylegan_dist.kinds import Clip, Kind
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision

_BLOCK = re.compile(r"b(\d+)\.")


class StyleGanV(Family):
    """Skorokhodov et al. 2022, on the networks of Karras et al. 2020: no layer noise, style mixing or path lengths."""

    objective = StyleGanVObjective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        return Discriminator(shape, config.generator.frames, config.discriminator, precision, config.run.recompute)

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        if before.channels != now.channels and network == "d" and name.startswith("mapping.layers.0."):
            return False  # waves for the distances of more or fewer frames
        joined = {joined_at(before.resolution), joined_at(now.resolution)}
        if network == "d" and len(joined) > 1 and (found := _BLOCK.match(name)) and int(found[1]) <= 2 * max(joined):
            return False
        if network == "d" and len(joined) > 1 and name.startswith("conv."):
            return False
        return STYLEGAN2.carries_over(network, name, before, now)

    def check_kind(self, config: Config, kind: Kind) -> None:
        if not isinstance(kind, Clip) or config.generator.frames != kind.form.frames:
            has = f"clips of {kind.form.frames} frames" if isinstance(kind, Clip) else kind.noun
            raise InputError(f"generator.family=stylegan_v makes clips of {SEEN} frames or more, and the data has {has}: pack "
                             "videos with stylegan-dist pack --video, and leave generator.frames at auto; or choose another "
                             "generator.family")

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        resolve_shared(config, resolution, auto)

    def check(self, config: Config, resolution: int) -> None:
        check_widths(config, resolution)

    def group(self, config: Config) -> tuple[int, str]:
        group = config.discriminator.mbstd_group
        return group, f"discriminator.mbstd_group={group}"

    def learning_rate(self, resolution: int) -> float:
        return 0.002

    def describe(self, config: Config) -> str:
        return f"resnet, {SEEN} frames of {config.generator.frames}"


FAMILY = StyleGanV()
