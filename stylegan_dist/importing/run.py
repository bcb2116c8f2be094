"""Makes the folder of a run from a file of another project."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_dist import __version__
from stylegan_dist.config import Config, dump_config, load_config, to_dict
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.families import family_of
from stylegan_dist.files import write_whole
from stylegan_dist.importing import nvidia, r3gan, rosinality, tensorflow
from stylegan_dist.importing.containers import Container
from stylegan_dist.importing.foreign import Foreign, Table, converted
from stylegan_dist.importing.machine import Refused
from stylegan_dist.importing.values import Record
from stylegan_dist.kinds.base import MAX_CHANNELS, RESOLUTIONS
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.ops import native
from stylegan_dist.ranks import ALONE
from stylegan_dist.records import shorten
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.checkpoint import judge, make_room, new_part, publish, staged, write_file
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.run_folder import CONFIG_NAME
from stylegan_dist.training.saved import IMPORTED, NAMES, checkpoint_folder

IMPORT_NAME = "import.json"
FILE_BYTES = 1 << 30  # of a file of the checkpoint, at most
READERS: tuple[Callable[[dict[str, Any]], Foreign | None], ...] = (nvidia.read, r3gan.read, rosinality.read)
_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,9})\.pkl")  # thousands of images


@dataclass
class Imported:
    """What was imported.

    Attributes:
        tables: "g", "d", "g_ema" -> where its tensors have come from. Without "d" the file has no discriminator.
        nimg: images seen, of the checkpoint.
        counted: where that number comes from, in words.
    """

    foreign: Foreign
    tables: dict[str, Table]
    nimg: int
    counted: str
    digest: str


def import_file(path: Path, out: Path, nimg: int | None = None) -> Imported:
    """Make the folder of a run, with one checkpoint. No code of the file is run. After an error there is no folder.

    Args:
        nimg: images that the networks have seen; None: as the file or its name says, or 1.
    Raises:
        InputError: `out` exists or cannot be written; the file cannot be read, is none of the known ones, holds what no
            network needs, or networks that cannot be represented here.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists: choose another folder for the imported run")
    try:
        with Container(path) as container:
            foreign, digest = _foreign(container.root), container.digest()
            config = _config(foreign, path)
            states, tables = _states(foreign, config, container.size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Refused as error:
        raise InputError(f"{path} cannot be imported: {error} (nothing in it was run)") from None
    except InputError as error:
        raise InputError(f"{path} cannot be imported: {error}") from None
    images, counted = _images(foreign, path, nimg)
    imported = Imported(foreign, tables, images, counted, digest)
    data = {"fingerprint": IMPORTED + digest, "resolution": foreign.resolution, "channels": foreign.channels,
            "num_classes": foreign.classes}
    running = dict.fromkeys(family_of(config).objective.RUNNING, 0.0)
    facts = {"nimg": images, "segment": 0, "statistics": {}, **running, "data": data, "config": to_dict(config)}
    with _folder(out) as folder:
        _save(folder, images, {name: states.get(name, {}) for name in NAMES}, json.dumps(facts, indent=1))
        write_whole(folder / CONFIG_NAME, dump_config(config))
        write_whole(folder / IMPORT_NAME, json.dumps(_record(imported, path), indent=1) + "\n")
    return imported


def _foreign(root: Any) -> Foreign:
    """What the value of a file is."""
    if networks := tensorflow.networks_of(root):
        return tensorflow.read(networks)
    if isinstance(root, Record):
        root = {"G_ema": root}
    if isinstance(root, dict):
        for read in READERS:
            if foreign := read(root):
                return foreign
    inside = ", ".join([shorten(key) for key in root][:8]) if isinstance(root, dict) else type(root).__name__
    raise InputError(f"it holds no networks of a known project ({inside}): docs/import.md lists the formats")


def _config(foreign: Foreign, path: Path) -> Config:
    """A resolved configuration with the networks of a file. What says how to train is as rules choose it for new runs."""
    if foreign.resolution not in RESOLUTIONS or not 1 <= foreign.channels <= MAX_CHANNELS:
        raise InputError(f"networks for {foreign.channels} channels of {foreign.resolution} pixels are not possible here: "
                         f"1 to {MAX_CHANNELS}, and {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}")
    settings = {"generator.family": foreign.family, "data.conditional": bool(foreign.classes), **foreign.settings}
    config = load_config(None, [f"{key}={str(value).lower() if isinstance(value, bool) else value}"
                                for key, value in settings.items()])
    names = [str(number) for number in range(foreign.classes)] or None
    index = DatasetIndex(foreign.resolution, foreign.channels, "png", names, [0] * foreign.classes or None, [])
    group = settings.get("discriminator.mbstd_group")
    if isinstance(group, int):  # the batch of the rule may not be a multiple of it
        config.run.batch = group * max(32 // group, 2)
    with native.not_compiling():
        return resolve(config, index).config


def _states(foreign: Foreign, config: Config, size: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Table]]:
    """Tensors of the checkpoint by file, and where they have come from."""
    shape, meta = SampleShape(foreign.resolution, foreign.channels, foreign.classes), torch.device("meta")
    states: dict[str, dict[str, Tensor]] = {}
    tables: dict[str, Table] = {}
    for name, network in foreign.networks.items():
        ours = build_discriminator(config, shape, meta) if name == "d" else build_generator(config, shape, meta)
        what = "the discriminator" if name == "d" else f"the generator {name}"
        states[name], tables[name] = converted(network, ours, what, size)
        if tables[name].filled:
            ours.load_state_dict(states[name], strict=False, assign=True)
            states[name] |= {key: network.fill[key](ours) for key in tables[name].filled}
    if "g" not in states:
        states["g"], tables["g"] = states["g_ema"], tables["g_ema"]
        foreign.notes.append("the file has no generator beside the averaged one, which takes its place")
    if "d" not in states:
        foreign.notes.append("the file has no discriminator: pictures and scores are possible, and a run that begins from this "
                             "one has a new discriminator")
    return states, tables


def _images(foreign: Foreign, path: Path, nimg: int | None) -> tuple[int, str]:
    """Images seen, and how that is known."""
    if nimg is not None:
        return nimg, "as given"
    if foreign.nimg is not None:
        return foreign.nimg, "as the file says"
    if (match := _SNAPSHOT.fullmatch(path.name)) and int(match[1]):
        return 1000 * int(match[1]), "by the name of the file"
    return 1, "unknown: give --nimg to say otherwise"


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder under another name, which gets its own at the end, or is removed after an error."""
    temporary = out.with_name(f".{out.name}.import-{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            if os.path.lexists(out):
                raise InputError(f"{out} exists now: choose another folder for the imported run")
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another folder") from None


def _save(folder: Path, nimg: int, tensors: dict[str, dict[str, Tensor]], state: str) -> None:
    final = checkpoint_folder(folder, nimg)
    temporary, part = make_room(final), new_part()
    for name, file in staged(tensors, FILE_BYTES, ALONE, {}):
        write_file(part, temporary, name, file, 0)
    judge([part])
    publish(temporary, final, state, [part])


def _record(imported: Imported, path: Path) -> dict[str, Any]:
    """The content of import.json."""
    return {
        "file": path.name, "sha256": imported.digest, "format": imported.foreign.format, "licence": imported.foreign.licence,
        "nimg": imported.nimg, "nimg_known": imported.counted, "version": __version__, "notes": imported.foreign.notes,
        "tensors": {name: vars(table) for name, table in imported.tables.items()},
    }
