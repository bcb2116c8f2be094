"""The augmentation of a run: which groups of transforms, in which order, how likely.

Each transform of the groups of Karras et al. 2020b takes place with probability p times the multiplier of its group, for each
image on its own. All are differentiable in the image, as often as wanted. Their draws are constants.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from stylegan_dist.augment.bands import FILTER_NORMALS, FILTER_UNIFORMS, Filtered, gains
from stylegan_dist.augment.color import COLOR_NORMALS, COLOR_UNIFORMS, color, recolored
from stylegan_dist.augment.corrupt import CUTOUT_UNIFORMS, NOISE_NORMALS, NOISE_UNIFORMS, cut_out, noisy
from stylegan_dist.augment.diffaugment import UNIFORMS as DIFF_UNIFORMS
from stylegan_dist.augment.diffaugment import diff_augmented
from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.geometry import BLIT_UNIFORMS, GEOM_NORMALS, GEOM_UNIFORMS, blit, geom
from stylegan_dist.augment.warp import Warp
from stylegan_dist.config.schema import AugmentConfig
from stylegan_dist.errors import InputError
from stylegan_dist.records import shorten

GROUPS = ("blit", "geom", "color", "filter", "noise", "cutout")
NAMES = {"bg": 2, "bgc": 3, "bgcf": 4, "bgcfn": 5, "bgcfnc": 6}  # published pipes, and how many of the groups they have
DIFFAUGMENT = "diffaugment"
DIFFAUGMENT_PLACES = "diffaugment-places"  # translation and cutout alone
# Columns of the draws, for all pipes the same; new ones go to the end.
UNIFORMS = (*BLIT_UNIFORMS, *GEOM_UNIFORMS, *COLOR_UNIFORMS, *FILTER_UNIFORMS, *NOISE_UNIFORMS, *CUTOUT_UNIFORMS)
NORMALS = (*GEOM_NORMALS, *COLOR_NORMALS, *FILTER_NORMALS, *NOISE_NORMALS)


class Augmentation(abc.ABC):
    """What is done to all images that the discriminator sees.

    Attributes:
        uses_p: whether the probability matters.
    """

    uses_p: bool

    def __call__(self, images: Tensor, seed: int, purpose: str, index: Tensor, p: Tensor | None) -> Tensor:
        """Augmented images.

        Args:
            images: [N, C, W, W]; float16 and bfloat16 are computed in float32 and given back.
            seed, purpose, index: address of the draws; index: int64 [N], global image numbers.
            p: [], on the device; None where it does not matter.
        """
        x = images if images.dtype.itemsize > 2 else images.float()
        return self.transform(x, seed, purpose, index, p).to(images.dtype)

    @abc.abstractmethod
    def transform(self, x: Tensor, seed: int, purpose: str, index: Tensor, p: Tensor | None) -> Tensor:
        """The same for images in float32 or float64."""


@dataclass(frozen=True)
class Pipe(Augmentation):
    """`multipliers` of the groups that take place."""

    multipliers: dict[str, float]
    uses_p = True

    def transform(self, x: Tensor, seed: int, purpose: str, index: Tensor, p: Tensor | None) -> Tensor:
        assert p is not None
        draws, size = Draws(seed, purpose, index, x, UNIFORMS, NORMALS), x.shape[3]
        chance = {group: p.to(x.dtype) * factor for group, factor in self.multipliers.items()}
        inverse = None
        if "blit" in chance:
            inverse = blit(draws, chance["blit"], size)
        if "geom" in chance:
            after = geom(draws, chance["geom"], size)
            inverse = after if inverse is None else inverse @ after
        if inverse is not None:
            x = Warp(inverse)(x)
        if "color" in chance:
            x = recolored(x, color(draws, chance["color"]))
        if "filter" in chance:
            x = Filtered(gains(draws, chance["filter"]))(x)
        if "noise" in chance:
            x = noisy(x, draws, chance["noise"])
        if "cutout" in chance:
            x = cut_out(x, draws, chance["cutout"])
        return x


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """See `diffaugment`."""

    colors: bool
    uses_p = False

    def transform(self, x: Tensor, seed: int, purpose: str, index: Tensor, p: Tensor | None) -> Tensor:
        return diff_augmented(x, Draws(seed, purpose, index, x, DIFF_UNIFORMS), self.colors)


def augmentation_of(config: AugmentConfig) -> Augmentation | None:
    """What the knobs say; None for no augmentation.

    Raises:
        InputError: `augment.pipe` is none that there is.
    """
    if config.pipe == "none":
        return None
    if config.pipe in (DIFFAUGMENT, DIFFAUGMENT_PLACES):
        return DiffAugment(colors=config.pipe == DIFFAUGMENT)
    return Pipe(_multipliers(config.pipe))


def check(config: AugmentConfig, channels: int, images: bool, anchored: bool, loss: str) -> None:
    """Refuse what has no meaning.

    Args:
        channels: of the samples.
        images: whether the samples are images.
        anchored: whether the sign of a logit says what the discriminator takes an image for.
        loss: name of the adversarial loss.
    Raises:
        InputError: `augment.pipe` is unknown, or changes colours that the samples do not have; p cannot be controlled.
    """
    augmentation = augmentation_of(config)
    if augmentation is None:
        return
    colored = "color" in augmentation.multipliers if isinstance(augmentation, Pipe) else config.pipe == DIFFAUGMENT
    if colored and not (images and channels in (1, 3)):
        raise InputError(f"augment.pipe={config.pipe} changes colours, which only images of 1 or 3 channels have: use "
                         f"augment.pipe={DIFFAUGMENT_PLACES}, augment.pipe=bg, or a list without color such as "
                         "blit,geom,filter,noise,cutout")
    if augmentation.uses_p and config.p == "ada":
        if not anchored:
            why = ("looks at the sign of the logits of real images, which means nothing with" if config.controller == "r_t" else
                   "compares mean logits, with a target that is known for losses that give their signs a meaning, not for")
            raise InputError(f"augment.p=ada {why} loss.adversarial={loss}: set a fixed number, for example augment.p=0.3")
        if config.controller == "r_v" and not config.held_out:
            raise InputError("augment.controller=r_v needs held-out images: set augment.held_out to a shard set of images that "
                             "are not in data.shards, or augment.controller=r_t")


def _multipliers(text: str) -> dict[str, float]:
    """"bg,color:0.5,cutout" -> multipliers by group, in the order in which the groups take place."""
    found: dict[str, float] = {}
    for item in text.split(","):
        name, colon, number = item.strip().partition(":")
        groups = GROUPS[:NAMES[name]] if name in NAMES else (name,)
        try:
            factor = float(number) if colon else 1.0
        except ValueError:
            factor = -1.0
        if not set(groups) <= set(GROUPS) or not 0 <= factor <= 1:
            raise InputError(f"augment.pipe={shorten(text)}: {shorten(item.strip())} is none of none, {DIFFAUGMENT}, "
                             f"{DIFFAUGMENT_PLACES}, {', '.join(NAMES)}, {', '.join(GROUPS)}, the latter with "
                             "multipliers from 0 to 1, several with commas: bg,color:0.5,cutout")
        if repeated := found.keys() & set(groups):
            raise InputError(f"augment.pipe={shorten(text)} names {min(repeated)} twice: remove one")
        found |= dict.fromkeys(groups, factor)
    return {group: found[group] for group in GROUPS if group in found}
