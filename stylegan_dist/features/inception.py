"""The Inception network of 2015-12-05, by which the FID and the inception score are defined.

It is Inception-v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", figures 5 to 7 and 10)
with three peculiarities of the graph that was published for TensorFlow: averages of 3 x 3 pixels at a border are taken over
the pixels that are there, the pooling of the last block is a maximum, and the classifier has 1008 outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.features.layers import Convolution, Maps, Trunk


class _Step(NamedTuple):
    """A convolution of a branch: its name in the file, its width, and its kernel."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch begins with "average", "maximum" or "narrow" (a maximum with stride 2), if it pools. Steps in a list stand side
# by side.
_Branch = tuple["str | _Step | list[_Step]", ...]


def _wide(name: str, width: int) -> _Step:
    return _Step(name, width, (1, 7))


def _high(name: str, width: int) -> _Step:
    return _Step(name, width, (7, 1))


def _figure5(pool: int) -> list[_Branch]:
    return [
        (_Step("branch1x1", 64),),
        (_Step("branch5x5_1", 48), _Step("branch5x5_2", 64, (5, 5))),
        (_Step("branch3x3dbl_1", 64), _Step("branch3x3dbl_2", 96, (3, 3)), _Step("branch3x3dbl_3", 96, (3, 3))),
        ("average", _Step("branch_pool", pool)),
    ]


def _figure6(inner: int) -> list[_Branch]:
    return [
        (_Step("branch1x1", 192),),
        (_Step("branch7x7_1", inner), _wide("branch7x7_2", inner), _high("branch7x7_3", 192)),
        (_Step("branch7x7dbl_1", inner), _high("branch7x7dbl_2", inner), _wide("branch7x7dbl_3", inner),
         _high("branch7x7dbl_4", inner), _wide("branch7x7dbl_5", 192)),
        ("average", _Step("branch_pool", 192)),
    ]


def _figure7(pool: str) -> list[_Branch]:
    return [
        (_Step("branch1x1", 320),),
        (_Step("branch3x3_1", 384), [_Step("branch3x3_2a", 384, (1, 3)), _Step("branch3x3_2b", 384, (3, 1))]),
        (_Step("branch3x3dbl_1", 448), _Step("branch3x3dbl_2", 384, (3, 3)),
         [_Step("branch3x3dbl_3a", 384, (1, 3)), _Step("branch3x3dbl_3b", 384, (3, 1))]),
        (pool, _Step("branch_pool", 192)),
    ]


_MIXED: dict[str, list[_Branch]] = {
    "Mixed_5b": _figure5(32), "Mixed_5c": _figure5(64), "Mixed_5d": _figure5(64),
    "Mixed_6a": [
        (_Step("branch3x3", 384, (3, 3), 2),),
        (_Step("branch3x3dbl_1", 64), _Step("branch3x3dbl_2", 96, (3, 3)), _Step("branch3x3dbl_3", 96, (3, 3), 2)),
        ("narrow",),
    ],
    "Mixed_6b": _figure6(128), "Mixed_6c": _figure6(160), "Mixed_6d": _figure6(160), "Mixed_6e": _figure6(192),
    "Mixed_7a": [
        (_Step("branch3x3_1", 192), _Step("branch3x3_2", 320, (3, 3), 2)),
        (_Step("branch7x7x3_1", 192), _wide("branch7x7x3_2", 192), _high("branch7x7x3_3", 192),
         _Step("branch7x7x3_4", 192, (3, 3), 2)),
        ("narrow",),
    ],
    "Mixed_7b": _figure7("average"), "Mixed_7c": _figure7("maximum"),
}
_KEPT = ("Mixed_5d", "Mixed_6e", "Mixed_7c")  # the last block of each resolution


class _Mixed(nn.Module):
    """Branches side by side; their channels are concatenated."""

    def __init__(self, inputs: int, branches: list[_Branch]):
        super().__init__()
        self.branches = branches
        self.width = 0
        for branch in branches:
            width = inputs
            for step in branch:
                if isinstance(step, str):
                    continue
                beside = step if isinstance(step, list) else [step]
                for one in beside:
                    padding = (0, 0) if one.stride > 1 else (one.kernel[0] // 2, one.kernel[1] // 2)
                    self.add_module(one.name, Convolution(width, one.width, one.kernel, one.stride, padding=padding))
                width = sum(one.width for one in beside)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], 1)

    def _branch(self, x: Tensor, branch: _Branch) -> Tensor:
        for step in branch:
            if step == "average":
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            elif step == "maximum":
                x = F.max_pool2d(x, 3, 1, 1)
            elif step == "narrow":
                x = F.max_pool2d(x, 3, 2)
            elif isinstance(step, list):
                x = torch.cat([self.get_submodule(one.name)(x) for one in step], 1)
            else:
                assert isinstance(step, _Step), "words are above"
                x = self.get_submodule(step.name)(x)
        return x


class Inception(Trunk):
    """Features 2048, the mean over the last maps ("pool3"); x is (pixel - 128) / 128, 299 x 299."""

    dimensions = 2048
    classes = 1008

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3))
        width = 192
        for name, branches in _MIXED.items():
            mixed = _Mixed(width, branches)
            self.add_module(name, mixed)
            width = mixed.width
        self.fc = nn.Linear(width, self.classes)

    @classmethod
    def rename(cls, name: str) -> str | None:
        return None if name.endswith("num_batches_tracked") else name

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        maps = [] if maps is None else maps
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        maps.append(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        maps.append(x)
        x = F.max_pool2d(x, 3, 2)
        for name in _MIXED:
            x = self.get_submodule(name)(x)
            if name in _KEPT:
                maps.append(x)
        return x.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Without the bias, as the inception score has it since its first implementation."""
        return F.linear(features, self.fc.weight)
