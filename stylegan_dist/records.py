"""Strict, bounded reading of JSON that somebody else may have written or damaged.

Every JSON file that this program reads passes through `parse_json` or `read_record`. Both refuse text that is too long,
nested too deeply or not JSON, with a `ValueError` of one line. Callers add the file's name and the remedy. A dataclass
declares types and ranges of the fields in its annotations, and pydantic checks them.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import Field, TypeAdapter, ValidationError

MAX_BYTES = 1 << 28       # of one file: an index of a million shards has 0.25 GiB
SHOWN = 40                # characters of a wrong value in a message

# Types of fields for dataclasses that are read with `read_record`.
Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]      # fits an int64
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]           # SHA-256 in hexadecimal

_Record = TypeVar("_Record")
_adapters: dict[type, TypeAdapter] = {}  # making one takes milliseconds


def parse_json(text: bytes | str, most: int = MAX_BYTES) -> Any:
    """The value in a JSON text. A number that is larger than a double can be is infinite.

    Args:
        most: bytes (or characters) that the text may have.
    Raises:
        ValueError: it is too long or not JSON; nested more than 200 deep; has NaN or Infinity.
    """
    _check_size(text, most)
    return pydantic_core.from_json(text, allow_inf_nan=False)


def read_record(kind: type[_Record], text: bytes | str, most: int = MAX_BYTES) -> _Record:
    """A dataclass in a JSON text, each field of exactly the declared type: a number that is a float is no int.

    Fields that the dataclass does not have are refused or ignored as its `__pydantic_config__` says.

    Args:
        kind: a dataclass; its annotations are the rules.
        most: bytes (or characters) that the text may have.
    Raises:
        ValueError: one line that names the field, what it must be, and what it is.
    """
    _check_size(text, most)
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    try:
        return _adapters[kind].validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        value = "" if first["type"] in ("json_invalid", "missing") else f", not {shorten(first['input'])}"
        raise ValueError(f"{where + ': ' if where else ''}{first['msg']}{value}") from None


def shorten(value: object) -> str:
    """A value for a message, on one line and never long."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write out very long ones
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _check_size(text: bytes | str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"it has {len(text)} bytes, more than the {most} that it may have")
