"""Numbers, times and settings as people read them."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

NONE = "\u2013"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; an en dash for None."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "\u221e" if value > 0 else "\u2212\u221e"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:,.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def kimg(nimg: float) -> str:
    """Images seen, in thousands, exactly."""
    text = f"{nimg / 1000:,.3f}"
    return text.rstrip("0").rstrip(".")


def percent(share: float | None) -> str:
    return NONE if share is None else number(share * 100, 3) + " %"


def when(seconds: float | None) -> str:
    """A time of unix seconds, in UTC."""
    if seconds is None:
        return NONE
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return NONE


def setting(value: Any) -> str:
    """A value of a configuration."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(setting(item) for item in value) + "]"
    return str(value) if not isinstance(value, str) or value else '""'
