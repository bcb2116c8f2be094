"""The interface of a family of networks. Nothing else of a family is used outside of its folder."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from torch import nn

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Kind
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.game import Objective

Auto = Callable[[object, str, str, object, str], None]  # (section, its name, key, value, rule): replaces "auto"


class Family(abc.ABC):
    """Networks, objective, and rules for the sections `generator`, `discriminator` and `loss` of a configuration.

    Parameters of new networks have no values yet: `networks.layers.initialize` sets them, as their modules'
    `init_parameters` say.

    Attributes:
        objective: the losses of a run.
        moves: whether its generators have `moved`.
        attends: whether its networks use PyTorch's fused attention, whose kernels on GPUs add in one order only if asked to.
    """

    objective: type[Objective]
    moves: bool = False
    attends: bool = False

    @abc.abstractmethod
    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        """A generator; `config` is resolved."""

    @abc.abstractmethod
    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> nn.Module:
        """A discriminator: (samples in [-1, 1], labels int64 [N] or None) -> logits [N]; `config` is resolved.

        Its attribute `precision` is the policy that it computes with. It may have a method `features`: samples -> [N, d], what
        its last layer sees of each sample alone, for `stylegan-dist label --run`.
        """

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        """Whether a tensor means the same in networks of two shapes, and is in both; else it begins anew in a transfer.

        Args:
            network: "g" or "d".
            name: of a parameter or a buffer of one of the two.
        """
        return before == now

    def check_kind(self, config: Config, kind: Kind) -> None:  # noqa: B027 - most take any
        """Raise InputError where the family has no networks for such samples; knobs of `Kind.settings` are resolved."""

    @abc.abstractmethod
    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        """Replace every "auto" of the family's sections; `config.run.batch` is known."""

    @abc.abstractmethod
    def check(self, config: Config, resolution: int) -> None:
        """Raise InputError where resolved values of the family's sections do not fit each other or the data."""

    @staticmethod
    def check_frozen(config: Config, layers: Sequence[str]) -> None:
        """Raise InputError where `discriminator.freeze_layers` of a family that has the knob is wrong.

        Args:
            layers: of the discriminator, those that can be frozen.
        """
        count = config.discriminator.freeze_layers
        if count > len(layers):
            raise InputError(f"discriminator.freeze_layers={count} is more than this discriminator has: choose from 0 to "
                             f"{len(layers)} ({layers[0]} to {layers[-1]})")
        if count and not config.run.init_from:
            raise InputError(f"discriminator.freeze_layers={count} would freeze layers that have not learned anything: set "
                             "run.init_from to a trained run, or discriminator.freeze_layers=0")

    @abc.abstractmethod
    def group(self, config: Config) -> tuple[int, str]:
        """The number of consecutive images of which a micro-batch must be a multiple, and the settings that say so."""

    @abc.abstractmethod
    def learning_rate(self, resolution: int) -> float:
        """The learning rate of both networks under Adam, where it is "auto"."""

    @abc.abstractmethod
    def describe(self, config: Config) -> str:
        """The architecture of the discriminator, in a word, for the header of a run."""
