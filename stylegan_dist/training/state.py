"""Everything that training changes: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stylegan_dist.config import to_dict
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.training.build import build_discriminator, build_generator, build_optimizer
from stylegan_dist.training.checkpoint import (
    load_network,
    load_state,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
)
from stylegan_dist.training.ema import AveragedGenerator
from stylegan_dist.training.phases import Objective
from stylegan_dist.training.rules import Resolved
from stylegan_dist.training.statistics import TickStatistics


class TrainState:
    """Networks, their average and optimizers, running means, and the number of images seen.

    Args:
        resolved: the configuration without `auto`.
        index: of the data set.
        device: where to train; the meta device for a state without values, to plan with.
    """

    def __init__(self, resolved: Resolved, index: DatasetIndex, device: torch.device):
        config = self.config = resolved.config
        shape = (index.resolution, index.channels, resolved.num_classes, device)
        self.data = {
            "fingerprint": index.fingerprint,
            "resolution": index.resolution,
            "channels": index.channels,
            "num_classes": resolved.num_classes,
        }
        self.nimg = 0
        self.segment = 0  # how often the run was continued
        self.statistics = TickStatistics()
        self.generator = build_generator(config, *shape)
        self.discriminator = build_discriminator(config, *shape)
        self.networks: dict[str, nn.Module] = {"g": self.generator, "d": self.discriminator}
        self.ema = AveragedGenerator(self.generator, config.ema.half_life_kimg * 1000, config.ema.rampup)
        counts = torch.tensor(index.class_counts) if resolved.num_classes else None
        self.objective = Objective(config, self.generator, self.discriminator, counts)
        self.phases = self.objective.phases()
        self.optimizers = {}
        for name, network in self.networks.items():
            lazy = next((p.interval for p in self.phases if p.network == name and p.interval > 1), 1)
            settings = getattr(config.optim, name)
            self.optimizers[name] = build_optimizer(network, settings, f"optim.{name}", lazy)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """File name -> tensors by name."""
        files = {name: dict(network.state_dict()) for name, network in self.networks.items()}
        files["g_ema"] = dict(self.ema.network.state_dict())
        for name, optimizer in self.optimizers.items():
            files[f"optimizer_{name}"] = optimizer_tensors(optimizer, self.networks[name])
        return files

    def facts(self) -> dict:
        """The content of state.json."""
        return {
            "nimg": self.nimg,
            "segment": self.segment,
            "path_mean": self.objective.path_mean.item(),  # a float32 goes through JSON unchanged
            "statistics": self.statistics.facts(),
            "data": self.data,
            "config": to_dict(self.config),
        }

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint; counts as a new segment."""
        facts = load_state(folder)
        for name, network in self.networks.items():
            load_network(network, folder, name)
            restore_optimizer(self.optimizers[name], network, load_tensors(folder, f"optimizer_{name}"))
        load_network(self.ema.network, folder, "g_ema")
        self.objective.path_mean.fill_(facts["path_mean"])
        self.statistics.restore(facts["statistics"], self.objective.path_mean.device)
        self.nimg = facts["nimg"]
        self.segment = facts["segment"] + 1

    def checksums(self) -> list[float]:
        """One number per network and average, equal on all ranks that train the same run."""
        networks = [*self.networks.values(), self.ema.network]
        return [float(sum(p.detach().double().sum() for p in network.parameters())) for network in networks]
