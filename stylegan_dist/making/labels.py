"""The classes of the files of a source: from a label file, from class files, from folders, from names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stylegan_dist.errors import InputError
from stylegan_dist.making.account import unicode
from stylegan_dist.making.containers import MAX_FILE_BYTES, Files
from stylegan_dist.records import parse_json, shorten

MODES = ("auto", "folders", "names", "json", "cls", "none")
LABEL_FILE = "dataset.json"
CLASS_ENDING = ".cls"
# The class names are a list in index.json: a class number such as a time stamp must not fill the memory.
MAX_CLASSES = 1_000_000
CLASS_BYTES = 64  # of a class number in a shard that are read: more is none
_BOM = b"\xef\xbb\xbf"


class Labels(NamedTuple):
    """The class of each file that becomes a sample."""

    numbers: dict[str, int] | None    # None: no classes
    classes: list[str] | None         # their names, in the order of the numbers
    given_by: set[str]                # the files of the source that say so


NONE = Labels(None, None, set())


def read_labels(mode: str, files: Files, listing: dict[str, str], names: list[str], path: Path) -> Labels:
    """The classes of files.

    Args:
        mode: one of MODES.
        files, listing: the source, and everything in it.
        names: of the files that become samples.
        path: of the source, for messages.

    Raises:
        InputError: labels that are missing or of a wrong form.
    """
    if mode == "folders":
        return _from_folders(files, names, path)
    if mode == "names":
        return _from_names(names)
    if mode == "none":
        return NONE
    found = NONE
    if mode in ("auto", "json"):
        found = _from_json(files, listing, names, path)
        if mode == "json" and found.numbers is None:
            raise InputError(f"{path} has no {LABEL_FILE} with labels at its top: choose --labels folders or none")
    if mode == "cls" or (mode == "auto" and found.numbers is None):
        found = _from_class_files(files, listing, names, path)
        if mode == "cls" and found.numbers is None:
            raise InputError(f"{path} has no class files ({CLASS_ENDING}) beside its samples: choose --labels folders or none")
    return found


def class_number(text: bytes) -> int:
    """The number in a class file. Raises ValueError when it is none."""
    digits = text.strip()
    if len(digits) > 20 or not digits.isdigit() or int(digits) >= MAX_CLASSES:
        raise ValueError(f"the class is {digits[:20]!r}, not a whole number below {MAX_CLASSES}")
    return int(digits)


def _from_folders(files: Files, names: list[str], path: Path) -> Labels:
    inner = {name: files.inside(name) for name in names}
    for name, inside in inner.items():
        if "/" not in inside:
            raise InputError(
                f"--labels folders needs every file in a sub-folder, but {name!r} lies at the top of {path}: "
                "move it into the folder of its class, or choose --labels none"
            )
    # One folder that holds everything, as in most archives, is no class, unless files lie in it.
    root = _common_folder(inner.values())
    if any("/" not in inside[len(root):] for inside in inner.values()):
        root = ""
    folders = {name: inside[len(root):].split("/", 1)[0] for name, inside in inner.items()}
    classes = sorted(set(folders.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    return Labels({name: numbers[folder] for name, folder in folders.items()}, [*map(unicode, classes)], set())


def _common_folder(names: Iterable[str]) -> str:
    """The deepest folder that all files are in, with a slash at its end; "" for none."""
    common: list[str] | None = None
    for name in names:
        steps = name.split("/")[:-1]
        if common is None:
            common = steps
        while common != steps[:len(common)]:
            common = common[:-1]
        if not common:
            return ""
    return "".join(f"{step}/" for step in common or ())


def _from_names(names: list[str]) -> Labels:
    beginnings = {name: re.split("[_-]", os.path.splitext(name.rpartition("/")[2])[0])[0] for name in names}
    found = set(beginnings.values())
    classes = sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)
    if len(classes) == len(names) > 1:
        raise InputError(f"--labels names finds a class of its own in each file, such as {classes[0]!r} in {names[0]!r}: name "
                         "the files CLASS_ANYTHING, or choose --labels folders or none")
    numbers = {name: number for number, name in enumerate(classes)}
    return Labels({name: numbers[beginning] for name, beginning in beginnings.items()}, [*map(unicode, classes)], set())


def _from_class_files(files: Files, listing: dict[str, str], names: list[str], path: Path) -> Labels:
    """As in WebDataset: KEY.cls beside KEY.jpg. Where names have dots, the longest key that has one counts."""
    numbers, given_by = {}, set()
    unlabelled = None
    for name in names:
        label_file = next((key + CLASS_ENDING for key in _keys(name) if key + CLASS_ENDING in listing), None)
        if label_file is None:
            unlabelled = unlabelled or name
            continue
        try:
            numbers[name] = class_number(files.read(label_file))
        except ValueError as error:
            raise InputError(f"{label_file!r} of {path}: {error}; correct it, or choose --labels none") from None
        given_by.add(label_file)
    if not numbers:
        return NONE
    if unlabelled:
        raise InputError(f"{path}: {unlabelled!r} has no class file ({CLASS_ENDING}) while others have one: label every file, "
                         "or choose --labels none")
    return Labels(numbers, _numbered(numbers), given_by)


def _keys(name: str) -> Iterator[str]:
    folder, slash, base = name.rpartition("/")
    while "." in base:
        base = base.rpartition(".")[0]
        yield folder + slash + base


def _from_json(files: Files, listing: dict[str, str], names: list[str], path: Path) -> Labels:
    place = _place_of_label_file(files, listing, names, path)
    if place is None:
        return NONE
    where = f"{place} of {path}"
    try:
        content = parse_json(files.read(place).removeprefix(_BOM), MAX_FILE_BYTES)
    except ValueError as error:
        raise InputError(f"{where} cannot be read ({error}): repair it, or choose --labels folders or none") from None
    if isinstance(content, dict) and content and "labels" not in content:
        keys = ", ".join(shorten(key) for key in list(content)[:5])
        raise InputError(f'{where} has no "labels", only {keys}: name them "labels", or choose --labels folders or none')
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return NONE
    root = place.removesuffix(LABEL_FILE)
    numbers = {}
    find = _finder(labels, where)
    for name in names:
        label = find(name[len(root):])
        if label is None:
            raise InputError(f"{where} has no label for {name!r}: label every file, or choose --labels none")
        if isinstance(label, list):
            raise InputError(
                f"{where} gives {name!r} a list of numbers; only integer class numbers are supported: "
                "replace the lists by class numbers, or choose --labels folders or none"
            )
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < MAX_CLASSES:
            raise InputError(f"{where} gives {name!r} the class {shorten(label)}, not an integer from 0 to {MAX_CLASSES - 1}")
        numbers[name] = label
    return Labels(numbers, _numbered(numbers), {place})


def _place_of_label_file(files: Files, listing: dict[str, str], names: list[str], path: Path) -> str | None:
    """At the top of the source, or where everything lies one or more folders down, there or on the way."""
    found = [name for name in listing if name == LABEL_FILE or name.endswith("/" + LABEL_FILE)]
    common = _common_folder(names)
    above = sorted((name for name in found if common.startswith(name.removesuffix(LABEL_FILE))), key=len)
    if found and not above:
        raise InputError(f"{path} has labels for a part of it only, {found[0]!r}: give that folder as SOURCE, put one "
                         f"{LABEL_FILE} at the top, or choose --labels folders or none")
    return above[0] if above else None


def _finder(labels: Any, where: str) -> Callable[[str], Any]:
    """What looks up the label of a name: as it is written, else without "./" and with slashes for backslashes."""
    pairs: dict[str, Any] = {}
    rows = labels.items() if isinstance(labels, dict) else labels
    wrong = InputError(f'{where}: "labels" must be a list of [name, class] pairs, a dict, or null')
    if not isinstance(labels, (dict, list)):
        raise wrong
    for row in rows:
        if not isinstance(row, (list, tuple)) or len(row) != 2 or not isinstance(row[0], str):
            raise wrong
        if pairs.setdefault(row[0], row[1]) != row[1]:
            raise InputError(f"{where} gives {row[0]!r} two classes: keep one of them")
    plain: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name in pairs:
            return pairs[name]
        if not plain:
            plain.update({key.replace("\\", "/").removeprefix("./"): label for key, label in pairs.items()})
        return plain.get(name)

    return find


def _numbered(numbers: dict[str, int]) -> list[str]:
    return [str(number) for number in range(max(numbers.values()) + 1)]
