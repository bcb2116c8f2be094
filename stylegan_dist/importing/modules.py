"""Names of tensors and attributes in a tree of modules, as PyTorch names them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stylegan_dist.importing.machine import Refused
from stylegan_dist.importing.values import Record, Stored

Plain = str | int | float | bool | None
DEEPEST = 16        # modules within modules
MOST_PARTS = 20_000  # modules and tensors
_WORD = re.compile(r"[A-Za-z0-9_.]{1,200}")  # of a tensor or module; others could change what a terminal shows


@dataclass(frozen=True)
class Tree:
    """A network of a file.

    Attributes:
        modules: by path, "" for the network itself.
        tensors: parameters and buffers by path.
    """

    modules: dict[str, Record]
    tensors: dict[str, Stored]

    def attribute(self, path: str, name: str, otherwise: Plain = None) -> Plain:
        """An attribute of a module, if both are there. Raises Refused: it is not plain."""
        return next((value for where, value in self.attributes(name) if where == path), otherwise)

    def attributes(self, name: str) -> Iterator[tuple[str, Plain]]:
        """Path and value, for all modules that have an attribute of the name. Raises Refused: one is not plain."""
        for path, module in self.modules.items():
            value = module.attributes.get(name)
            if not isinstance(value, (str, int, float, bool, type(None))):
                raise Refused(f"refused: the {name} of {path or 'a network'} is a {type(value).__name__}")
            if name in module.attributes:
                yield path, value


def tree_of(network: Record) -> Tree:
    """All of a network.

    Raises:
        Refused: it is no tree, or has parts without end.
    """
    tree = Tree({}, {})
    _add(tree, network, "", DEEPEST)
    return tree


def _add(tree: Tree, module: Record, path: str, depth: int) -> None:
    if not depth or len(tree.modules) + len(tree.tensors) > MOST_PARTS:
        raise Refused("refused: modules within modules without end")
    tree.modules[path] = module
    prefix = f"{path}." if path else ""
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(module, kind):
            if isinstance(value, Stored):
                tree.tensors[prefix + name] = value
            elif value is not None:
                raise Refused(f"refused: {prefix + name} is no tensor")
    for name, value in _items(module, "_modules"):
        if isinstance(value, Record):
            _add(tree, value, prefix + name, depth - 1)
        elif value is not None:
            raise Refused(f"refused: {prefix + name} is no module")


def _items(module: Record, kind: str) -> Iterator[tuple[str, Any]]:
    found = module.attributes.get(kind, {})
    if not isinstance(found, dict) or not all(isinstance(name, str) and _WORD.fullmatch(name) for name in found):
        raise Refused(f"refused: the {kind} of an object of {module.name} are none")
    yield from found.items()


def state_dict(value: Any, what: str) -> dict[str, Stored]:
    """The tensors of a state dict.

    Raises:
        Refused: it is none.
    """
    if not isinstance(value, dict) or not all(
            isinstance(one, Stored) and isinstance(name, str) and _WORD.fullmatch(name) for name, one in value.items()):
        raise Refused(f"refused: {what} holds something else than named tensors")
    if len(value) > MOST_PARTS:
        raise Refused(f"refused: {what} holds {len(value)} tensors")
    return value
