"""The generator and discriminator of GAT, plain transformers.

Hyun et al. 2025, "Scalable GANs with transformers", section 3. Tokens stay in the precision of the parameters. What a block
adds to them is computed in that of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.families.gat.config import LEVELS, DiscriminatorConfig, GeneratorConfig
from stylegan_dist.families.gat.layers import (
    EMBEDDING_STD,
    Attention,
    Linear,
    Mapping,
    RmsNorm,
    SwiGlu,
    patches,
    positions,
    rms_norm,
    rotations,
    unpatched,
)
from stylegan_dist.families.gat.levels import noised
from stylegan_dist.networks.generator import Generator as SampleGenerator
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Draw, Precision, run_block

MODULATION_GAIN = 0.1  # of the initial weights
LAYER_SCALE = 0.1      # initial


class GeneratorBlock(nn.Module):
    """x + g1 Attn(RMS(x) (1 + s1)), then x + g2 SwiGLU(RMS(x) (1 + s2)); s and g are linear functions of the style."""

    def __init__(self, settings: GeneratorConfig, clamp: float | None):
        super().__init__()
        width = settings.width
        self.modulation = Linear(width, 4 * width, MODULATION_GAIN)
        self.attention = Attention(width, settings.heads)
        self.mlp = SwiGlu(width, settings.hidden, clamp)

    def forward(self, x: Tensor, style: Tensor, rotation: Tensor, dtype: torch.dtype) -> Tensor:
        """x: [N, T, width], style: [N, width]."""
        scale1, gate1, scale2, gate2 = self.modulation(style)[:, None].chunk(4, dim=2)
        x = x + gate1 * self.attention((rms_norm(x) * (1 + scale1)).to(dtype), rotation)
        return x + gate2 * self.mlp((rms_norm(x) * (1 + scale2)).to(dtype))


class Head(nn.Module):
    """An output: tokens [N, T, width] -> patches [N, T, values]."""

    def __init__(self, width: int, values: int):
        super().__init__()
        self.modulation = Linear(width, width, MODULATION_GAIN)
        self.out = Linear(width, values)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.out(rms_norm(x) * (1 + self.modulation(style)[:, None]))


class Synthesis(nn.Module):
    """w to images at all levels.

    Args:
        shape: any resolution that the patch divides.
        settings: resolved.
        recompute: blocks compute their activations again in the backward pass; 0 for none.
    """

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision, recompute: int):
        super().__init__()
        self.resolution, self.patch, self.settings = shape.resolution, settings.patch, settings
        self.precision, self.recompute = precision, 0 < recompute <= shape.resolution
        self.blocks = nn.ModuleList(GeneratorBlock(settings, precision.clamp) for _ in range(settings.depth))
        self.heads = nn.ModuleList(Head(settings.width, shape.channels * settings.patch**2) for _ in range(LEVELS))

    def forward(self, w: Tensor) -> Tensor:
        """w -> images [N, levels, C, R, R], coarse to fine, in the dtype of w; each level adds to the one before.

        Args:
            w: [N, width], or one for each block [N, blocks, width]; an output has that of the block before it.
        """
        settings, side = self.settings, self.resolution // self.patch
        styles = F.silu(w).unbind(1) if w.dim() == 3 else [F.silu(w)] * settings.depth
        x = positions(settings.width, side, w.dtype, w.device).expand(w.shape[0], -1, -1)
        rotation = rotations(settings.width // settings.heads, side, 0, w.dtype, w.device)
        dtype = self.precision.of_block(self.resolution, self.resolution, w.dtype)
        levels: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = run_block(block, self.recompute, x, styles[i], rotation, dtype)
            done, rest = divmod(i + 1, settings.depth // LEVELS)
            if not rest:
                image = self.heads[done - 1](x, styles[i])
                levels.append(levels[-1] + image if levels else image)
        return torch.stack([unpatched(level, self.patch) for level in levels], dim=1)


class Generator(SampleGenerator):
    """Mapping and synthesis. Its latents are w, its places in W+ the blocks; its samples are the last level.

    Args:
        shape, settings, recompute: as of `Synthesis`.
    """

    w_avg: Tensor  # [classes, width], running mean of the w of each class; of all, where there are none

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision = Precision(),  # noqa: B008 - frozen
                 recompute: int = 0):
        super().__init__()
        self.z_dim, self.num_classes = settings.z_dim, shape.num_classes
        self.mapping = Mapping(settings.z_dim, shape.num_classes, settings.class_dim, settings.width)
        self.synthesis = Synthesis(shape, settings, precision, recompute)
        self.num_ws = settings.depth
        self.register_buffer("w_avg", torch.zeros(max(shape.num_classes, 1), settings.width))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images [N, C, R, R] of latents z [N, z_dim] and labels int64 [N]."""
        return self.synthesis(self.mapping(z, labels))[:, -1]

    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        """w [N, width], pulled to the mean of its class."""
        w = self.mapping(z, labels)
        if not isinstance(truncation, Tensor) and truncation == 1:
            return w
        if not self.num_classes:
            return self.w_avg.lerp(w, truncation)
        assert labels is not None, "a conditional network needs labels"
        return F.embedding(labels, self.w_avg).lerp(w, truncation)

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        return self.synthesis(latents)[:, -1]


class DiscriminatorBlock(nn.Module):
    """x + l1 Attn(norm(x)), then x + l2 SwiGLU(norm(x)); l are learned vectors (Touvron et al. 2021, LayerScale)."""

    def __init__(self, settings: DiscriminatorConfig, clamp: float | None, plain: bool):
        super().__init__()
        width = settings.width
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.attention = Attention(width, settings.heads, plain)
        self.mlp = SwiGlu(width, settings.hidden, clamp)
        self.scale1, self.scale2 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def init_parameters(self, draw: Draw) -> None:
        self.scale1.fill_(LAYER_SCALE)
        self.scale2.fill_(LAYER_SCALE)

    def forward(self, x: Tensor, rotation: Tensor, dtype: torch.dtype) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x).to(dtype), rotation)
        return x + self.scale2 * self.mlp(self.norm2(x).to(dtype))


class Discriminator(nn.Module):
    """Images at all levels to logits. With classes the logit is the scalar product of features with a mapped label.

    Args:
        shape, settings, recompute: as of the generator.
        plain: attention that can be differentiated twice.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision(),  # noqa: B008
                 recompute: int = 0, plain: bool = False):
        super().__init__()
        self.resolution, self.patch, self.settings = shape.resolution, settings.patch, settings
        self.precision, self.recompute = precision, 0 < recompute <= shape.resolution
        self.embed = Linear(LEVELS * shape.channels * settings.patch**2, settings.width)
        self.cls = nn.Parameter(torch.empty(settings.width))
        self.blocks = nn.ModuleList(DiscriminatorBlock(settings, precision.clamp, plain) for _ in range(settings.depth))
        self.norm = RmsNorm(settings.width)
        classes = shape.num_classes
        self.out = Linear(settings.width, settings.class_dim if classes else 1)
        self.mapping = Mapping(0, classes, settings.class_dim, settings.class_dim) if classes else None

    def init_parameters(self, draw: Draw) -> None:
        self.cls.copy_(draw("cls", self.cls.shape) * EMBEDDING_STD)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [N], full precision.

        Args:
            images: [N, levels, C, R, R], under their noise; or [N, C, R, R], which come to all levels, under a noise that is
                always the same.
            labels: int64 [N] or None.
        """
        features = self.out(self.features(images))
        if self.mapping is None:
            return features[:, 0]
        return (features * self.mapping(None, labels)).sum(dim=1)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: images as of `forward` -> [N, width], full precision."""
        full, side, settings = self.cls.dtype, self.resolution // self.patch, self.settings
        if images.dim() == 4:
            images = _at_all_levels(images)
        tokens = patches(images.flatten(1, 2).to(full), self.patch)
        # As one list, so that the gradients of the layer are sums over contiguous values.
        x = self.embed(tokens.flatten(0, 1)).view(*tokens.shape[:2], settings.width)
        x = x + positions(settings.width, side, full, x.device)
        x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], dim=1)
        rotation = rotations(settings.width // settings.heads, side, 1, full, x.device)
        dtype = self.precision.of_block(self.resolution, self.resolution, full)
        for block in self.blocks:
            x = run_block(block, self.recompute, x, rotation, dtype)
        return self.norm(x[:, 0])


def _at_all_levels(images: Tensor) -> Tensor:
    """[N, C, R, R] -> [N, levels, C, R, R], under the noise of one address."""
    levels = images[:, None].expand(-1, LEVELS, -1, -1, -1)
    zero = torch.zeros(1, dtype=torch.int64, device=images.device)
    return noised(levels, randomness.normal(0, "gat.levels", zero, levels.shape[1:]).to(images.dtype).expand_as(levels))
