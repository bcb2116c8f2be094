"""Everything that training changes: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from stylegan_dist.config import to_dict
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.training.build import build_discriminator, build_generator, build_optimizer
from stylegan_dist.training.checkpoint import SavedTensors, Tensors, load_state
from stylegan_dist.training.ema import AveragedGenerator, SpreadAverage, restore_buffers
from stylegan_dist.training.engine import Engine, Learner, Ranks
from stylegan_dist.training.engine.data_parallel import FlatLearner
from stylegan_dist.training.phases import Objective, main_share
from stylegan_dist.training.rules import Resolved
from stylegan_dist.training.statistics import TickStatistics


class TrainState:
    """Networks, their average and optimizers, running means, and the number of images seen.

    Args:
        resolved: the configuration without `auto`.
        index: of the data set.
        device: where to train; the meta device for a state without values, to plan with.
        engine: lets the networks learn; None for this process alone.
    """

    def __init__(self, resolved: Resolved, index: DatasetIndex, device: torch.device, engine: Engine | None = None):
        config = self.config = resolved.config
        shape = (index.resolution, index.channels, resolved.num_classes, device)
        self.data = {
            "fingerprint": index.fingerprint,
            "resolution": index.resolution,
            "channels": index.channels,
            "num_classes": resolved.num_classes,
            **({"array": asdict(index.array)} if index.array else {}),
        }
        self.nimg = 0
        self.segment = 0  # how often the run was continued
        self.replaced = 0  # corrupt images so far, over all ranks
        self.statistics = TickStatistics()
        self.generator = build_generator(config, *shape)
        self.discriminator = build_discriminator(config, *shape)
        self.networks: dict[str, nn.Module] = {"g": self.generator, "d": self.discriminator}
        counts = torch.tensor(index.class_counts) if resolved.num_classes else None
        self.objective = Objective(config, self.generator, self.discriminator, counts)
        self.phases = self.objective.phases()
        average = AveragedGenerator(self.generator, config.ema.half_life_kimg * 1000, config.ema.rampup)
        self.optimizers = {}
        self.learners: dict[str, Learner] = {}
        for name, network in self.networks.items():
            optimizer = build_optimizer(network, getattr(config.optim, name), f"optim.{name}", main_share(self.phases, name))
            self.optimizers[name] = optimizer
            self.learners[name] = (engine.learner(name, network, optimizer) if engine
                                   else FlatLearner(network, optimizer, Ranks(device=device)))
        self.ema = average
        if config.ema.placement != "device":
            host = torch.device("cpu") if config.ema.placement == "cpu" else device
            self.ema = SpreadAverage(average, self.learners["g"], host)

    def tensors(self) -> Tensors:
        """File name -> tensors by name."""
        files = {name: {**learner.parameters(), **dict(learner.network.named_buffers())}
                 for name, learner in self.learners.items()}
        files["g_ema"] = self.ema.tensors()
        for name, learner in self.learners.items():
            files[f"optimizer_{name}"] = learner.optimizer_state()
        return files

    def facts(self) -> dict:
        """The content of state.json."""
        return {
            "nimg": self.nimg,
            "segment": self.segment,
            "replaced": self.replaced,
            "path_mean": self.objective.path_mean.item(),  # a float32 goes through JSON unchanged
            "statistics": self.statistics.facts(),
            "data": self.data,
            "config": to_dict(self.config),
        }

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint; counts as a new segment."""
        facts = load_state(folder)
        for name, learner in self.learners.items():
            saved = SavedTensors(folder, name)
            try:
                learner.restore(saved, SavedTensors(folder, f"optimizer_{name}"))
                restore_buffers(learner.network, saved)
            except InputError as error:
                raise InputError(f"{saved.path} does not fit the configured network: {error}") from None
        self.ema.restore(SavedTensors(folder, "g_ema"))
        self.objective.path_mean.fill_(facts["path_mean"])
        self.statistics.restore(facts["statistics"], self.objective.path_mean.device)
        self.nimg = facts["nimg"]
        self.segment = facts["segment"] + 1
        self.replaced = facts.get("replaced", 0)  # older checkpoints do not count

    def checksums(self) -> list[float]:
        """One number per network and average, equal on all ranks that train the same run."""
        return [*(learner.checksum() for learner in self.learners.values()), self.ema.checksum()]
