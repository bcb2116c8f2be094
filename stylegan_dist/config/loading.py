"""Strict reading of configurations: an unknown key or a wrong type is an error that names the remedy."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from stylegan_dist.config.schema import Config
from stylegan_dist.config.text import MAX_BYTES, read_yaml
from stylegan_dist.errors import InputError
from stylegan_dist.paths import check_no_url, check_text, expand_home
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten


def load_config(preset: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file and dotted overrides such as "optim.g.lr=0.002".

    Raises:
        InputError: unreadable file, unknown key (names the nearest one), value of the wrong type or outside its range.
    """
    config = Config()
    if preset is not None:
        _apply_file(config, Path(preset))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{shorten(override)} is no override: write key=value, for example run.batch=32")
        try:
            value = read_yaml(text) if text else ""
        except ValueError:
            value = text
        _set(config, key.strip(), value, origin="on the command line", text=text)
    return config


def to_dict(config: Config) -> dict[str, dict]:
    """Nested plain values, sections first."""
    return asdict(config)


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to equal values."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=119)


def describe() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, documentation with the range) of every knob, in the order of the schema."""
    for key, owner, knob in _knobs(Config(), ""):
        span = knob.metadata["range"]
        yield key, str(getattr(owner, knob.name)), knob.metadata["doc"] + (f" ({span})" if span else "")


def check_ranges(config: Config) -> None:
    """Raise InputError where a number, however it came to be set, lies outside the range of its knob."""
    for key, owner, knob in _knobs(config, ""):
        _check_range(key, getattr(owner, knob.name), "", knob.metadata)


def _knobs(node: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            yield from _knobs(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", node, item


def _apply_file(config: Config, path: Path) -> None:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        text = content.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}; is it the right file?"
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    for key, value in _flatten(values or {}, "", path):
        _set(config, key, value, origin=f"in {path}")


def _flatten(node: Any, prefix: str, path: Path) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        raise InputError(f"{path}: expected `key: value` lines {'below ' + prefix if prefix else 'at the top'}")
    for key, value in node.items():
        word = key if isinstance(key, str) else shorten(key)
        dotted = f"{prefix}.{word}" if prefix else word
        if _keys_of(dotted):
            yield from _flatten(value if value is not None else {}, dotted, path)
        else:
            yield dotted, value


def _keys_of(section: str) -> list[str]:
    return [key for key, _, _ in _knobs(Config(), "") if key.startswith(f"{section}.")]


def _set(config: Config, dotted: str, value: Any, origin: str, text: str | None = None) -> None:
    """Set one knob; one that holds text takes `text` as it was typed, so that run.dir=007 is not octal."""
    known = {key: (owner, knob) for key, owner, knob in _knobs(config, "")}
    if dotted not in known:
        if inside := _keys_of(dotted):
            raise InputError(f"{dotted} {origin} is a section; set one of its keys, for example {inside[0]}")
        raise InputError(f"unknown configuration key {shorten(dotted)} {origin}; the nearest is {_nearest(dotted, known)!r} "
                         "(stylegan-dist train --help-config lists all)")
    owner, knob = known[dotted]
    wanted = typing.get_type_hints(type(owner))[knob.name]
    if wanted is str and text is not None:
        value = text
    try:
        value = _convert(value, wanted)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{dotted} {origin} must be {_type_name(wanted)}, not {_show(value)} "
                         f"({knob.metadata['doc']})") from None
    if wanted is str:
        check_text(value, f"{dotted} {origin}")
        if knob.metadata["path"] == "one":
            check_no_url(value, f"{dotted} {origin}")
        value = expand_home(value, words=knob.metadata["path"] == "several") if knob.metadata["path"] else value
    _check_range(dotted, value, f" {origin}", knob.metadata)
    setattr(owner, knob.name, value)


def _check_range(dotted: str, value: Any, origin: str, metadata: Any) -> None:
    span: Range | None = metadata["range"]
    for number in value if isinstance(value, list) else [value]:
        if span is not None and number != "auto" and number not in span:
            raise InputError(f"{dotted}={_show(value)}{origin} must be {'numbers ' * isinstance(value, list)}{span} "
                             f"({metadata['doc']})")


def _show(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, list):
        return f"[{', '.join(map(shorten, value[:4]))}{', ...' if len(value) > 4 else ''}]"
    return shorten(value)


def _nearest(dotted: str, known: Sequence[str] | dict) -> str:
    """The known key most like a wrong one; a right last word in the wrong section counts most."""
    dotted = dotted[:100]  # the comparison takes the square of the length
    last = dotted.rsplit(".", 1)[-1]
    same_word = [key for key in known if key.rsplit(".", 1)[-1] == last]
    return difflib.get_close_matches(dotted, same_word or list(known), n=1, cutoff=0.0)[0]


def _convert(value: Any, wanted: Any) -> Any:
    """`value` as the wanted type; raises TypeError or ValueError rather than guess."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin in (types.UnionType, typing.Union):
        wanted, literal = arguments  # such as int | Literal["auto"]
        return value if value in typing.get_args(literal) else _convert(value, wanted)
    if origin is list:
        if not isinstance(value, list):
            raise TypeError
        return [_convert(item, arguments[0]) for item in value]
    if isinstance(value, bool) != (wanted is bool):
        raise TypeError
    if wanted is float and isinstance(value, (int, float, str)):  # YAML 1.1 reads 1e-8 as a string
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is str and isinstance(value, (int, float)):
        return str(value)
    if type(value) is not wanted:
        raise TypeError
    return value


def _type_name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if wanted in names:
        return names[wanted]
    arguments = typing.get_args(wanted)
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(arguments) if len(arguments) > 1 else arguments[0]
    if typing.get_origin(wanted) is list:
        return "a list of numbers such as [0, 0.99]"
    return " or ".join(_type_name(argument) for argument in arguments)
