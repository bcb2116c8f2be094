"""The interface of generators, and how samples are drawn with it."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.errors import InputError


@dataclass(frozen=True)
class SampleShape:
    """What networks make and judge: samples [N, channels, resolution, resolution] of `num_classes` classes, 0 for none."""

    resolution: int
    channels: int
    num_classes: int = 0


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        truncation: psi, 1 for none.
        noise: of layers: "const", the fixed maps, or "none".
        batch: samples computed at once; another number gives the same samples up to rounding.
        translation: of the content, in widths to the right and down; for generators that can move it.
        rotation: likewise, in degrees counter-clockwise; about the middle, before the translation.
    """

    truncation: float = 1.0
    noise: str = "const"
    batch: int = 16
    translation: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0


class Generator(nn.Module, abc.ABC):
    """Latents and labels to samples. Labels are int64 [N], or None for an unconditional generator.

    Attributes:
        z_dim: numbers in a z.
        num_classes: 0 for an unconditional generator.
        truncates: whether its latents have a mean, to which truncation pulls them.
        num_ws: places of the network that each take a latent, which may be another one at each (the space W+); 0: there is
            no such space.
        frames: of a sample, where `film` makes them one by one; 1: a sample is made as a whole.
    """

    z_dim: int
    num_classes: int
    truncates: bool = True
    num_ws: int = 0
    frames: int = 1

    def draw(self, seed: int, purpose: str, index: Tensor) -> Tensor:
        """z [N, z_dim] of standard normal numbers, a function of (seed, purpose, index: int64 [N])."""
        return randomness.normal(seed, f"{purpose}.z", index, (self.z_dim,))

    @abc.abstractmethod
    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        """Points [N, ...] of the space in which samples are interpolated and truncated, W of style-based generators.

        Args:
            z: [N, z_dim].
            truncation: psi, 1 for none; a number, or a tensor of no dimensions, as an exported network has it for an input.
        Raises:
            InputError: truncation is asked for, and the generator does not truncate.
        """

    def latents(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, truncation: float = 1.0) -> Tensor:
        """`map` of the z of (seed, purpose, index: int64 [N])."""
        return self.map(self.draw(seed, purpose, index), labels, truncation)

    @abc.abstractmethod
    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """Samples [N, C, R, R], nominally in [-1, 1].

        Args:
            latents: [N, ...], from `latents`, or between such points. With a space W+ also [N, num_ws, ...].
            noise: as in `Sampling`; or maps [N or 1, 1, H, W] in place of the fixed ones.
        """

    def style_matrices(self) -> list[tuple[int, Tensor]]:
        """(place in W+, A [C, w_dim]) of each layer whose style is A w + b, in their order; none by default."""
        return []

    def stage_of(self, name: str) -> int | list[int] | None:
        """The resolution at which a parameter or buffer works; a list for its entries along the first dimension; None for what
        belongs to no single one."""
        return None

    def noise_maps(self) -> list[Tensor]:
        """The fixed noise maps of the layers, [1, 1, H, W] each; none of a generator without layer noise."""
        return []

    def film(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, sampling: Sampling, times: Tensor) -> Tensor:
        """Clips [N, S * C, R, R], nominally in [-1, 1], whose first frames are those of `sample` if the times are.

        Args:
            times: float64 [S], frames from the beginning; they need not be whole, nor within a clip of the data.
        Raises:
            InputError: this is no generator of clips.
        """
        raise InputError("this generator makes no clips of any length: of the families, stylegan_v can")

    def moved(self, latents: Tensor, labels: Tensor | None, transform: Tensor) -> Tensor:
        """As `synthesize`, of content that is moved.

        Args:
            transform: [N, 3, 3], of `motion`.
        Raises:
            InputError: there is no input that could be moved.
        """
        raise InputError("this generator cannot move its content: of the families, stylegan3-t and stylegan3-r can")

    def sample(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, sampling: Sampling) -> Tensor:
        """Samples [N, C, R, R], nominally in [-1, 1]; all that is random is a function of (seed, purpose, index: int64 [N])."""
        latents = self.latents(seed, purpose, index, labels, sampling.truncation)
        if sampling.translation == (0, 0) and sampling.rotation == 0:
            return self.synthesize(latents, labels, sampling.noise)
        translation = torch.tensor([sampling.translation], device=latents.device)
        angle = torch.tensor([math.radians(sampling.rotation)], device=latents.device)
        return self.moved(latents, labels, motion(translation, angle).expand(len(index), -1, -1))


def motion(translation: Tensor, angle: Tensor) -> Tensor:
    """What moves the content of images: from places in the image to places in the content, [N, 3, 3].

    Args:
        translation: [N, 2], widths to the right and down.
        angle: [N], radians, counter-clockwise as one sees it; about the middle, before the translation.
    """
    cos, sin, (x, y) = angle.cos(), angle.sin(), translation.unbind(1)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin, sin * y - cos * x, sin, cos, -sin * x - cos * y, zero, zero, one]
    return torch.stack(rows, 1).unflatten(1, (3, 3))


class PlainLatents(Generator):
    """A generator without a mapping network: its latents are its z.

    Attributes:
        named: in messages.
    """

    truncates = False
    named = "this family"

    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        """z [N, z_dim].

        Raises:
            InputError: truncation is asked for.
        """
        if truncation != 1:
            raise InputError(f"truncation {truncation:g} is not possible: {self.named} has no mapping network, and so no mean "
                             "latent to pull to; leave truncation at 1")
        return z

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        return self(latents, labels)


class UniformLatents(PlainLatents):
    """Its z is uniform.

    Attributes:
        z_limit: z is in [-z_limit, z_limit).
    """

    z_limit: float

    def draw(self, seed: int, purpose: str, index: Tensor) -> Tensor:
        """z [N, z_dim] of uniform numbers, a function of (seed, purpose, index: int64 [N])."""
        return randomness.uniform(seed, f"{purpose}.z", index, self.z_dim) * (2 * self.z_limit) - self.z_limit


def great_circle(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Latents [N, ...] on the way from normally distributed ones to others: their directions on great circles, their lengths
    evenly (White 2016, "Sampling generative networks", section 2.1).

    Latents of n numbers have lengths near the root of n. On a straight line they would be shorter by up to that of 2, and a
    generator has hardly seen such ones.
    """
    a, b = one.flatten(1).double(), other.flatten(1).double()
    from_, to = (x.norm(dim=1, keepdim=True) for x in (a, b))
    angle = (a / from_ * b / to).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (a / from_ * ((1 - share) * angle).sin() + b / to * (share * angle).sin()) / angle.sin()
    found = torch.where(angle.sin() > 1e-6, direction * from_.lerp(to, share), a.lerp(b, share))
    return found.to(one.dtype).view_as(one)


@torch.no_grad()
def draw_samples(generator: Generator, seed: int, purpose: str, index: Tensor, labels: Tensor | None = None,
                 sampling: Sampling = Sampling()) -> Tensor:
    """`Generator.sample` in parts of `sampling.batch`; float, on the CPU."""
    parts = []
    for start in range(0, len(index), sampling.batch):
        part = slice(start, start + sampling.batch)
        parts.append(generator.sample(seed, purpose, index[part], None if labels is None else labels[part], sampling).cpu())
    return torch.cat(parts)
