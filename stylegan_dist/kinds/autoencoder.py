"""The autoencoder of latent diffusion (Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models").

Its structure is that of `AutoencoderKL` in diffusers, and so are the names of its tensors: weights that were published for
that load here, and weights that were trained here load there. Encoder and decoder are convolutions in residual blocks with
group normalisation (Wu and He 2018) and SiLU. Each level but the last halves the side of the maps. The encoder gives mean and
logarithm of the variance of a normal distribution for each value of a latent (Kingma and Welling 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

MAX_LATENT_CHANNELS = 64
_LEVELS = 7              # most
_EPSILON = 1e-6          # of the normalisations
_LOG_VARIANCE = -30.0, 20.0
_Width = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True)
class Form:
    """What decides the network. The fields are those of the `config.json` of an `AutoencoderKL`."""

    in_channels: Annotated[int, Field(ge=1, le=4)]             # of pictures
    latent_channels: Annotated[int, Field(ge=1, le=MAX_LATENT_CHANNELS)]
    block_out_channels: Annotated[tuple[_Width, ...], Field(min_length=1, max_length=_LEVELS)]  # of each level, finest first
    layers_per_block: Annotated[int, Field(ge=1, le=8)] = 1    # residual blocks of a level; the decoder has one more
    norm_num_groups: Annotated[int, Field(ge=1, le=4096)] = 32
    use_quant_conv: bool = True            # a 1 x 1 convolution after the encoder
    use_post_quant_conv: bool = True       # and before the decoder
    mid_block_add_attention: bool = True   # at the coarsest level

    @property
    def downscale(self) -> int:
        """Pixels of a picture to a pixel of its latent, along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self) -> None:
        """Raise ValueError saying what does not fit."""
        if wrong := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(f"{wrong[0]} channels are no multiple of the {self.norm_num_groups} groups of the normalisation")


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x through a 1 x 1 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, _EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, _EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + y


class _Attention(nn.Module):
    """Self-attention of all places with one head (Vaswani et al. 2017, equation 1), added to the input."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        places = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # [N, 1, H W, C]
        mixed = F.scaled_dot_product_attention(self.to_q(places), self.to_k(places), self.to_v(places))
        return x + self.to_out[0](mixed[:, 0]).transpose(1, 2).reshape(x.shape)


class _Middle(nn.Module):
    """A block, perhaps attention, and a block, at the coarsest level."""

    def __init__(self, channels: int, form: Form):
        super().__init__()
        groups = form.norm_num_groups
        self.resnets = nn.ModuleList([_Block(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([_Attention(channels, groups)] if form.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Resample(nn.Module):
    """A 3 x 3 convolution that halves the side, with a row and a column of zeros after the last; or after doubling it."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, 1 if up else 2, int(up))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class _Level(nn.Module):
    """Residual blocks, and then a change of the resolution where another level follows."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, follows: bool, up: bool):
        super().__init__()
        self.resnets = nn.ModuleList([_Block(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks)])
        resample = nn.ModuleList([_Resample(outputs, up)] if follows else [])
        setattr(self, "upsamplers" if up else "downsamplers", resample)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        for resample in self.upsamplers if self.up else self.downsamplers:  # type: ignore[union-attr]
            x = resample(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, form: Form):
        super().__init__()
        widths, groups = form.block_out_channels, form.norm_num_groups
        self.conv_in = nn.Conv2d(form.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            _Level(before, width, form.layers_per_block, groups, follows=i < len(widths) - 1, up=False)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))])
        self.mid_block = _Middle(widths[-1], form)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * form.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, form: Form):
        super().__init__()
        widths, groups = form.block_out_channels[::-1], form.norm_num_groups
        self.conv_in = nn.Conv2d(form.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _Middle(widths[0], form)
        self.up_blocks = nn.ModuleList([
            _Level(before, width, form.layers_per_block + 1, groups, follows=i < len(widths) - 1, up=True)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], form.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Pictures [N, C, H, W] in [-1, 1] to latents [N, L, H / f, W / f] and back. H and W are multiples of f = `downscale`."""

    def __init__(self, form: Form):
        super().__init__()
        form.check()
        self.encoder, self.decoder = _Encoder(form), _Decoder(form)
        channels = form.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if form.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if form.use_post_quant_conv else nn.Identity()

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of pictures."""
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, 1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def encode(self, pictures: Tensor) -> Tensor:
        """The means."""
        return self.moments(pictures)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, which may leave [-1, 1] a little."""
        return self.decoder(self.post_quant_conv(latents))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of normal distributions from the standard one, as a mean over all values (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
