"""Families of networks: one folder each, found by its name. `family.py` defines the interface.

The folder of a family has two modules. `config.py` has `SECTIONS`, the knobs of `generator`, `discriminator` and
`loss`, and needs no PyTorch. `family.py` has `FAMILY`, which implements the interface.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stylegan_dist.errors import InputError

if TYPE_CHECKING:
    from stylegan_dist.config import Config
    from stylegan_dist.families.family import Family

DEFAULT = "stylegan2"


def sections_of(name: str = DEFAULT) -> Mapping[str, type]:
    """Section -> dataclass of its knobs.

    Raises:
        InputError: there is no such family.
    """
    return _module(name, "config").SECTIONS


def family_of(config: Config) -> Family:
    """Networks, objective and rules of the family that a configuration names."""
    return family_named(config.generator.family)


def family_named(name: str) -> Family:
    """Networks, objective and rules of a family.

    Raises:
        InputError: there is no such family.
    """
    return _module(name, "family").FAMILY


def _module(name: str, part: str) -> Any:
    known = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    if name not in known:
        raise InputError(f"generator.family={name[:40]!r} is unknown; choose one of {', '.join(sorted(known))}")
    return importlib.import_module(f"{__name__}.{name}.{part}")
