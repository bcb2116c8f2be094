"""Strict reading of configurations. An unknown key or a wrong type is an error that names the remedy."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from stylegan_dist.config.knobs import MOST_KIMG, Change
from stylegan_dist.config.schedules import FORMS, UNTIL, Schedule, extremes, is_plain
from stylegan_dist.config.schema import Config, config_of
from stylegan_dist.config.text import MAX_BYTES, read_yaml
from stylegan_dist.errors import InputError
from stylegan_dist.families import families
from stylegan_dist.paths import check_no_url, check_text, expand_home
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

FAMILY_KEY = "generator.family"


class Setting(NamedTuple):
    """A value for a knob."""

    key: str
    value: Any
    origin: str              # where it was found, for messages
    text: str | None = None  # as it was typed


def load_config(preset: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file and dotted overrides such as "optim.g.lr=0.002".

    Raises:
        InputError: unreadable file, unknown key (names the nearest one), value of the wrong type or outside its range.
    """
    settings: list[Setting] = []
    if preset is not None:
        settings += _read_file(Path(preset))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{shorten(override)} is no override: write key=value, for example run.batch=32")
        try:
            value = read_yaml(text) if text else ""
        except ValueError:
            value = text
        settings.append(Setting(key.strip(), value, "on the command line", text))
    config = Config()
    for setting in settings:  # it decides which knobs there are
        if setting.key == FAMILY_KEY:
            _set(config, setting)
    config = config_of(config.generator.family)
    for setting in settings:
        _set(config, setting)
    return config


def to_dict(config: Config) -> dict[str, dict]:
    """Nested plain values, sections first."""
    return asdict(config, dict_factory=lambda items: {key: _plain(value) for key, value in items})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.plain() if isinstance(value, Schedule) else value


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names such as "optim.g.lr". A schedule is one value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inside = isinstance(value, dict) and not is_plain(value)
        result |= dotted(value, f"{prefix}{key}.") if inside else {prefix + key: value}
    return result


def schedules_of(config: Config) -> dict[str, Schedule]:
    """The knobs that have a schedule, such as "optim.g.lr" or "optim.g.betas[1]"."""
    found: dict[str, Schedule] = {}
    for key, owner, knob in _knobs(config, ""):
        value = getattr(owner, knob.name)
        items = {f"{key}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        found |= {name: item for name, item in items.items() if isinstance(item, Schedule)}
    return found


def changes_of(config: Config) -> dict[str, Change]:
    """What may change, by the dotted key of every knob."""
    return {key: knob.metadata["change"] for key, _, knob in _knobs(config, "")}


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to equal values."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=119)


def describe() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, documentation with the range) of every knob, in the order of the schema."""
    for key, owner, knob in _knobs(Config(), ""):
        notes = [str(knob.metadata["range"])] if knob.metadata["range"] else []
        notes += ["or a schedule"] if _takes_schedule(_type_of(owner, knob)) else []
        yield key, str(getattr(owner, knob.name)), knob.metadata["doc"] + (f" ({', '.join(notes)})" if notes else "")


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


def _read_file(path: Path) -> Iterator[Setting]:
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
    keys = [key for key, _, _ in _knobs(Config(), "")]  # all families have the same sections
    sections = {".".join(parts[:n]) for key in keys for parts in [key.split(".")] for n in range(1, len(parts))}
    yield from _flatten(values or {}, "", sections, path)


def _flatten(node: Any, prefix: str, sections: Collection[str], path: Path) -> Iterator[Setting]:
    if not isinstance(node, dict):
        raise InputError(f"{path}: expected `key: value` lines {'below ' + prefix if prefix else 'at the top'}")
    for key, value in node.items():
        word = key if isinstance(key, str) else shorten(key)
        dotted = f"{prefix}.{word}" if prefix else word
        if dotted in sections:
            yield from _flatten(value if value is not None else {}, dotted, sections, path)
        else:
            yield Setting(dotted, value, f"in {path}")


def _set(config: Config, setting: Setting) -> None:
    """Set one knob; one that holds text takes it as it was typed, so that run.dir=007 is not octal."""
    dotted, value, origin = setting.key, setting.value, setting.origin
    known = {key: (owner, knob) for key, owner, knob in _knobs(config, "")}
    if dotted not in known:
        if inside := [key for key in known if key.startswith(f"{dotted}.")]:
            raise InputError(f"{dotted} {origin} is a section; set one of its keys, for example {inside[0]}")
        family = config.generator.family
        if having := [name for name in families() if name != family and dotted in _keys_of(name)]:
            raise InputError(f"{dotted} {origin} is a knob of {', '.join(having)}, not of {FAMILY_KEY}={family}: "
                             "take it out of the file or the command, or choose another family")
        raise InputError(f"unknown configuration key {shorten(dotted)} {origin}; the nearest is {_nearest(dotted, known)!r} "
                         "(stylegan-dist train --help-config lists all)")
    owner, knob = known[dotted]
    wanted = _type_of(owner, knob)
    if wanted is str and setting.text is not None:
        value = setting.text
    if any(map(is_plain, value if isinstance(value, list) else [value])) and not _takes_schedule(wanted):
        can = [key for key, (owner, knob) in known.items() if _takes_schedule(_type_of(owner, knob))]
        raise InputError(f"{dotted} {origin} cannot have a schedule; these can: {', '.join(can)}")
    try:
        value = _convert(value, wanted)
    except WrongSchedule as error:
        raise InputError(f"{dotted} {origin} has a wrong schedule, {error}: write {{cosine: [FIRST, LAST], {UNTIL}: NUMBER}}; "
                         f"the forms are {', '.join(FORMS)}") from None
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
    for number in [end for item in (value if isinstance(value, list) else [value]) for end in extremes(item)]:
        if span is not None and not isinstance(number, str) and number not in span:  # a str: "auto" or another word
            raise InputError(f"{dotted}={_show(value)}{origin} must be {'numbers ' * isinstance(value, list)}{span} "
                             f"({metadata['doc']})")


def _show(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value[:4]))}{', ...' if len(value) > 4 else ''}]"
    return str(value) if isinstance(value, Schedule) else shorten(value)


def _keys_of(family: str) -> set[str]:
    return {key for key, _, _ in _knobs(config_of(family), "")}


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
        wanted, *others = arguments  # such as int | Literal["auto"]
        if isinstance(value, dict) and Schedule in others:
            return _schedule(value)
        return value if any(value in typing.get_args(other) for other in others) else _convert(value, wanted)
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


class WrongSchedule(ValueError):
    """Says what is wrong."""


def _schedule(value: dict) -> Schedule:
    names = [key for key in value if key != UNTIL]
    if len(names) != 1 or names[0] not in FORMS or UNTIL not in value:
        raise WrongSchedule(f"its keys are {', '.join(map(shorten, list(value)[:4])) or 'none'}")
    ends, until = value[names[0]], value[UNTIL]
    if not isinstance(ends, list) or len(ends) != 2:
        raise WrongSchedule(f"{names[0]} must be a list of two numbers")
    try:
        first, last, until = (_convert(number, float) for number in (*ends, until))
    except (TypeError, ValueError, OverflowError):
        raise WrongSchedule(f"{_show([*ends, until])} must be numbers") from None
    if until not in (span := Range(above=0, most=MOST_KIMG)):
        raise WrongSchedule(f"{UNTIL}={shorten(until)} must be {span}")
    return Schedule(names[0], first, last, until)


def _type_of(owner: Any, knob: Any) -> Any:
    return typing.get_type_hints(type(owner))[knob.name]


def _takes_schedule(wanted: Any) -> bool:
    """Whether the type of a knob, or of the items of a list, has `Schedule` in it."""
    return wanted is Schedule or any(map(_takes_schedule, typing.get_args(wanted)))


def _type_name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Schedule: "a schedule"}
    if wanted in names:
        return names[wanted]
    arguments = typing.get_args(wanted)
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(arguments) if len(arguments) > 1 else arguments[0]
    if typing.get_origin(wanted) is list:
        return "a list of numbers such as [0, 0.99]"
    return " or ".join(_type_name(argument) for argument in arguments)
