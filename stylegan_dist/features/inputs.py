"""How samples become the input of a feature network: what it takes, its size, and its normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.constants import constant
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Kind

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)   # mean and standard deviation of its pixels
CLIP = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)  # those that CLIP was trained with
_ADVICE = "train a network on your own data with `stylegan-dist train-features SHARDS OUT`, and use OUT"


class Input(ABC):
    """What a feature network takes, and how that is prepared for its trunk."""

    dtype: torch.dtype   # of samples
    resize: str          # description for the keys of caches and for people

    @abstractmethod
    def check(self, resolution: tuple[int, int], channels: int) -> None:
        """Raise InputError where samples of this form cannot be compared, and say what to do."""

    @abstractmethod
    def from_samples(self, samples: Tensor) -> Tensor:
        """Samples of `dtype`, [N, C, H, W], to the trunk's input, float32."""

    @abstractmethod
    def from_network(self, values: Tensor) -> Tensor:
        """Float32 values in the range of generators, [N, C, H, W], to the trunk's input, differentiable."""


@dataclass(frozen=True)
class Photographs(Input):
    """8-bit images, grey or RGB, of any size. Grey becomes three equal channels.

    Args:
        size: pixels of the side of the trunk's input; what is not square is stretched.
        filter: "tf1" or "bicubic", see `resized`.
        offset, scale: the trunk sees (pixel - offset) / scale, pixels from 0 to 255; one for each of red, green and blue.
    """

    size: int
    filter: str
    offset: tuple[float, float, float]
    scale: tuple[float, float, float]
    dtype = torch.uint8

    @property
    def resize(self) -> str:  # type: ignore[override]
        return {"tf1": "bilinear-tf1", "bicubic": "bicubic-antialias"}[self.filter] + f"-{self.size}"

    def check(self, resolution: tuple[int, int], channels: int) -> None:
        if channels not in (1, 3):
            raise InputError(f"this feature network compares images of 1 or 3 channels, not of {channels}: {_ADVICE}")

    def from_samples(self, samples: Tensor) -> Tensor:
        return self._prepare(samples.to(torch.float32))

    def from_network(self, values: Tensor) -> Tensor:
        return self._prepare(values.to(torch.float32) * 127.5 + 127.5)

    def _prepare(self, pixels: Tensor) -> Tensor:
        pixels = resized(pixels, self.size, self.filter).expand(-1, 3, -1, -1)
        return (pixels - _colours(self.offset, pixels.device)) / _colours(self.scale, pixels.device)


@dataclass(frozen=True)
class OwnSamples(Input):
    """Samples of the form that a network was trained on.

    Args:
        kind: of its training data.
        resolution, channels: of its training data.
    """

    kind: Kind
    resolution: int
    channels: int

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return getattr(torch, self.kind.dtype)

    @property
    def resize(self) -> str:  # type: ignore[override]
        return "none"

    def check(self, resolution: tuple[int, int], channels: int) -> None:
        if (*resolution, channels) != (self.resolution, self.resolution, self.channels):
            raise InputError(f"this feature network was trained on samples of {self.channels} x {self.resolution} x "
                             f"{self.resolution}, not of {channels} x {resolution[0]} x {resolution[1]}: {_ADVICE}")

    def from_samples(self, samples: Tensor) -> Tensor:
        return self.kind.to_network(samples)

    def from_network(self, values: Tensor) -> Tensor:
        return values.to(torch.float32)


@constant
def _colours(numbers: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device).view(3, 1, 1)


def resized(pixels: Tensor, size: int, how: str) -> Tensor:
    """Square images of float32 pixels from 0 to 255: [N, C, H, W] -> [N, C, size, size].

    Args:
        how: "bicubic": a cubic filter (a = -0.5) that is as wide as the pixels of the smaller image, cut to 0 to 255, as
            libraries of images do. "tf1": bilinear without a filter, pixel i of the result at i H / size, as TensorFlow 1
            did, and with it the FID.
    """
    if how == "tf1":
        return _lerp(_lerp(pixels, size, 3), size, 2)
    assert how == "bicubic", how
    if pixels.shape[2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 255)


def _lerp(pixels: Tensor, size: int, dimension: int) -> Tensor:
    have = pixels.shape[dimension]
    place = torch.arange(size, dtype=torch.float32, device=pixels.device) * (have / size)
    lower = place.floor().long().clamp(max=have - 1)
    upper = (lower + 1).clamp(max=have - 1)
    share = (place - lower).view(-1, *[1] * (3 - dimension))
    first, second = pixels.index_select(dimension, lower), pixels.index_select(dimension, upper)
    return first + (second - first) * share
