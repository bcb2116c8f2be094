"""The interface of a family of networks. Nothing else of a family is used outside of its folder."""

from __future__ import annotations

import abc
from collections.abc import Callable

from torch import nn

from stylegan_dist.config import Config
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
    """

    objective: type[Objective]
    moves: bool = False

    @abc.abstractmethod
    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        """A generator; `config` is resolved."""

    @abc.abstractmethod
    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> nn.Module:
        """A discriminator: (samples in [-1, 1], labels int64 [N] or None) -> logits [N]; `config` is resolved.

        Its attribute `precision` is the policy that it computes with.
        """

    @abc.abstractmethod
    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        """Replace every "auto" of the family's sections; `config.run.batch` is known."""

    @abc.abstractmethod
    def check(self, config: Config, resolution: int) -> None:
        """Raise InputError where resolved values of the family's sections do not fit each other or the data."""

    @abc.abstractmethod
    def group(self, config: Config) -> tuple[int, str]:
        """The number of consecutive images of which a micro-batch must be a multiple, and the settings that say so."""

    @abc.abstractmethod
    def learning_rate(self, resolution: int) -> float:
        """The learning rate of both networks under Adam, where it is "auto"."""

    @abc.abstractmethod
    def describe(self, config: Config) -> str:
        """The architecture of the discriminator, in a word, for the header of a run."""
