"""Vision transformers (Dosovitskiy et al. 2021) of DINOv2 (Oquab et al. 2024) and of CLIP (Radford et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.features.layers import Maps, Trunk

PATCH = 14     # pixels of the side of a patch
_HEAD = 64     # channels of a head of attention
_MAPS = 4      # layers of the perceptual distance, in equal distances


class _Block(nn.Module):
    """Attention and a perceptron of two layers, each on normalised input and added to it.

    Args:
        scaled: what is added is scaled, channel by channel (Touvron et al. 2021, "Going deeper with image transformers").
        quick: GELU as x sigmoid(1.702 x), which CLIP was trained with, instead of the exact one.
    """

    def __init__(self, width: int, scaled: bool, quick: bool, epsilon: float):
        super().__init__()
        self.quick, self.heads = quick, width // _HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.scale2 = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._scaled(self._attention(self.norm1(x)), self.scale1)
        inner = self.fc1(self.norm2(x))
        inner = inner * torch.sigmoid(1.702 * inner) if self.quick else F.gelu(inner)
        return x + self._scaled(self.fc2(inner), self.scale2)

    def _attention(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        q, k, v = self.qkv(x).view(samples, tokens, 3, self.heads, _HEAD).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(samples, tokens, width))

    @staticmethod
    def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
        return x if scale is None else x * scale


class _Transformer(Trunk):
    """Patches and a class token, with positions, through blocks.

    Args:
        width, depth: channels of a token, and blocks.
        side: patches of a side, for which positions are learnt.
    """

    def __init__(self, width: int, depth: int, side: int, scaled: bool, quick: bool, epsilon: float):
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH, bias=scaled)
        self.token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + side**2, width))
        self.blocks = nn.ModuleList(_Block(width, scaled, quick, epsilon) for _ in range(depth))
        self.last = nn.LayerNorm(width, epsilon)
        self.side = side

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        patches = self.patches(x)
        height, width = patches.shape[2:]
        x = torch.cat([self.token.expand(len(x), 1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = self.enter(x + self.positions_for(height, width))
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if maps is not None and number % (len(self.blocks) // _MAPS) == 0:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return self.leave(self.last(x[:, 0]))

    def positions_for(self, height: int, width: int) -> Tensor:
        """Of the class token, and of so many patches."""
        assert height == width == self.side, "the input has the size of the training"
        return self.positions

    def enter(self, x: Tensor) -> Tensor:
        return x

    def leave(self, x: Tensor) -> Tensor:
        return x


class DinoV2(_Transformer):
    """The normalised class token; x is normalised with ImageNet's mean and standard deviation.

    Trained at 518 x 518. For another size its positions are interpolated as its authors do, bicubic, with a scale that is
    computed from 0.1 patches more than there are. That moves the positions a little, and the published figures contain it.

    Args:
        width: 384 (small) or 1024 (large).
        depth: 12 or 24.
    """

    def __init__(self, width: int, depth: int):
        super().__init__(width, depth, side=37, scaled=True, quick=False, epsilon=1e-6)
        self.dimensions = width

    @classmethod
    def rename(cls, name: str) -> str | None:
        if name == "mask_token":  # of its training
            return None
        name = {"cls_token": "token", "pos_embed": "positions"}.get(name, name)
        for theirs, ours in (("patch_embed.proj.", "patches."), (".attn.qkv.", ".qkv."), (".attn.proj.", ".out."),
                             (".ls1.gamma", ".scale1"), (".ls2.gamma", ".scale2"), (".mlp.", ".")):
            name = name.replace(theirs, ours)
        return name.replace("norm.", "last.") if name.startswith("norm.") else name

    def positions_for(self, height: int, width: int) -> Tensor:
        if height == width == self.side:
            return self.positions
        grid = self.positions[1:].T.unflatten(1, (self.side, self.side))[None]
        scale = (height + 0.1) / self.side, (width + 0.1) / self.side
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.positions[:1], grid[0].flatten(1).T])


class ClipVision(_Transformer):
    """The image side of CLIP ViT-L/14 at 336 pixels: an embedding of 768 numbers. Its length has no meaning; the CMMD
    (Jayasumana et al. 2024) divides by it.

    Args:
        depth: blocks.
    """

    dimensions = 768

    def __init__(self, width: int = 1024, depth: int = 24):
        super().__init__(width, depth, side=24, scaled=False, quick=True, epsilon=1e-5)
        self.first = nn.LayerNorm(width, 1e-5)
        self.projection = nn.Parameter(torch.zeros(width, self.dimensions))

    @classmethod
    def rename(cls, name: str) -> str | None:
        if not name.startswith("visual."):  # the text side
            return None
        name = name.removeprefix("visual.")
        name = {"class_embedding": "token", "positional_embedding": "positions", "proj": "projection"}.get(name, name)
        for theirs, ours in (("transformer.resblocks.", "blocks."), (".attn.in_proj_", ".qkv."), (".attn.out_proj.", ".out."),
                             (".ln_1.", ".norm1."), (".ln_2.", ".norm2."), (".mlp.c_fc.", ".fc1."),
                             (".mlp.c_proj.", ".fc2."), ("ln_pre.", "first."), ("ln_post.", "last."), ("conv1.", "patches.")):
            name = name.replace(theirs, ours)
        return name

    def enter(self, x: Tensor) -> Tensor:
        return self.first(x)

    def leave(self, x: Tensor) -> Tensor:
        return x @ self.projection
