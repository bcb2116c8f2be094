"""What the controls of the page say, as a request brings it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

from stylegan_dist.arguments import SEEDS, real, whole
from stylegan_dist.errors import InputError
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

PSI = Range(-2, 2)
BLEND = Range(0, 1)
STRENGTH = Range(-10, 10)   # standard deviations of w
MOST_MOVES = 10
_MOST_FIELDS = 20
_WORDS = ("seed", "second", "blend", "psi", "label", "mix_from", "mix_to", "moves", "noise", "noise_seed")


@dataclass(frozen=True)
class Settings:
    """One picture.

    Attributes:
        seed, second: those of two samples.
        blend: 0 for the first sample, 1 for the second.
        psi: truncation.
        label: class of both; None: that of `generate`, seed mod classes.
        mix_from, mix_to: the layers from the first, below the second, take the second sample.
        moves: strength along each direction.
        noise: of layers; "seed": drawn for `noise_seed`.
    """

    seed: int = 0
    second: int = 1
    blend: float = 0.0
    psi: float = 1.0
    label: int | None = None
    mix_from: int = 0
    mix_to: int = 0
    moves: tuple[float, ...] = ()
    noise: Literal["const", "none", "seed"] = "const"
    noise_seed: int = 0

    def record(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def parse_settings(query: str, layers: int, classes: int, directions: int) -> Settings:
    """Settings in the query of a URL, in which those that are missing have their defaults.

    Args:
        layers: of the generator, which may be mixed.
        classes: 0 for none.
    Raises:
        InputError: a name that is not known or stands twice, or a value out of range.
    """
    fields = _fields(query)
    given: dict[str, Any] = {}
    spans = {"blend": BLEND, "psi": PSI}
    counts = {"seed": SEEDS, "second": SEEDS, "noise_seed": SEEDS, "mix_from": Range(0, layers), "mix_to": Range(0, layers)}
    for name, text in fields.items():
        if name in spans:
            given[name] = real(name, spans[name])(text)
        elif name in counts:
            given[name] = whole(name, counts[name])(text)
        elif name == "label" and text:
            if not classes:
                raise InputError("label has no meaning here: the generator has no classes")
            given[name] = whole(name, Range(0, classes - 1))(text)
        elif name == "moves" and text:
            parts = text.split(",")
            if len(parts) > directions:
                raise InputError(f"moves has {len(parts)} numbers, and there are {directions} directions")
            given[name] = tuple(real(name, STRENGTH)(part) for part in parts)
        elif name == "noise":
            if text not in ("const", "none", "seed"):
                raise InputError(f"noise must be const, none or seed, not {shorten(text)}")
            given[name] = text
    return Settings(**given)


def _fields(query: str) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise InputError(f"the query cannot be read: {error}") from None
    fields = dict(pairs)
    for name in fields:
        if name not in _WORDS:
            raise InputError(f"{shorten(name)} is no setting: there are {', '.join(_WORDS)}")
    if len(fields) < len(pairs):
        raise InputError("a setting stands twice")
    return fields
