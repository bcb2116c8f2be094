"""What a format tells of its networks, and its tensors under the names of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.importing.values import Stored
from stylegan_dist.networks.layers import resolutions
from stylegan_dist.ops.resample import TAPS

Rule = tuple[str, str]  # pattern of a whole foreign name, and its name here or one of these two
FILTER = "(filter)"     # [1, 3, 3, 1] in both directions, which is no tensor here
PART = "(part)"         # what `ForeignNetwork.fill` uses or compares
ONLY = "that cannot be represented here"  # in messages
NO_AVERAGE = "the file has no averaged generator: G takes its place"
SHOWN = 3                           # names in a message


@dataclass
class ForeignNetwork:
    """One network of a file.

    Attributes:
        tensors: by foreign name.
        rules: the first that fits a name counts.
        fill: what the file may lack, by our name, and how it comes about: a tensor from those that are loaded.
    """

    tensors: Mapping[str, Stored]
    rules: Sequence[Rule]
    fill: dict[str, Callable[[torch.nn.Module], Tensor]] = field(default_factory=dict)


@dataclass
class Foreign:
    """The content of a file.

    Attributes:
        format: for people.
        licence: of the published weights, for people.
        family: of our networks.
        settings: knobs, by dotted key.
        networks: "g_ema", and perhaps "g" and "d".
        nimg: images seen; None: the file does not say.
        notes: what a person should know.
    """

    format: str
    licence: str
    family: str
    settings: dict[str, object]
    resolution: int
    channels: int
    classes: int
    networks: dict[str, ForeignNetwork]
    nimg: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Table:
    """Where the tensors of a network have come from: our name -> the foreign one.

    Attributes:
        left_out: foreign names of what is no tensor here, such as filters.
        filled: our names of what the file lacks.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)

    @property
    def renamed(self) -> dict[str, str]:
        return {ours: theirs for ours, theirs in self.loaded.items() if ours != theirs}


def converted(foreign: ForeignNetwork, network: torch.nn.Module, what: str, most: int) -> tuple[dict[str, Tensor], Table]:
    """The state of `network`, which is on the meta device, from the tensors of a file. Every tensor must have its place.

    Args:
        what: the network, for messages.
        most: bytes that the tensors may have together: those of the file.
    Raises:
        InputError: a tensor is missing, left over, or of another shape.
        Refused: the file is damaged.
    """
    table, found = Table(), {}
    unknown: list[str] = []
    for name, stored in foreign.tensors.items():
        ours = _name(name, foreign.rules)
        if ours is None:
            unknown.append(name)
        elif ours in (FILTER, PART):
            if ours == FILTER:
                check_filter(stored, f"{what} {name}")
            table.left_out.append(name)
        elif ours in found:
            raise InputError(f"{what} has two tensors for {ours}: {table.loaded[ours]} and {name}")
        else:
            found[ours], table.loaded[ours] = stored, name
    expected = network.state_dict()
    missing = [name for name in expected if name not in found and name not in foreign.fill]
    unknown += [table.loaded[name] for name in found if name not in expected]
    if missing or unknown:
        parts = [f"{text} {_some(names)}" for text, names in (("lacks", missing), ("has no place here for", unknown)) if names]
        raise InputError(f"{what} {' and '.join(parts)}: this is another architecture than it says, or a changed one")
    for name, stored in found.items():
        if stored.shape != tuple(expected[name].shape) and _squeezed(stored.shape) != _squeezed(tuple(expected[name].shape)):
            raise InputError(f"{what} has {table.loaded[name]} of the shape {list(stored.shape)} instead of "
                             f"{list(expected[name].shape)}")
    if (size := sum(stored.bytes for stored in found.values())) > most:
        raise InputError(f"{what} has {size} bytes of tensors, more than the file")
    values = {name: stored.tensor().reshape(expected[name].shape).to(expected[name].dtype) for name, stored in found.items()}
    table.filled = [name for name in foreign.fill if name in expected and name not in values]
    return values, table


def _name(name: str, rules: Sequence[Rule]) -> str | None:
    """Our name, FILTER or PART; None where no rule fits."""
    return next((match.expand(ours) for pattern, ours in rules if (match := re.fullmatch(pattern, name))), None)


def _squeezed(shape: Sequence[int]) -> list[int]:
    """Without sizes of one: those say nothing."""
    return [size for size in shape if size != 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_filter(stored: Stored, what: str) -> None:
    """Raises InputError unless a low-pass filter is that of ours, up to its gain."""
    taps = torch.tensor(TAPS)
    ours = torch.outer(taps, taps) if len(stored.shape) == 2 else taps
    if stored.shape == tuple(ours.shape):
        theirs = stored.tensor()
        if torch.allclose(theirs / theirs.sum(), ours / ours.sum(), atol=1e-6):
            return
    raise InputError(f"{what} is another filter than [1, 3, 3, 1]: networks with it cannot be represented here")


def pyramid_of(widths: Mapping[int, int], what: str) -> tuple[int, int]:
    """`channel_base` and `channel_max` for these feature maps by resolution.

    Raises:
        InputError: they are not min(channel_base // r, channel_max).
    """
    most, base = max(widths.values()), max(r * width for r, width in widths.items())
    if any(min(base // r, most) != width for r, width in widths.items()):
        raise InputError(f"{what} has the feature maps {dict(sorted(widths.items()))}, which are not min(base / r, most)")
    return base, most


def size_of(tensors: Mapping[str, Stored], name: str, dimension: int, what: str, project: str = "StyleGAN2") -> int:
    """A size of a tensor. Raises InputError where the network lacks it, which says of what project it is then none."""
    if name not in tensors or len(tensors[name].shape) <= dimension:
        raise InputError(f"{what} has no {name}: it is no network of {project} or a changed one")
    return tensors[name].shape[dimension]


def resolution_of(found: Sequence[int], what: str) -> int:
    """The resolution of a network with blocks of these. Raises InputError where one is missing."""
    top = max(found, default=0)
    if top < 8 or sorted(found) != resolutions(top):
        raise InputError(f"{what} has blocks of {sorted(found)} pixels, where each should be twice the one before, from 4")
    return top
