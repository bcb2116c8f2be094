"""The random numbers of augmentation: one address for those of all transforms of an image.

Every transform has columns of its own. Its draws therefore do not depend on which other transforms take place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_dist import randomness


class Draws:
    """Draws for images, all at once, because each call costs a GPU some hundred kernels.

    Args:
        seed: of the run.
        purpose: of these draws, without the last word: "d_main.augment.real".
        index: int64 [N], global image numbers.
        like: what the numbers become: dtype and device.
        uniforms, normals: names of the columns, whose order is part of the address.
    """

    def __init__(self, seed: int, purpose: str, index: Tensor, like: Tensor, uniforms: Sequence[str],
                 normals: Sequence[str] = ()):
        self.seed, self.purpose, self.index = seed, purpose, index
        self._uniform = randomness.uniform(seed, f"{purpose}.uniform", index, len(uniforms)).to(like.dtype)
        self._uniforms = {name: column for column, name in enumerate(uniforms)}
        self._normals = {name: column for column, name in enumerate(normals)}
        if normals:
            self._normal = randomness.normal(seed, f"{purpose}.normal", index, (len(normals),)).to(like.dtype)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """In [low, high): [N]."""
        return self._uniform[:, self._uniforms[name]] * (high - low) + low

    def angle(self, name: str) -> Tensor:
        """In [-pi, pi): [N]."""
        return self.uniform(name, -math.pi, math.pi)

    def integer(self, name: str, count: int) -> Tensor:
        """0, ..., count - 1, as a float: [N]."""
        return (self.uniform(name) * count).floor().clamp(max=count - 1)  # the product may have been rounded up to `count`

    def normal(self, name: str) -> Tensor:
        """Standard normal: [N]."""
        return self._normal[:, self._normals[name]]

    def gate(self, name: str, probability: Tensor) -> Tensor:
        """True with a probability []: bool [N]."""
        return self.uniform(name) < probability

    def gated(self, name: str, probability: Tensor, value: Tensor, otherwise: float) -> Tensor:
        """`value` [N] where the gate of this name is open, else what changes nothing."""
        return torch.where(self.gate(name, probability), value, otherwise)

    def field(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers for every value of an image: [N, *shape]."""
        return randomness.normal(self.seed, f"{self.purpose}.noise", self.index, shape).to(like.dtype)
