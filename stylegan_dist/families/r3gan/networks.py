"""The R3GAN generator and discriminator.

Huang et al. 2024, "The GAN is dead; long live the GAN! A modern baseline GAN", section 4. Both are stacks of the same residual
block, without normalisation, styles, noise or an equalised learning rate. What replaces normalisation is the initialisation
(Zhang et al. 2019, "Fixup initialization"): every block begins as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stylegan_dist import ops
from stylegan_dist.families.r3gan.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import PlainLatents, SampleShape
from stylegan_dist.networks.layers import (
    MIN_RESOLUTION,
    Draw,
    LabelLinear,
    Linear,
    Precision,
    channels_at,
    resolutions,
    run_block,
)
from stylegan_dist.ops import native
from stylegan_dist.ops.bias_act import LRELU_SLOPE

EXPANSION = 2  # of the feature maps inside a block
RECTIFIER_GAIN = math.sqrt(2 / (1 + LRELU_SLOPE**2))  # He et al. 2015: keeps the variance through a leaky ReLU


def fan_in(inputs: int, gain: float = 1.0) -> float:
    """The standard deviation of weights whose sums of so many inputs of variance 1 have the variance gain^2."""
    return gain / inputs**0.5


class Convolution(nn.Module):
    """Convolution of odd kernel size with "same" padding, without bias: [N, in, H, W] -> [N, out, H, W].

    The weights are cast to the dtype of the input.

    Args:
        gain: the weights begin with the standard deviation gain / sqrt(fan in).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1, gain: float = 1.0):
        super().__init__()
        self.groups = groups
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel, kernel))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) * fan_in(self.weight[0].numel(), self.gain))

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2, groups=self.groups)


class Rectifier(nn.Module):
    """Leaky ReLU of x + bias, without a gain."""

    def __init__(self, channels: int, clamp: float | None):
        super().__init__()
        self.clamp = clamp
        self.bias = nn.Parameter(torch.empty(channels))

    def init_parameters(self, draw: Draw) -> None:
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return ops.bias_act(x, self.bias, "lrelu_unscaled", clamp=self.clamp)


class Block(nn.Module):
    """x + W3 phi(W2 phi(W1 x)): 1x1 to twice the width, grouped 3x3, 1x1 back.

    Fixup with three layers in a block: W1 and W2 begin smaller by L^(-1/4), W3 at zero.

    Args:
        network_blocks: L, the blocks of the whole network.
    """

    def __init__(self, width: int, group_width: int, network_blocks: int, clamp: float | None):
        super().__init__()
        inner, gain = EXPANSION * width, RECTIFIER_GAIN * network_blocks**-0.25
        self.conv1 = Convolution(width, inner, gain=gain)
        self.act1 = Rectifier(inner, clamp)
        self.conv2 = Convolution(inner, inner, 3, inner // group_width, gain)
        self.act2 = Rectifier(inner, clamp)
        self.conv3 = Convolution(inner, width, gain=0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.act2(self.conv2(self.act1(self.conv1(x)))))


def blocks_of(width: int, settings: GeneratorConfig | DiscriminatorConfig, stages: int, clamp: float | None) -> nn.Sequential:
    """The blocks of one resolution, in a network of so many resolutions."""
    count = settings.blocks
    return nn.Sequential(*(Block(width, settings.group_width, count * stages, clamp) for _ in range(count)))


def change_width(in_channels: int, out_channels: int) -> nn.Module:
    """A 1x1 convolution where the width changes."""
    return nn.Identity() if in_channels == out_channels else Convolution(in_channels, out_channels)


class GeneratorStage(nn.Module):
    """All of one resolution: another width, twice the size, then the blocks: [N, in, H, W] -> [N, out, 2H, 2W].

    The stage of 4x4 pixels has the blocks alone.
    """

    def __init__(self, in_channels: int, resolution: int, settings: GeneratorConfig, stages: int, clamp: float | None):
        super().__init__()
        width = channels_at(resolution, settings)
        self.up = resolution > MIN_RESOLUTION
        self.width = change_width(in_channels, width)
        self.blocks = blocks_of(width, settings, stages, clamp)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(ops.upsample2d(self.width(x)) if self.up else x)


class DiscriminatorStage(nn.Module):
    """All of one resolution: the blocks, then half the size, another width: [N, in, H, W] -> [N, out, H / 2, W / 2].

    The stage of 4x4 pixels has the blocks alone.
    """

    def __init__(self, resolution: int, out_channels: int, settings: DiscriminatorConfig, stages: int, clamp: float | None):
        super().__init__()
        width = channels_at(resolution, settings)
        self.down = resolution > MIN_RESOLUTION
        self.blocks = blocks_of(width, settings, stages, clamp)
        self.width = change_width(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.width(ops.downsample2d(x)) if self.down else x


class Generator(PlainLatents):
    """Latents z and class labels to images.

    The space of its latents is that of z, without a mapping network.

    Args:
        shape: resolution a power of two, from 8.
        settings: resolved.
        recompute: stages at this resolution and above compute their activations again in the backward pass instead of storing
            them, which changes no bit of the result; 0 for none.
    """

    named = "R3GAN"

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision = Precision(),  # noqa: B008 - frozen
                 recompute: int = 0):
        super().__init__()
        native.prepare()
        self.z_dim = settings.z_dim
        self.num_classes = shape.num_classes
        self.resolutions = resolutions(shape.resolution)
        self.precision = precision
        self.recompute = recompute
        first = channels_at(MIN_RESOLUTION, settings)
        classes, inputs = shape.num_classes, settings.z_dim + (settings.class_dim if shape.num_classes else 0)
        self.embed = LabelLinear(classes, settings.class_dim, fan_in(classes)) if classes else None
        self.dense = Linear(inputs, first, fan_in(inputs))
        self.basis = nn.Parameter(torch.empty(first, MIN_RESOLUTION, MIN_RESOLUTION))
        for r in self.resolutions:
            before = channels_at(max(r // 2, MIN_RESOLUTION), settings)
            setattr(self, f"b{r}", GeneratorStage(before, r, settings, len(self.resolutions), precision.clamp))
        self.torgb = Convolution(channels_at(shape.resolution, settings), shape.channels)

    def init_parameters(self, draw: Draw) -> None:
        self.basis.copy_(draw("basis", self.basis.shape))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: [N, z_dim], labels: int64 [N] or None -> images [N, C, R, R], nominally in [-1, 1].

        They are in the precision of the parameters, so that R2 is the gradient at a point that was not rounded.
        """
        full = self.basis.dtype
        z = z.to(full)
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        x = self.dense(z)[:, :, None, None] * self.basis
        for r in self.resolutions:
            x = self.precision.place(x, self.precision.of_block(r, self.resolutions[-1], full))
            x = run_block(getattr(self, f"b{r}"), 0 < self.recompute <= r, x)
        return self.torgb(x).to(full)


def layers_from_image(resolution: int, settings: DiscriminatorConfig) -> list[str]:
    """Names of a discriminator's layers above 4x4 pixels, from the image on. A change of the width is one if there is one."""
    names = ["fromrgb"]
    for r in resolutions(resolution)[:0:-1]:
        names += [f"b{r}.blocks.{i}" for i in range(settings.blocks)]
        names += [f"b{r}.width"] * (channels_at(r, settings) != channels_at(r // 2, settings))
    return names


class Discriminator(nn.Module):
    """Images to logits: [N, C, R, R] -> [N].

    With classes the logit is the scalar product of the features with an embedding of the label (Miyato and Koyama 2018).

    Args:
        settings: resolved.
        recompute: as of the generator.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision(),  # noqa: B008
                 recompute: int = 0):
        super().__init__()
        native.prepare()
        self.resolutions = resolutions(shape.resolution)[::-1]
        self.precision = precision
        self.recompute = recompute
        self.fromrgb = Convolution(shape.channels, channels_at(shape.resolution, settings))
        for r in self.resolutions:
            after = channels_at(max(r // 2, MIN_RESOLUTION), settings)
            setattr(self, f"b{r}", DiscriminatorStage(r, after, settings, len(self.resolutions), precision.clamp))
        last = channels_at(MIN_RESOLUTION, settings)
        self.basis = nn.Parameter(torch.empty(last, MIN_RESOLUTION, MIN_RESOLUTION))
        self.dense = Linear(last, last if shape.num_classes else 1, fan_in(last))
        self.embed = LabelLinear(shape.num_classes, last, fan_in(shape.num_classes, last**-0.5)) if shape.num_classes else None

    def init_parameters(self, draw: Draw) -> None:
        self.basis.copy_(draw("basis", self.basis.shape) / MIN_RESOLUTION)  # fan in: 4 x 4

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: [N, C, R, R] in [-1, 1], labels: int64 [N] or None -> logits [N], full precision."""
        x = self.dense(self.features(images))
        if self.embed is None:
            return x[:, 0]
        return (x * self.embed(labels)).sum(dim=1)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: [N, C, R, R] -> [N, d], full precision."""
        full, x = self.basis.dtype, images
        for r in self.resolutions:
            dtype = self.precision.of_block(r, self.resolutions[0], full)
            x = run_block(self._stage, 0 < self.recompute <= r, x, r, dtype)
        return (x.to(full) * self.basis).sum(dim=(2, 3))  # a depthwise convolution of all pixels

    def block_maps(self, images: Tensor) -> list[Tensor]:
        """What each stage makes of images [N, C, R, R]: maps of half the resolution, and so on down to 4 x 4."""
        x, maps = images, []
        for r in self.resolutions:
            x = self._stage(x, r, self.precision.of_block(r, self.resolutions[0], images.dtype))
            maps.append(x)
        return maps

    def _stage(self, x: Tensor, resolution: int, dtype: torch.dtype) -> Tensor:
        """Features of half the resolution, at the highest resolution from images."""
        x = self.precision.place(x, dtype)
        if resolution == self.resolutions[0]:
            x = self.precision.place(self.fromrgb(x), dtype)
        return getattr(self, f"b{resolution}")(x)
