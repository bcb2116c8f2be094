"""The state of training. A checkpoint holds all of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from stylegan_dist import randomness
from stylegan_dist.config import to_dict
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.engine import Engine, Learner
from stylegan_dist.engine.data_parallel import FlatLearner
from stylegan_dist.errors import InputError
from stylegan_dist.families import family_of
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.objective.phases import main_share
from stylegan_dist.ranks import ALONE, Ranks
from stylegan_dist.training.build import build_discriminator, build_generator, build_optimizer, moving_arguments
from stylegan_dist.training.checkpoint import Tensors
from stylegan_dist.training.ema import AveragedGenerator, ShardedAverage, restore_buffers
from stylegan_dist.training.rules import Resolved
from stylegan_dist.training.saved import NAMES, STATE, Expected, RollBack, SavedTensors, expected_of, load_state
from stylegan_dist.training.statistics import BrokenSteps, TickStatistics
from stylegan_dist.training.transfer import Transfer


class TrainState:
    """Networks, their average and optimizers, running means, and the number of images seen.

    Args:
        resolved: the configuration without `auto`.
        index: of the data set.
        device: where to train; the meta device for a state without values, to plan with.
        engine: lets the networks learn; None for this process alone.
        transfer: what the networks begin with; None for random weights.
    Attributes:
        origin: where the first weights came from, if they were not random.
    """

    def __init__(self, resolved: Resolved, index: DatasetIndex, device: torch.device, engine: Engine | None = None,
                 transfer: Transfer | None = None):
        config = self.config = resolved.config
        shape = SampleShape(index.resolution, index.channels, resolved.num_classes)
        self.data = {
            "fingerprint": index.fingerprint,
            "resolution": index.resolution,
            "channels": index.channels,
            "num_classes": resolved.num_classes,
            **index.kind.facts(),
        }
        self.nimg = 0
        self.segment = 0  # how often the run was continued
        self.replaced = 0  # corrupt images so far, over all ranks
        self.rollbacks: list[RollBack] = []  # so far; they decide the draws and the learning rates
        self.statistics = TickStatistics()
        self.broken_steps = BrokenSteps(device)
        self.generator = build_generator(config, shape, device)
        self.discriminator = build_discriminator(config, shape, device)
        self.networks: dict[str, nn.Module] = {"g": self.generator, "d": self.discriminator}
        self.origin = transfer.origin if transfer else None
        average_values: dict[str, torch.Tensor] = {}
        if transfer:  # a rank that cannot read them must not leave the others waiting
            average_values = (engine or ALONE).together(lambda: transfer.begin(self.networks))
        counts = torch.tensor(index.class_counts) if resolved.num_classes else None
        self.objective = family_of(config).objective(config, self.generator, self.discriminator, counts)
        self.phases = self.objective.phases()
        average = AveragedGenerator(self.generator, config.ema.half_life_kimg, config.ema.rampup)
        self.optimizers = {}
        self.learners: dict[str, Learner] = {}
        self._main_shares = {name: main_share(self.phases, name) for name in self.networks}
        for name, network in self.networks.items():
            optimizer = build_optimizer(network, getattr(config.optim, name), f"optim.{name}", self._main_shares[name])
            self.optimizers[name] = optimizer
            self.learners[name] = (engine.learner(name, network, optimizer) if engine
                                   else FlatLearner(network, optimizer, Ranks(device=device)))
        self.ema = average
        if config.ema.placement != "device":
            host = torch.device("cpu") if config.ema.placement == "cpu" else device
            self.ema = ShardedAverage(average, self.learners["g"], host)
        if transfer:
            self.ema.restore(average_values)
            for name in self.objective.RUNNING:
                self.objective.running[name].fill_(transfer.running.get(name, 0.0))

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
            "rollbacks": [asdict(one) for one in self.rollbacks],
            "broken_steps": self.broken_steps.facts(),
            **{name: value.item() for name, value in self.objective.running.items()},  # float32 goes through JSON unchanged
            "statistics": self.statistics.facts(),
            "data": self.data,
            "config": to_dict(self.config),
            **({"origin": asdict(self.origin)} if self.origin else {}),
        }

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint of any engine; counts as a new segment.

        Raises:
            InputError: it is damaged or does not fit; the state is not to be used then.
        """
        try:
            facts, saved = load_state(folder), {name: SavedTensors(folder, name) for name in NAMES}
            if facts.data.facts() != self.data:
                raise InputError(f"{folder / STATE} is damaged (what it says of the data does not fit its fingerprint)")
            own = self.tensors()
            for name, learner in self.learners.items():
                saved[name].must_fit(expected_of(own[name]))
                if saved[f"optimizer_{name}"]:  # else there was no update yet: all were skipped
                    saved[f"optimizer_{name}"].must_fit(self._optimizer_state(name), f"optim.{name}")
                learner.restore(saved[name], saved[f"optimizer_{name}"])
                restore_buffers(learner.network, saved[name])
            saved["g_ema"].must_fit(expected_of(own["g_ema"]))
            self.ema.restore(saved["g_ema"])
        except InputError as error:
            raise InputError(f"{error}: restore that file, or move {folder} away to continue from an older one") from None
        for name, value in self.objective.running.items():
            value.fill_(facts.running[name])
        self.statistics.restore(facts.statistics, self.objective.device)
        self.broken_steps.restore(facts.broken_steps)
        self.nimg = facts.nimg
        self._follow(facts.rollbacks)
        self.segment = facts.segment + 1
        self.replaced = facts.replaced
        self.origin = facts.origin

    def go_back(self, folder: Path, reason: str) -> None:
        """Continue from an earlier checkpoint of this run in the same segment, with other draws.

        Raises: as `restore`.
        """
        at, segment, rollbacks = self.nimg, self.segment, self.rollbacks
        self.restore(folder)
        self.segment = segment
        self._follow([*rollbacks, RollBack(at, self.nimg, reason)])

    def _follow(self, rollbacks: list[RollBack]) -> None:
        """Take over what the roll-backs so far decide: the seed of the objective's draws, and the learning rates."""
        self.rollbacks = rollbacks
        self.objective.seed = randomness.seed_after(self.config.run.seed, len(rollbacks))
        self.follow_schedules()

    def follow_schedules(self) -> None:
        """Set what is a function of the images seen for the next step: learning rates, `betas`, weights of the losses.

        The average asks for its half-life itself.
        """
        lower = self.config.guard.lr_factor ** len(self.rollbacks)
        for name, optimizer in self.optimizers.items():
            moving = moving_arguments(getattr(self.config.optim, name), self._main_shares[name], self.nimg)
            moving["lr"] *= lower
            for group in optimizer.param_groups:
                group.update({key: value for key, value in moving.items() if key in group})
        self.objective.move_weights(self.nimg)

    def _optimizer_state(self, name: str) -> Expected:
        """The complete state of a network's optimizer after a step, found by a step of another parameter."""
        probe = nn.Linear(2, 3, bias=False, device="cpu")
        lazy = build_optimizer(probe, getattr(self.config.optim, name), f"optim.{name}", 1)
        probe.weight.grad = torch.zeros_like(probe.weight)
        lazy.step()
        kept = {key: torch.as_tensor(value) for key, value in lazy.state[probe.weight].items() if value is not None}
        return {f"{parameter}.{key}": (shape if value.shape == probe.weight.shape else value.shape, value.dtype)
                for parameter, shape in self.learners[name].shapes.items() for key, value in kept.items()}

    def checksums(self) -> list[float]:
        """One number per network and average, equal on all ranks that train the same run."""
        return [*(learner.checksum() for learner in self.learners.values()), self.ema.checksum()]
