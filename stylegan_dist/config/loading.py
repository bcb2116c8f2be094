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
from stylegan_dist.errors import InputError


def load_config(preset: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file and dotted overrides such as "optim.g.lr=0.002".

    Raises:
        InputError: unreadable file, unknown key (names the nearest one) or value of the wrong type.
    """
    config = Config()
    if preset is not None:
        _apply_file(config, Path(preset))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is no override: write key=value, for example run.batch=32")
        try:
            value = yaml.safe_load(text) if text else ""
        except (yaml.YAMLError, ValueError):  # ValueError: an impossible date
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
    """(dotted key, default, documentation) of every knob, in the order of the schema."""
    for key, owner, knob in _knobs(Config(), ""):
        yield key, str(getattr(owner, knob.name)), knob.metadata["doc"]


def _knobs(node: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            yield from _knobs(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", node, item


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML's usual answer is to forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:  # before super() puts the keys of a `<<` merge among them
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by super()
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _apply_file(config: Config, path: Path) -> None:
    try:
        content = yaml.load(path.read_text(), _StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{line} is not valid YAML: {problem}") from None
    except ValueError as error:  # an impossible date
        raise InputError(f"{path} is not valid YAML: {error}") from None
    for key, value in _flatten(content or {}, "", path):
        _set(config, key, value, origin=f"in {path}")


def _flatten(node: Any, prefix: str, path: Path) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        raise InputError(f"{path}: expected `key: value` lines {'below ' + prefix if prefix else 'at the top'}")
    sections = _sections()
    for key, value in node.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if dotted in sections:
            yield from _flatten(value if value is not None else {}, dotted, path)
        else:
            yield dotted, value


def _sections() -> set[str]:
    keys = [key for key, _, _ in _knobs(Config(), "")]
    return {".".join(parts[:n]) for key in keys for parts in [key.split(".")] for n in range(1, len(parts))}


def _set(config: Config, dotted: str, value: Any, origin: str, text: str | None = None) -> None:
    """Set one knob; one that holds text takes `text` as it was typed, so that run.dir=007 is not octal."""
    known = {key: (owner, knob) for key, owner, knob in _knobs(config, "")}
    if dotted not in known:
        if dotted in _sections():
            raise InputError(f"{dotted} {origin} is a section; set one of its keys, for example "
                             f"{next(key for key in known if key.startswith(dotted + '.'))}")
        raise InputError(f"unknown configuration key {dotted!r} {origin}; the nearest is {_nearest(dotted, known)!r} "
                         "(stylegan-dist train --help-config lists all)")
    owner, knob = known[dotted]
    wanted = typing.get_type_hints(type(owner))[knob.name]
    if wanted is str and text is not None:
        value = text
    try:
        setattr(owner, knob.name, _convert(value, wanted))
    except (TypeError, ValueError):
        raise InputError(f"{dotted} {origin} must be {_type_name(wanted)}, not {value!r} ({knob.metadata['doc']})") from None


def _nearest(dotted: str, known: Sequence[str] | dict) -> str:
    """The known key most like a wrong one; a right last word in the wrong section counts most."""
    last = dotted.rsplit(".", 1)[-1]
    same_word = [key for key in known if key.rsplit(".", 1)[-1] == last]
    return difflib.get_close_matches(dotted, same_word or list(known), n=1, cutoff=0.0)[0]


def _convert(value: Any, wanted: Any) -> Any:
    """`value` as the wanted type; raises TypeError or ValueError rather than guess."""
    origin = typing.get_origin(wanted)
    if origin is Literal:
        if value in typing.get_args(wanted):
            return value
        raise ValueError
    if origin in (types.UnionType, typing.Union):
        for option in typing.get_args(wanted):
            try:
                return _convert(value, option)
            except (TypeError, ValueError):
                continue
        raise ValueError
    if origin is list:
        if not isinstance(value, list):
            raise TypeError
        return [_convert(item, typing.get_args(wanted)[0]) for item in value]
    if wanted is bool or isinstance(value, bool):
        if wanted is bool and isinstance(value, bool):
            return value
        raise TypeError
    if wanted is float:
        # YAML 1.1 reads 1e-8 as a string.
        number = float(value) if isinstance(value, (int, float, str)) else None
        if number is None or not math.isfinite(number):
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
