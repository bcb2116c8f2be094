"""Numbers that change over a run, as functions of the images seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

UNTIL = "until_kimg"
FORMS: dict[str, Callable[[float], float]] = {  # name -> share of the way, from the share of the time
    "cosine": lambda time: (1 - math.cos(math.pi * time)) / 2,
    "linear": lambda time: time,
}


class Schedule(NamedTuple):
    """A number that moves from one value to another, and then stays.

    It depends on the images seen alone. So there is nothing to save, and nothing depends on ranks or restarts. A tuple, not a
    dataclass, because a dataclass in a configuration is a section of it.
    """

    form: str          # a name of FORMS
    first: float
    last: float
    until_kimg: float  # when `last` is reached, above zero

    def at(self, nimg: int) -> float:
        """The value after `nimg` images."""
        time = nimg / (1000 * self.until_kimg)
        return self.last if time >= 1 else self.first + FORMS[self.form](time) * (self.last - self.first)

    def plain(self) -> dict[str, list[float] | float]:
        """As in a configuration file."""
        return {self.form: [self.first, self.last], UNTIL: self.until_kimg}

    def __str__(self) -> str:
        return f"{self.form} from {self.first!r} to {self.last!r} at {self.until_kimg!r} kimg"


Scheduled = float | Schedule  # the type of a knob that may have a schedule


def is_plain(value: object) -> bool:
    """Whether this is meant as a schedule in a configuration file, `{cosine: [1, 2], until_kimg: 3}`; it may be a wrong one."""
    return isinstance(value, Mapping) and any(key in value for key in (*FORMS, UNTIL))


def value_at(value: Scheduled, nimg: int) -> float:
    """The value of a knob after `nimg` images."""
    return value.at(nimg) if isinstance(value, Schedule) else value


def extremes(value: Scheduled) -> tuple[float, ...]:
    """Between these the knob stays."""
    return (value.first, value.last) if isinstance(value, Schedule) else (value,)
