"""Networks and optimizers from a resolved configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stylegan_dist.config import Config
from stylegan_dist.config.schedules import value_at
from stylegan_dist.config.schema import OptimizerConfig
from stylegan_dist.families import family_of
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Precision, initialize
from stylegan_dist.training.rules import DTYPES, optimizer_arguments


def precision_policy(config: Config) -> Precision:
    """The precision policy of a resolved configuration."""
    p = config.precision
    return Precision(DTYPES[p.dtype], p.top_resolutions, p.clamp or None, bool(p.channels_last))


def build_generator(config: Config, shape: SampleShape, device: torch.device, precision: Precision | None = None) -> Generator:
    """The generator, with parameters that are a function of the seed; on the meta device without values."""
    with device:
        network = family_of(config).generator(config, shape, precision or precision_policy(config))
    _set_values(network, config, "init.g")
    return network


def build_discriminator(config: Config, shape: SampleShape, device: torch.device,
                        precision: Precision | None = None) -> nn.Module:
    """The discriminator, with parameters that are a function of the seed; on the meta device without values."""
    with device:
        network = family_of(config).discriminator(config, shape, precision or precision_policy(config))
    _set_values(network, config, "init.d")
    return network


def _set_values(network: nn.Module, config: Config, purpose: str) -> None:
    if next(network.parameters()).device.type != "meta":
        initialize(network, config.run.seed, purpose)


def build_optimizer(network: nn.Module, settings: OptimizerConfig, where: str,
                    main_share: float = 1.0) -> torch.optim.Optimizer:
    """The optimizer of one network, corrected for lazy regularisation, as it is in the first step.

    A regulariser with an optimizer step of its own every k steps makes k + 1 updates of k. The learning rate is multiplied by
    m = k / (k + 1), and decay rates are raised to the power m. k steps then change weights and averages as much as without the
    regulariser (Karras et al. 2020, appendix B). Momentum is not changed.

    Args:
        where: the configuration section, for messages.
        main_share: m, from `phases.main_share`; 1 if no regulariser of this network has a step of its own.
    """
    arguments = optimizer_arguments(settings, where)
    moving = moving_arguments(settings, main_share, 0)
    arguments |= {name: value for name, value in moving.items() if name in arguments}
    if main_share < 1:
        for name, decay in (("RMSprop", "alpha"), ("Adadelta", "rho")):
            if settings.name == name:
                arguments[decay] **= main_share
    return getattr(torch.optim, settings.name)(network.parameters(), **arguments)


def moving_arguments(settings: OptimizerConfig, main_share: float, nimg: int) -> dict[str, Any]:
    """What a schedule may move: the learning rate, and `betas` of the Adam family, after `nimg` images, corrected likewise."""
    return {"lr": value_at(settings.lr, nimg) * main_share,
            "betas": tuple(value_at(beta, nimg)**main_share for beta in settings.betas)}
