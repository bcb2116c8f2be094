"""Layers of transformers over the patches of an image.

Vaswani et al. 2017 (attention); Dosovitskiy et al. 2021 (patches); Zhang and Sennrich 2019 (RMS norm); Shazeer 2020 (SwiGLU);
Su et al. 2021 (rotary positions).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.constants import constant
from stylegan_dist.networks.layers import Draw, columns_of, normalize_second_moment

EPSILON = 1e-6
BASE = 10_000.0           # the longest wave of positions is 2 pi BASE tokens long
EMBEDDING_STD = 0.02
SLOW = 0.01               # learning rate of the layers that see labels and latents, relative to the others


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean_j x_j^2 + 1e-6) over the last dimension."""
    return x * (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()


class RmsNorm(nn.Module):
    """`rms_norm` times a learned vector."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight


class Linear(nn.Module):
    """[..., in] -> [..., out] in the dtype of the input.

    Args:
        gain: weights begin with the standard deviation gain sqrt(2 / (in + out)) (Glorot and Bengio 2010); the bias at 0.
        learning_rate: relative to that of the others.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0, learning_rate: float = 1.0):
        super().__init__()
        self.gain = gain
        self.learning_rate = learning_rate
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def init_parameters(self, draw: Draw) -> None:
        std = self.gain * math.sqrt(2 / sum(self.weight.shape))
        self.weight.copy_(draw("weight", self.weight.shape) * (std / self.learning_rate))
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p if self.learning_rate == 1 else p * self.learning_rate for p in (self.weight, self.bias))
        return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


class Embedding(nn.Module):
    """Labels int64 [N] -> [N, width]."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, classes))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) * EMBEDDING_STD)

    def forward(self, labels: Tensor | None) -> Tensor:
        return columns_of(self.weight, labels)


class Mapping(nn.Module):
    """z and labels to w: two dense layers that learn slowly, with a SiLU between them.

    Args:
        z_dim: width of z; 0 for a mapping of the label alone, whose embedding is not normalised.
        classes: 0 for no labels.
        class_dim: width of their embedding.
        width: of w.
    """

    def __init__(self, z_dim: int, classes: int, class_dim: int, width: int):
        super().__init__()
        self.embed = Embedding(classes, class_dim) if classes else None
        self.first = Linear(z_dim + (class_dim if classes else 0), width, learning_rate=SLOW)
        self.second = Linear(width, width, learning_rate=SLOW)

    def forward(self, z: Tensor | None, labels: Tensor | None) -> Tensor:
        """z: [N, z_dim] or None, labels: int64 [N] or None -> [N, width]."""
        parts = [] if z is None else [normalize_second_moment(z.to(self.second.weight.dtype))]
        if self.embed is not None:
            embedded = self.embed(labels)
            parts.append(embedded if z is None else normalize_second_moment(embedded))
        return self.second(F.silu(self.first(torch.cat(parts, dim=1))))


class Attention(nn.Module):
    """Attention of tokens [N, T, width] in the dtype of its input; queries and keys are normalised, then rotated.

    Args:
        plain: as matrix products and a softmax, which can be differentiated twice. The fused kernels cannot, and need no memory
            for the T x T matrix.
    """

    def __init__(self, width: int, heads: int, plain: bool = False):
        super().__init__()
        self.heads = heads
        self.plain = plain
        self.qkv = Linear(width, 3 * width)
        self.q_norm = RmsNorm(width // heads)
        self.k_norm = RmsNorm(width // heads)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """rotation: [2, T, width / heads / 2], of `rotations`."""
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = (rotated(norm(half.to(rotation.dtype)), rotation).to(x.dtype)
                for norm, half in ((self.q_norm, q), (self.k_norm, k)))
        mixed = attend(q, k, v, self.plain)
        return self.out(mixed.transpose(1, 2).reshape(count, tokens, width))


def attend(q: Tensor, k: Tensor, v: Tensor, plain: bool = False) -> Tensor:
    """softmax(q k' / sqrt(d)) v of tensors [N, heads, T, d]."""
    if plain:
        return (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3) @ v
    if q.is_meta:  # where PyTorch takes the plain form: plan with the shapes of a kernel like those that devices have
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


class SwiGlu(nn.Module):
    """W2 (silu(a) b) with [a, b] = W1 x: [..., width] -> [..., width], in the dtype of its input.

    Args:
        clamp: bound of silu(a) b.
    """

    def __init__(self, width: int, hidden: int, clamp: float | None = None):
        super().__init__()
        self.clamp = clamp
        self.inner = Linear(width, 2 * hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, dim=-1)
        x = F.silu(gate) * value
        return self.out(x if self.clamp is None else x.clamp(-self.clamp, self.clamp))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Number j and number j + d / 2 of each token, as a vector of the plane, turned by an angle.

    Args:
        x: [..., T, d].
        rotation: [2, T, d / 2], cosines and sines.
    """
    (a, b), (cos, sin) = x.chunk(2, dim=-1), rotation
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@constant
def rotations(width: int, side: int, others: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines of the angles of tokens: [2, others + side^2, width / 2].

    Half of the angles are multiples of the row, half of the column, by BASE^(-4 k / width), k < width / 4. So a product of a
    rotated query and key depends on the difference of their places.

    Args:
        width: of a head, a multiple of 4.
        side: tokens in a row or column of the image.
        others: tokens before those of the image, which are not rotated.
    """
    angles = torch.cat(_waves(width // 4, side, device), dim=1)
    angles = torch.cat([torch.zeros(others, width // 2, dtype=torch.float64, device=device), angles])
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


@constant
def positions(width: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[side^2, width]: sine and cosine of waves of the row, then of the column of each token; width is a multiple of 4."""
    rows, columns = _waves(width // 4, side, device)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1).to(dtype)


def _waves(count: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each token times so many frequencies: float64 [side^2, count] each."""
    frequencies = BASE ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
    places = torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequencies
    return places.repeat_interleave(side, dim=0), places.repeat(side, 1)


def patches(images: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> tokens [N, (H / size) (W / size), C size^2], row by row."""
    count, channels, height, width = images.shape
    cut = images.reshape(count, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size**2)


def unpatched(tokens: Tensor, size: int) -> Tensor:
    """The inverse of `patches`, of square images."""
    count, places, values = tokens.shape
    side = math.isqrt(places)
    cut = tokens.reshape(count, side, side, values // size**2, size, size)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(count, values // size**2, side * size, side * size)
