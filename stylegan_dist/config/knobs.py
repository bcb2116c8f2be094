"""The declaration of a configuration field: its default, text and range, and whether it may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from stylegan_dist.ranges import Range

if TYPE_CHECKING:
    # Training works on resolved configurations, in which no value is "auto": so says the type, too.
    from typing import NoReturn as Auto
else:
    Auto = Literal["auto"]

# Upper bounds are beyond what anybody means, and below what would hang, overflow or exhaust memory before it is an error.
MOST_IMAGES = 1 << 20        # of a global batch; so there are at most as many processes
MOST_KIMG = 1e9              # 10^12 images
MOST_STEPS = 1_000_000       # between two of something
MOST_LAYERS = 128
MOST_WIDTH = 8192
MOST_MAPS = 4096             # feature maps of a convolution
MOST_WEIGHT = 1e9            # of a term of the loss
LEAST_KIMG = 1e-6            # between two of something; below one image nothing happens more often


class Change(Enum):
    """What happens where a run continues with another value of a knob, and whether ranks may have different values."""

    FIXED = "refused: it would not be the same run"
    TOLD = "allowed, and printed"
    SILENT = "allowed"
    PER_RANK = "allowed, also between the ranks: it decides where and how fast a rank reads and computes"


FIXED, TOLD, SILENT, PER_RANK = Change


def knob(default: Any, change: Change, doc: str, *, least: float | None = None, most: float | None = None,
         above: float | None = None, path: Literal["one", "several"] | None = None) -> Any:
    """A configuration field.

    Args:
        least, most, above: its range, see `Range`; every number has one. Of a list, that of each item.
        path: it names one place on this machine, or several places or URLs with blanks between: `~` at their beginning
            stands for a home folder.
    """
    metadata: dict[str, Any] = {"doc": doc, "change": change, "path": path, "range": None}
    if (least, most, above) != (None, None, None):
        metadata["range"] = Range(least, most, above)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class FamilyConfig:
    """The beginning of the section `generator` of every family."""

    family: str = knob("stylegan2", FIXED, "family of the networks, of their losses and of the rules for `auto`")
