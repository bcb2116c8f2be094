"""The networks of StyleGAN-V: StyleGAN2's blocks for each frame, and what makes a clip of the frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.constants import constant
from stylegan_dist.families.stylegan2 import networks as stylegan2
from stylegan_dist.families.stylegan2.networks import DiscriminatorBlock, FromRGB, SynthesisNetwork, minibatch_std
from stylegan_dist.families.stylegan_v.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.families.stylegan_v.motion import motion_of
from stylegan_dist.networks.generator import Generator as SampleGenerator
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.networks.layers import (
    MIN_RESOLUTION,
    Conv2d,
    Dense,
    MappingNetwork,
    Precision,
    channels_at,
    resolutions,
    run_block,
)
from stylegan_dist.ops import native

SEEN = 3             # frames of a clip that the discriminator sees
_JOINED_AT = 16      # pixels from which on it sees them together, fewer of small frames
STILL = "motion"     # purpose of the motion that all clips have where none is drawn


class Generator(stylegan2.Generator):
    """Mapping, motion and synthesis: the content w is that of all frames, the motion code begins each of them.

    Samples are clips [N, frames * C, R, R], the channels of a frame side by side, at the times 0, 1, ..., frames - 1.

    Args:
        shape: of clips.
        settings: resolved.
    """

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision = Precision(),  # noqa: B008 - frozen
                 recompute: int = 0):
        SampleGenerator.__init__(self)
        self.z_dim, self.num_classes, self.frames = settings.z_dim, shape.num_classes, settings.frames
        self.channels = shape.channels // settings.frames
        self.mapping = MappingNetwork(settings.z_dim, shape.num_classes, settings.w_dim, settings.mapping_layers)
        self.motion = motion_of(settings)
        frame = SampleShape(shape.resolution, self.channels, shape.num_classes)
        self.synthesis = SynthesisNetwork(frame, settings, precision, recompute, self.motion.width)  # type: ignore[arg-type]
        self.num_ws = self.synthesis.num_ws
        self.register_buffer("w_avg", torch.zeros(settings.w_dim))

    def draw_motion(self, seed: int, purpose: str, index: Tensor, times: Tensor, last: float) -> Tensor:
        """Motion codes [N, S, width], a function of (seed, purpose, index: int64 [N]) and of the times.

        Args:
            times: [N, S], of a clip that begins at 0.
            last: the latest time that there may be; the noise of earlier ones does not depend on it.
        """
        noise = randomness.normal(seed, f"{purpose}.motion", index, (self.motion.noises(last + self.motion.start),
                                                                     self.motion.z_dim))
        start = randomness.uniform(seed, f"{purpose}.start", index) * self.motion.start
        return self.motion(noise, times.double() + start.double())

    def film(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, sampling: Sampling, times: Tensor) -> Tensor:
        latents = self.latents(seed, purpose, index, labels, sampling.truncation)
        codes = self.draw_motion(seed, purpose, index, times.expand(len(index), -1), float(times.max()))
        return self.frames_of(latents, codes)

    def frames_of(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Frames [N, S * C, R, R].

        Args:
            latents: [N, w_dim] or [N, num_ws, w_dim].
            codes: [N, S, width].
        """
        return self.frames_by(self.synthesis, latents, codes)

    def frames_by(self, synthesis: Callable[..., Tensor], latents: Tensor, codes: Tensor) -> Tensor:
        """As `frames_of`, by a synthesis network that may be a compiled one."""
        ws, count = latents if latents.dim() == 3 else latents[:, None].expand(-1, self.num_ws, -1), codes.shape[1]
        frames = synthesis(ws[:, None].expand(-1, count, -1, -1).flatten(0, 1), None, codes.flatten(0, 1))
        return frames.reshape(-1, count * frames.shape[1], *frames.shape[2:])

    def forward(self, z: Tensor, label: Tensor | None = None, noise: object = None,
                truncation: float | Tensor = 1.0) -> Tensor:
        """Clips of latents z [N, z_dim], all with the same motion."""
        return self.synthesize(self.map(z, label, truncation), label)

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """Clips with the same motion, whatever their content: that of number 0. `noise` changes nothing."""
        zero, times = torch.zeros(1, dtype=torch.int64, device=latents.device), self.times(latents.device)
        codes = self.draw_motion(0, STILL, zero, times[None], self.frames - 1.0)
        return self.frames_of(latents, codes.to(latents.dtype).expand(latents.shape[0], -1, -1))

    def sample(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, sampling: Sampling) -> Tensor:
        return self.film(seed, purpose, index, labels, sampling, self.times(index.device))

    def times(self, device: torch.device) -> Tensor:
        """Of the frames of a sample: float64 [frames]."""
        return torch.arange(self.frames, dtype=torch.float64, device=device)

    def noise_maps(self) -> list[Tensor]:
        return []


def joined_at(resolution: int) -> int:
    """Pixels from which on the discriminator sees frames together."""
    return max(min(_JOINED_AT, resolution // 4), MIN_RESOLUTION)


class Discriminator(nn.Module):
    """Three frames and their times to logits: [N, 3 * C, R, R] -> [N].

    Each frame passes the same blocks down to 16 x 16 pixels, but at least two of them: maps of small frames say too little of
    what is seen after one. The last block has half the channels. The maps of the three are joined there. The logit is the
    scalar product of the features with a mapping of the two distances between the frames, and of the class where there are
    classes (Skorokhodov et al. 2022, section 3.2).

    Args:
        shape: of clips.
        frames: of a clip.
        settings: resolved.
    """

    def __init__(self, shape: SampleShape, frames: int, settings: DiscriminatorConfig,
                 precision: Precision = Precision(), recompute: int = 0):  # noqa: B008 - frozen
        super().__init__()
        native.prepare()
        self.resolutions = resolutions(shape.resolution)[:0:-1]
        self.frames, self.channels = frames, shape.channels // frames
        self.joined_at = joined_at(shape.resolution)
        self.precision, self.recompute, self.mbstd_group = precision, recompute, settings.mbstd_group
        channels = {r: channels_at(r, settings) for r in resolutions(shape.resolution)}
        half = max(channels[self.joined_at] // 2, 1)
        self.fromrgb = FromRGB(self.channels, channels[shape.resolution], precision.clamp)
        for r in self.resolutions:
            into = half if r // 2 == self.joined_at else channels[r // 2]
            block = DiscriminatorBlock(SEEN * half if r == self.joined_at else channels[r], into, True, precision.clamp)
            setattr(self, f"b{r}", block)
        width = channels[MIN_RESOLUTION]
        joined = SEEN * half if self.joined_at == MIN_RESOLUTION else width
        self.conv = Conv2d(joined + 1, width, 3, clamp=precision.clamp)
        self.dense = Dense(width * MIN_RESOLUTION**2, width, "lrelu")
        self.out = Dense(width, width)
        self.waves = max(frames - 1, 1).bit_length() + 1
        self.mapping = MappingNetwork(2 * (SEEN - 1) * self.waves, shape.num_classes, width, settings.mapping_layers)

    def forward(self, images: Tensor, label: Tensor | None, times: Tensor) -> Tensor:
        """Logits [N], full precision.

        Args:
            images: [N, 3 * C, R, R] in [-1, 1].
            label: int64 [N] or None.
            times: [N, 3] of the frames, rising.
        """
        x = self.out(self._features(images, self.mbstd_group))
        angles = (times[:, 1:] - times[:, :-1]).to(x.dtype)[:, :, None] * _octaves(self.waves, x.device).to(x.dtype)
        distances = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
        return (x * self.mapping(distances, label)).sum(1) / math.sqrt(x.shape[1])

    def features(self, samples: Tensor) -> Tensor:
        """What the last layer sees of the first, the middle and the last frame of clips [N, frames * C, R, R]: [N, d]."""
        clips = samples.unflatten(1, (self.frames, self.channels))
        return self._features(clips[:, [0, (self.frames - 1) // 2, self.frames - 1]].flatten(1, 2), 1)

    def _features(self, images: Tensor, group: int) -> Tensor:
        full = self.out.weight.dtype
        x = images.unflatten(1, (SEEN, self.channels)).flatten(0, 1)
        for r in self.resolutions:
            if r == self.joined_at:
                x = _joined(x)
            x = run_block(self._block, 0 < self.recompute <= r, x, r, self.precision.of_block(r, self.resolutions[0], full))
        if self.joined_at == MIN_RESOLUTION:
            x = _joined(x)
        return self.dense(self.conv(minibatch_std(x.to(full), group)).flatten(1))

    def _block(self, x: Tensor, resolution: int, dtype: torch.dtype) -> Tensor:
        x = self.precision.place(x, dtype)
        if resolution == self.resolutions[0]:
            x = self.precision.place(self.fromrgb(x), dtype)
        return getattr(self, f"b{resolution}")(x)


def _joined(x: Tensor) -> Tensor:
    """The maps of the frames of each clip side by side: [N * 3, C, H, W] -> [N, 3 * C, H, W]."""
    return x.reshape(-1, SEEN * x.shape[1], *x.shape[2:])


@constant
def _octaves(count: int, device: torch.device) -> Tensor:
    """2 pi / period of the periods 2, 4, 8, ... frames: [count]."""
    return (2 * math.pi / 2.0 ** torch.arange(1, count + 1)).to(device)
