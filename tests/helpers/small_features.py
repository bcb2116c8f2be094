"""A feature network that takes no time: its weights are drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stylegan_dist.features.inputs import Photographs
from stylegan_dist.features.layers import Trunk
from stylegan_dist.features.network import FeatureNetwork


class SmallTrunk(Trunk):
    """Two convolutions and the mean; features [N, 16]."""

    dimensions, classes = 16, 3

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, self.dimensions, 3, 2)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        return self.second(self.first(x).relu()).relu().mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        return features[:, :self.classes]


def small_features(device: torch.device | str = "cpu") -> FeatureNetwork:
    samples = Photographs(16, "bicubic", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
    return FeatureNetwork("small", "0" * 64, SmallTrunk().eval(), samples, device)
