"""The StyleGAN2 generator and discriminator.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN" (skip generator, residual
discriminator), and Karras et al. 2020b, "Training generative adversarial networks with limited data"
(class conditioning, low precision, the `orig` discriminator for CIFAR-10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from stylegan_dist import ops
from stylegan_dist.families.stylegan2.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import Generator as SampleGenerator
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import (
    MIN_RESOLUTION,
    Conv2d,
    Dense,
    Draw,
    MappingNetwork,
    Precision,
    channels_at,
    resolutions,
    run_block,
)
from stylegan_dist.ops import native

# From the weights of toRGB to the features for the next layer, and the colours of these.
Features = Callable[[torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU: [N, in, H, W] -> [N, out, H * up, W * up]."""

    noise_const: torch.Tensor  # [H * up, W * up]

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: int, clamp: float | None):
        super().__init__()
        self.up = up
        self.clamp = clamp
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.noise_strength = nn.Parameter(torch.empty(1))
        self.register_buffer("noise_const", torch.empty(resolution, resolution))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape))
        self.bias.zero_()
        self.noise_strength.zero_()
        self.noise_const.copy_(draw("noise_const", self.noise_const.shape))

    def forward(
        self, x: torch.Tensor, style: torch.Tensor, noise: ops.LayerNoise | None, next_style: torch.Tensor | None,
        rgb_weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Features times `next_style`, and their colours.

        Args:
            x: [N, in, H, W], times style.
            style: [N, in], from `affine`.
            next_style: [N, out] of the layer that comes next, None for none.
            rgb_weight: [N, img_channels, out], None for none.
        """
        x, demodulation = ops.modulated_conv2d(x, self.weight, style, up=self.up)
        epilogue = ops.Epilogue(demodulation, self.bias, noise, self.noise_strength, filtered=self.up == 2, clamp=self.clamp)
        return ops.generator_epilogue(x, epilogue, next_style, rgb_weight)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation: [N, in, H, W] -> [N, img_channels, H, W]."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, clamp: float | None):
        super().__init__()
        self.clamp = clamp
        self.style_gain = 1 / in_channels**0.5
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(img_channels))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape))
        self.bias.zero_()

    def forward(self, w: torch.Tensor, features: Features) -> tuple[torch.Tensor | None, torch.Tensor]:
        """features(weight): from the modulated weight [N, img_channels, in] what `SynthesisLayer` returns.

        The layer before computes the colours in its epilogue, so it is called from here.
        """
        style = self.affine(w) * self.style_gain
        x, rgb = features(self.weight.flatten(1) * style[:, None])
        assert rgb is not None
        return x, ops.bias_act(rgb, self.bias, clamp=self.clamp)


class SynthesisBlock(nn.Module):
    """All layers of one resolution. The 4x4 block starts from a learned constant and has one convolution.

    Args:
        shape: of the images.
        start_channels: of what the 4x4 block takes beside its constant.
    """

    const: nn.Parameter  # [out, 4, 4], of the first block

    def __init__(self, resolution: int, shape: SampleShape, settings: GeneratorConfig, precision: Precision,
                 start_channels: int = 0):
        super().__init__()
        self.first = resolution == MIN_RESOLUTION
        self.num_convolutions = 1 if self.first else 2
        self.precision = precision
        self.place = resolution, shape.resolution
        out_channels, w_dim, clamp = channels_at(resolution, settings), settings.w_dim, precision.clamp
        if self.first:
            self.const = nn.Parameter(torch.empty(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(channels_at(resolution // 2, settings), out_channels, w_dim, resolution, up=2,
                                        clamp=clamp)
        inner = out_channels + (start_channels if self.first else 0)
        self.conv1 = SynthesisLayer(inner, out_channels, w_dim, resolution, up=1, clamp=clamp)
        self.torgb = ToRGB(out_channels, shape.channels, w_dim, clamp)

    def init_parameters(self, draw: Draw) -> None:
        if self.first:
            self.const.copy_(draw("const", self.const.shape))

    def dtype(self, full: torch.dtype) -> torch.dtype:
        """In which the convolutions compute, where the parameters have the precision `full`."""
        return self.precision.of_block(*self.place, full)

    def forward(
        self, x: torch.Tensor | None, rgb: torch.Tensor | None, styles: Sequence[torch.Tensor],
        next_style: torch.Tensor | None, w: torch.Tensor, noise: Sequence[ops.LayerNoise | None],
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Features and RGB images of this resolution from those of the one below, both None at 4x4.

        Args:
            x: [N, in, R / 2, R / 2], times the style of the first convolution; at 4x4 [N, start_channels] or None.
            rgb: [N, img_channels, R / 2, R / 2] in the precision of w.
            styles: [N, channels] of each convolution's input.
            next_style: [N, out] of the first convolution of the next resolution, None at the last.
            w: [N, w_dim], for toRGB.
            noise: of each convolution.
        Returns: x [N, out, R, R] in the precision of the block, times next_style, None at the last; rgb
            [N, img_channels, R, R] in that of w.
        """
        dtype = self.dtype(w.dtype)
        if self.first:
            const = self.const.expand(w.shape[0], -1, -1, -1)
            if x is not None:
                const = torch.cat([const, x[:, :, None, None].expand(-1, -1, *const.shape[2:])], 1)
            x = self.precision.place(const, dtype)
            x = x * styles[0].to(dtype)[:, :, None, None]
        else:
            assert x is not None
            x, _ = self.conv0(self.precision.place(x, dtype), styles[0], noise[0], styles[1], None)
        x, skip = self.torgb(w, lambda rgb_weight: self.conv1(x, styles[-1], noise[-1], next_style, rgb_weight))
        skip = skip.to(w.dtype)
        return x, skip if rgb is None else ops.upsample2d(rgb) + skip


class SynthesisNetwork(nn.Module):
    """w to images, with a skip connection of RGB images over the resolutions.

    One w drives each convolution; the toRGB layer of a block shares the w of the next block's first
    convolution (the last one has its own), so there are `num_ws` = convolutions + 1 of them.

    Args:
        start_channels: of `start`; 0: there is none.
    """

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision, recompute: int,
                 start_channels: int = 0):
        super().__init__()
        native.prepare()
        self.resolutions = resolutions(shape.resolution)
        self.precision = precision
        self.recompute = recompute
        self.num_ws = 2 * len(self.resolutions)
        self.noise_shapes = [(r, r) for r in self.resolutions for _ in range(1 if r == MIN_RESOLUTION else 2)]
        for r in self.resolutions:
            setattr(self, f"b{r}", SynthesisBlock(r, shape, settings, precision, start_channels))

    def constant_noise(self) -> list[torch.Tensor]:
        """The fixed noise maps, [1, 1, H, W] each, in the order of the layers."""
        return [layer.noise_const[None, None] for layer in self.layers()]

    def layers(self) -> list[SynthesisLayer]:
        """All convolutions in their order."""
        return [m for m in self.modules() if isinstance(m, SynthesisLayer)]

    def forward(self, ws: torch.Tensor, noise: torch.Tensor | Sequence[torch.Tensor] | None,
                start: torch.Tensor | None = None) -> torch.Tensor:
        """Images from w.

        Args:
            ws: [N, num_ws, w_dim].
            noise: addresses int64 [N, 2] (`randomness.noise_address`), or one map a convolution ([N or 1, 1, H, W], shapes
                in `noise_shapes`), or None for no noise.
            start: [N, start_channels], joined to the constant at all of its places.
        Returns: images [N, img_channels, R, R] in the precision of the parameters, nominally in [-1, 1].
        """
        w, blocks = ws.unbind(dim=1), [getattr(self, f"b{r}") for r in self.resolutions]
        dtypes = [block.dtype(ws.dtype) for block in blocks for _ in range(block.num_convolutions)]
        styles = [ops.bounded_style(layer.affine(w[i]), dtypes[i]) for i, layer in enumerate(self.layers())]
        maps = [noise] * len(styles) if noise is None or isinstance(noise, torch.Tensor) else noise
        noises = [None if values is None else ops.LayerNoise(values, i) for i, values in enumerate(maps)]
        x, rgb = start, None
        begin = 0  # of the block's convolutions, in all lists
        for r, block in zip(self.resolutions, blocks, strict=True):
            end = begin + block.num_convolutions
            next_style = styles[end] if end < len(styles) else None
            x, rgb = run_block(block, 0 < self.recompute <= r, x, rgb, styles[begin:end], next_style, w[end], noises[begin:end])
            begin = end
        assert rgb is not None
        return rgb


class Generator(SampleGenerator):
    """Mapping and synthesis.

    Args:
        shape: resolution a power of two, 8 to 1024.
        settings: resolved.
        recompute: blocks at this resolution and above compute their activations again in the backward
            pass instead of storing them, which changes no bit of the result; 0 for none.
    """

    w_avg: torch.Tensor  # [w_dim], running mean of w

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision = Precision(),  # noqa: B008 - frozen
                 recompute: int = 0):
        super().__init__()
        self.z_dim = settings.z_dim
        self.num_classes = shape.num_classes
        self.mapping = MappingNetwork(settings.z_dim, shape.num_classes, settings.w_dim, settings.mapping_layers)
        self.synthesis = SynthesisNetwork(shape, settings, precision, recompute)
        self.num_ws = self.synthesis.num_ws
        self.register_buffer("w_avg", torch.zeros(settings.w_dim))

    def truncate(self, w: torch.Tensor, psi: float | torch.Tensor) -> torch.Tensor:
        """Pull w towards its mean, w_avg + psi (w - w_avg): trades variety for fidelity (2019, section B).

        Args:
            psi: a number, or a tensor of no dimensions, as an exported network has it for an input.
        """
        return w if not isinstance(psi, torch.Tensor) and psi == 1 else self.w_avg.lerp(w, psi)

    def forward(
        self,
        z: torch.Tensor,
        label: torch.Tensor | None = None,
        noise: torch.Tensor | Sequence[torch.Tensor] | None = None,
        truncation: float | torch.Tensor = 1.0,
    ) -> torch.Tensor:
        """Images for latents z [N, z_dim] and labels int64 [N]; noise as in `SynthesisNetwork.forward`."""
        return self.synthesis(self.map(z, label, truncation)[:, None].expand(-1, self.num_ws, -1), noise)

    def map(self, z: torch.Tensor, labels: torch.Tensor | None, truncation: float | torch.Tensor = 1.0) -> torch.Tensor:
        """w [N, w_dim]."""
        return self.truncate(self.mapping(z, labels), truncation)

    def synthesize(self, latents: torch.Tensor, labels: torch.Tensor | None,
                   noise: str | Sequence[torch.Tensor] = "const") -> torch.Tensor:
        ws = latents if latents.dim() == 3 else latents[:, None].expand(-1, self.num_ws, -1)
        if isinstance(noise, str):
            return self.synthesis(ws, self.synthesis.constant_noise() if noise == "const" else None)
        return self.synthesis(ws, noise)

    def noise_maps(self) -> list[torch.Tensor]:
        return self.synthesis.constant_noise()

    def style_matrices(self) -> list[tuple[int, torch.Tensor]]:
        """Of the convolutions, and of the last toRGB as published (Shen and Zhou 2021)."""
        last = getattr(self.synthesis, f"b{self.synthesis.resolutions[-1]}").torgb
        affines = [layer.affine for layer in [*self.synthesis.layers(), last]]
        return [(place, affine.weight.detach() * affine.weight_gain) for place, affine in enumerate(affines)]

    def stage_of(self, name: str) -> int | list[int] | None:
        block = name.split(".")[1] if name.startswith("synthesis.b") else ""
        return int(block[1:]) if block[1:].isdecimal() else None


class FromRGB(Conv2d):
    """1x1 convolution of images, bias, leaky ReLU: [N, img_channels, H, W] -> [N, out, H, W]."""

    def __init__(self, img_channels: int, out_channels: int, clamp: float | None):
        super().__init__(img_channels, out_channels, 1, clamp=clamp)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return ops.fromrgb(x, self.weight * self.weight_gain, self.bias, clamp=self.clamp)


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the second down-sampling, with a residual path or without: halves the size."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool, clamp: float | None):
        super().__init__()
        self.conv0 = Conv2d(in_channels, in_channels, 3, sampling="filter", clamp=clamp)
        self.conv1 = Conv2d(in_channels, out_channels, 3, sampling="decimate", clamp=clamp)
        self.skip = Conv2d(in_channels, out_channels, 1, "linear", "down") if residual else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, H, W] -> [N, out, H / 2, W / 2]."""
        if self.skip is None:
            return self.conv1(self.conv0(x))
        half = math.sqrt(0.5)  # the sum of two independent unit-variance paths stays at unit variance
        return self.conv1(self.conv0(x), gain=half, residual=self.skip(x, gain=half))


def minibatch_std(x: torch.Tensor, group: int) -> torch.Tensor:
    """Append one channel: how much the samples of a group differ (Karras et al. 2018, section 3).

    Groups are `group` *consecutive* images each. They stay together however the global batch is split, if every part is a
    multiple of the group. The customary strided groups depend on the size of the part.

    Args: x [N, C, H, W] with N a multiple of `group`. Returns: [N, C + 1, H, W].
    """
    n, _, h, w = x.shape
    assert n % group == 0, "the micro-batch must be a multiple of the minibatch standard deviation's group"
    grouped = x.unflatten(0, (-1, group))
    # Not `var`: its second derivative loses most digits in float32 where images are alike. The shift by an image, a constant
    # because no derivative depends on it, keeps the rounding of the mean out of the squares.
    shifted = grouped - grouped[:, :1].detach()
    variance = (shifted - shifted.mean(dim=1, keepdim=True)).square().mean(dim=1)
    std = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, std.repeat_interleave(group)[:, None, None, None].expand(n, 1, h, w)], dim=1)


def layers_from_image(resolution: int, residual: bool) -> list[str]:
    """Names of a discriminator's layers in the order in which Mo et al. 2020 ("Freeze the discriminator") freeze them."""
    of_block = ("conv0", "conv1", "skip") if residual else ("conv0", "conv1")
    return ["fromrgb", *(f"b{r}.{layer}" for r in resolutions(resolution)[:0:-1] for layer in of_block)]


class Discriminator(nn.Module):
    """Images to logits: [N, img_channels, R, R] -> [N].

    With classes it is a projection discriminator (Miyato and Koyama 2018): the logit is the scalar product of the features
    with a mapping of the label.

    Args:
        settings: resolved.
        recompute: as of the generator.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision(),  # noqa: B008
                 recompute: int = 0):
        super().__init__()
        native.prepare()
        self.resolutions = resolutions(shape.resolution)[:0:-1]
        self.precision = precision
        self.recompute = recompute
        self.mbstd_group = settings.mbstd_group
        channels = {r: channels_at(r, settings) for r in resolutions(shape.resolution)}
        self.fromrgb = FromRGB(shape.channels, channels[shape.resolution], precision.clamp)
        for r in self.resolutions:
            block = DiscriminatorBlock(channels[r], channels[r // 2], settings.architecture == "resnet", precision.clamp)
            setattr(self, f"b{r}", block)
        width = channels[MIN_RESOLUTION]
        self.conv = Conv2d(width + 1, width, 3, clamp=precision.clamp)
        self.dense = Dense(width * MIN_RESOLUTION**2, width, "lrelu")
        self.out = Dense(width, width if shape.num_classes else 1)
        self.mapping = MappingNetwork(0, shape.num_classes, width, settings.mapping_layers) if shape.num_classes else None

    def forward(self, images: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """images: [N, img_channels, R, R] in [-1, 1], label: int64 [N] or None -> logits [N], full precision."""
        x = self.out(self._features(images, self.mbstd_group))
        if self.mapping is None:
            return x[:, 0]
        return (x * self.mapping(None, label)).sum(dim=1) / math.sqrt(x.shape[1])

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer sees: [N, img_channels, R, R] -> [N, d], full precision. Each image is a group of its own."""
        return self._features(images, 1)

    def _features(self, images: torch.Tensor, group: int) -> torch.Tensor:
        full = self.out.weight.dtype
        x = images
        for r in self.resolutions:
            dtype = self.precision.of_block(r, self.resolutions[0], full)
            x = run_block(self._block, 0 < self.recompute <= r, x, r, dtype)
        return self.dense(self.conv(minibatch_std(x.to(full), group)).flatten(1))

    def block_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What each block makes of images [N, img_channels, R, R]: [N, C, R / 2, R / 2], and so on down to 4 x 4."""
        x, maps = images, []
        for r in self.resolutions:
            x = self._block(x, r, self.precision.of_block(r, self.resolutions[0], images.dtype))
            maps.append(x)
        return maps

    def _block(self, x: torch.Tensor, resolution: int, dtype: torch.dtype) -> torch.Tensor:
        """Features of half the resolution, at the highest resolution from images."""
        x = self.precision.place(x, dtype)
        if resolution == self.resolutions[0]:
            x = self.precision.place(self.fromrgb(x), dtype)
        return getattr(self, f"b{resolution}")(x)
