"""Feature networks with random weights, and files that hold them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stylegan_dist.features import registry
from stylegan_dist.features.layers import Normalisation, Trunk, ready
from stylegan_dist.features.network import FeatureNetwork


def random_trunk(kind: type[Trunk], **options: object) -> Trunk:
    """A trunk with random weights, ready to use."""
    trunk = kind(**options)
    randomize(trunk)
    return ready(trunk)


def randomize(network: nn.Module) -> None:
    """Every part of a network matters: no scale is one, no bias zero. Values keep their size through the layers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1, generator=generator)
        for module in network.modules():
            if isinstance(module, Normalisation):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1, generator=generator)


def random_network(name: str, device: str = "cpu") -> FeatureNetwork:
    """A network of the registry with random weights."""
    entry = registry.NETWORKS[name]
    return FeatureNetwork(entry.short, entry.weights.sha256, random_trunk(entry.trunk, **entry.options), entry.samples, device)


def save_random(kind: type[Trunk], path: Path, **options: object) -> dict[str, Tensor]:
    """Write a file of weights, as published ones are; returns the tensors."""
    trunk = kind(**options)
    randomize(trunk)
    torch.save(trunk.state_dict(), path)
    return trunk.state_dict()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, **changes: object) -> None:
    """Make a network of the registry expect a file with this content.

    Args:
        changes: other fields of its `Weights`.
    """
    entry = registry.NETWORKS[name]
    weights = replace(entry.weights, sha256=hashlib.sha256(content).hexdigest(), size=len(content), **changes)
    monkeypatch.setitem(registry.NETWORKS, name, replace(entry, weights=weights))
