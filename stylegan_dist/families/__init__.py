"""Families of networks: one folder each, found by its name. `family.py` defines the interface.

The folder of a family has two modules. `config.py` has `SECTIONS`, the knobs of `generator`, `discriminator` and
`loss`, and needs no PyTorch. `family.py` has `FAMILY`, which implements the interface. A folder of several variants with the
same knobs names them in `VARIANTS` of `config.py`; then `FAMILY` is a mapping from these names, and the family is called
FOLDER-VARIANT.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
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
    folder, _ = _find(name)
    return _module(folder, "config").SECTIONS


def families() -> list[str]:
    """The names of all families, in alphabetical order."""
    folders = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return sorted("-".join(filter(None, (folder, variant))) for folder in folders for variant in _variants(folder))


def family_of(config: Config) -> Family:
    """Networks, objective and rules of the family that a configuration names."""
    return family_named(config.generator.family)


def family_named(name: str) -> Family:
    """Networks, objective and rules of a family.

    Raises:
        InputError: there is no such family.
    """
    folder, variant = _find(name)
    found = _module(folder, "family").FAMILY
    return found[variant] if variant else found


def _find(name: str) -> tuple[str, str]:
    """The folder of a family, and its variant there, empty if it has none."""
    known = families()
    if name not in known:
        raise InputError(f"generator.family={name[:40]!r} is unknown; choose one of {', '.join(known)}")
    folder, _, variant = name.partition("-")
    return folder, variant


def _variants(folder: str) -> Sequence[str]:
    return getattr(_module(folder, "config"), "VARIANTS", ("",))


def _module(folder: str, part: str) -> Any:
    return importlib.import_module(f"{__name__}.{folder}.{part}")
