"""GAT's networks and its game in their plainest form, to test the fast form against.

Written from the papers, not from the implementation: loops over images, heads and levels, rotations as products of complex
numbers, normal numbers by their addresses. Works in float64. Networks are given by their state dicts.

Sources: Hyun et al. 2025 (blocks, levels), Vaswani et al. 2017 (attention, waves of positions), Su et al. 2021 (rotary
positions), Shazeer 2020 (SwiGLU), Zhang and Sennrich 2019 (RMS norm), Lin et al. 2025 (approximate penalties).
"""

from __future__ import annotations

import math

import torch
from reference import State, below
from torch import Tensor

from stylegan_dist import randomness

TIMES = (0.885, 0.76, 0.51, 0.01)  # share of the noise in each level, coarse to fine


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def linear(state: State, name: str, x: Tensor, factor: float = 1.0) -> Tensor:
    return torch.einsum("...i,oi->...o", x, state[f"{name}.weight"] * factor) + state[f"{name}.bias"] * factor


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-8)


def mapping(state: State, z: Tensor | None, labels: Tensor | None) -> Tensor:
    embedded = [] if labels is None else [torch.stack([state["embed.weight"][:, k] for k in labels.tolist()])]
    x = torch.cat([unit(each) for each in (z, *embedded)], 1) if z is not None else embedded[0]
    return linear(state, "second", silu(linear(state, "first", x, 0.01)), 0.01)


def positions(width: int, side: int) -> Tensor:
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                frequency = 10000 ** (-k / quarter)
                for part, value in enumerate((math.sin(row * frequency), math.cos(row * frequency),
                                              math.sin(column * frequency), math.cos(column * frequency))):
                    table[row * side + column, part * quarter + k] = value
    return table


def turned(x: Tensor, side: int) -> Tensor:
    """One head's tokens [T, d]; those before the image's are not turned."""
    width = x.shape[1]
    before = len(x) - side * side
    turns = torch.ones(len(x), width // 2, dtype=torch.complex128)
    for row in range(side):
        for column in range(side):
            for k in range(width // 4):
                frequency = 10000 ** (-k / (width // 4))
                token = before + row * side + column
                turns[token, k] = complex(math.cos(row * frequency), math.sin(row * frequency))
                turns[token, width // 4 + k] = complex(math.cos(column * frequency), math.sin(column * frequency))
    result = torch.complex(x[:, :width // 2], x[:, width // 2:]) * turns
    return torch.cat([result.real, result.imag], 1)


def attention(state: State, x: Tensor, heads: int, side: int) -> Tensor:
    """x: [N, T, width]."""
    width = x.shape[2]
    size = width // heads
    images = []
    for image in linear(state, "qkv", x):
        mixed = []
        for h in range(heads):
            q, k, v = (image[:, part * width + h * size:part * width + (h + 1) * size] for part in range(3))
            q = turned(rms(q) * state["q_norm.weight"], side)
            k = turned(rms(k) * state["k_norm.weight"], side)
            weights = torch.exp(q @ k.t() / math.sqrt(size))
            mixed.append(weights / weights.sum(1, keepdim=True) @ v)
        images.append(torch.cat(mixed, 1))
    return linear(state, "out", torch.stack(images))


def mlp(state: State, x: Tensor) -> Tensor:
    inner = linear(state, "inner", x)
    hidden = inner.shape[-1] // 2
    return linear(state, "out", silu(inner[..., :hidden]) * inner[..., hidden:])


def assembled(tokens: Tensor, patch: int) -> Tensor:
    """Tokens [N, T, C patch^2] as images [N, C, R, R]."""
    side = math.isqrt(tokens.shape[1])
    images = torch.zeros(len(tokens), tokens.shape[2] // patch**2, side * patch, side * patch, dtype=tokens.dtype)
    for place in range(side * side):
        top, left = place // side * patch, place % side * patch
        images[:, :, top:top + patch, left:left + patch] = tokens[:, place].reshape(len(tokens), -1, patch, patch)
    return images


def cut(images: Tensor, patch: int) -> Tensor:
    side = images.shape[2] // patch
    return torch.stack([images[:, :, i // side * patch:i // side * patch + patch, i % side * patch:i % side * patch + patch]
                        .reshape(len(images), -1) for i in range(side * side)], 1)


def synthesis(state: State, w: Tensor, heads: int, side: int, patch: int) -> Tensor:
    """[N, levels, C, R, R] of the parameters below "synthesis."."""
    style, width = silu(w)[:, None], w.shape[1]
    x = torch.stack([positions(width, side)] * len(w))
    depth = max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")) + 1
    images = []
    for i in range(depth):
        block = below(state, f"blocks.{i}.")
        numbers = linear(block, "modulation", style)
        scale1, gate1, scale2, gate2 = (numbers[..., j * width:(j + 1) * width] for j in range(4))
        x = x + gate1 * attention(below(block, "attention."), rms(x) * (1 + scale1), heads, side)
        x = x + gate2 * mlp(below(block, "mlp."), rms(x) * (1 + scale2))
        if (i + 1) % (depth // 4) == 0:
            head = below(state, f"heads.{(i + 1) // (depth // 4) - 1}.")
            image = assembled(linear(head, "out", rms(x) * (1 + linear(head, "modulation", style))), patch)
            images.append(image if not images else images[-1] + image)
    return torch.stack(images, 1)


def discriminator(state: State, levels: Tensor, labels: Tensor | None, heads: int, side: int, patch: int) -> Tensor:
    """Logits [N] of levels [N, levels, C, R, R] under their noise."""
    width = len(state["cls"])
    x = linear(state, "embed", cut(torch.cat(list(levels.unbind(1)), 1), patch)) + positions(width, side)
    x = torch.cat([state["cls"].expand(len(x), 1, width), x], 1)
    depth = max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")) + 1
    for i in range(depth):
        block = below(state, f"blocks.{i}.")
        x = x + block["scale1"] * attention(below(block, "attention."), rms(x) * block["norm1.weight"], heads, side)
        x = x + block["scale2"] * mlp(below(block, "mlp."), rms(x) * block["norm2.weight"])
    features = linear(state, "out", rms(x[:, 0]) * state["norm.weight"])
    if labels is None:
        return features[:, 0]
    return (features * mapping(below(state, "mapping."), None, labels)).sum(1)


def noisy_levels(images: Tensor, seed: int, purpose: str, index: Tensor) -> Tensor:
    """Each level by itself, with the noise of the chain written out; images: [N, levels, C, H, W]."""
    e = randomness.normal(seed, purpose, index, images.shape[1:]).double()
    last = len(TIMES) - 1
    noise = {last: TIMES[last] * e[:, last]}
    for i in range(last - 1, -1, -1):
        d = (1 - TIMES[i]) / (1 - TIMES[i + 1])
        noise[i] = noise[i + 1] * d + math.sqrt(TIMES[i]**2 - TIMES[i + 1]**2 * d**2) * e[:, i]
    return torch.stack([images[:, i] * (1 - t) + noise[i] for i, t in enumerate(TIMES)], 1)
