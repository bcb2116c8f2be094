"""Transfer: a new run begins with the weights of another one (docs/transfer.md).

`find_origin` looks on rank 0 which checkpoint or file that is. `Transfer` compares it with the networks of the run, on each
rank, before there is a folder of the run. `Transfer.begin` sets the values. When the run continues, nothing of this is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stylegan_dist.config import Change, Config, changes_of, dotted, to_dict
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.families import DEFAULT, family_of
from stylegan_dist.files import file_digest, open_regular, write_whole
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.ranks import Ranks, sum_of_bits
from stylegan_dist.records import read_record
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.checkpoint import check_checkpoint, list_checkpoints
from stylegan_dist.training.rules import Resolved
from stylegan_dist.training.saved import MANIFEST, MAX_JSON, Origin, SavedTensors, load_state
from stylegan_dist.training.snapshot import Which, find_checkpoint

ORIGIN_NAME = "origin.json"
TITLES = {"g": "generator", "g_ema": "average", "d": "discriminator"}
_AT = re.compile(r"(.+):(\d{1,18}|best|newest)")


def open_transfer(resolved: Resolved, index: DatasetIndex, ranks: Ranks) -> Transfer | None:
    """What a run is to begin with; None for random weights, and where the run continues. All ranks must call it.

    Raises:
        InputError: `run.init_from` is missing, damaged or has changed, or does not fit the run.
    """
    run = resolved.config.run
    if not run.init_from:
        return None
    run_dir = Path(run.dir)
    found = ranks.broadcast(ranks.on_main(lambda: None if list_checkpoints(run_dir)
                                          else asdict(find_origin(run.init_from, run_dir))))
    return None if found is None else ranks.together(lambda: Transfer(Origin(**found), resolved, index))


def find_origin(text: str, run_dir: Path) -> Origin:
    """The checkpoint or file that `run.init_from` names, read whole.

    A run that was started before, and has no checkpoint yet, begins with the same one again.

    Raises:
        InputError: there is none, it is damaged, or it is not what the run began with.
    """
    before = read_origin(run_dir)
    if before is not None and before.init_from != text:
        before = None
    path = Path(text)
    which: Which = "newest"
    if not path.exists() and (match := _AT.fullmatch(text)):
        path = Path(match[1])
        which = int(match[2]) if match[2].isdigit() else cast(Which, match[2])
    if path.is_file():
        nimg, digest = 0, file_digest(path)
    elif path.is_dir():
        if not (path / MANIFEST).exists():
            nimg = find_checkpoint(path, before.nimg if before else which)
            path = dict(list_checkpoints(path))[nimg]
        elif problem := check_checkpoint(path):
            raise InputError(f"run.init_from: {problem}")
        nimg, digest = load_state(path).nimg, file_digest(path / MANIFEST)
    else:
        raise InputError(f"run.init_from={text} is not there: give the folder of a run or of a checkpoint, or a .safetensors "
                         "file")
    if before is not None and before.sha256 != digest:
        raise InputError(f"{path} has changed since {run_dir} began with it: restore it, choose another run.dir, or remove "
                         f"{run_dir / ORIGIN_NAME} to begin with what is there now")
    return Origin(text, str(path), nimg, digest)


def read_origin(run_dir: Path) -> Origin | None:
    """What the start of a run has left about its origin, if it has one.

    Raises:
        InputError: it is damaged.
    """
    path = run_dir / ORIGIN_NAME
    try:
        with open_regular(path) as file:
            return read_record(Origin, file.read(MAX_JSON + 1), MAX_JSON)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it") from None


def record_origin(run_dir: Path, origin: Origin | None) -> None:
    """Leave in the folder of a new run what it has begun with, which binds a start that finds no checkpoint."""
    if origin is not None:
        write_whole(run_dir / ORIGIN_NAME, json.dumps(asdict(origin), indent=1) + "\n")
    else:
        (run_dir / ORIGIN_NAME).unlink(missing_ok=True)


class Transfer:
    """The weights that the networks of a run begin with, open and compared.

    Attributes:
        origin: with its table.
        running: running statistics of the origin's objective by name.
        checksum: a number that is the same on all ranks if they have read the same; after `begin`.
    Raises:
        InputError: they do not fit.
    """

    def __init__(self, origin: Origin, resolved: Resolved, index: DatasetIndex):
        config, path = resolved.config, Path(origin.path)
        now = SampleShape(index.resolution, index.channels, resolved.num_classes)
        meta = torch.device("meta")
        networks = {"g": build_generator(config, now, meta), "d": build_discriminator(config, now, meta)}
        self._expected = {name: {key: value.shape for key, value in network.state_dict().items()}
                          for name, network in networks.items()}
        self._expected["g_ema"] = self._expected["g"]
        self.running: dict[str, float] = {}
        self.checksum = 0.0
        before, hint = now, ""
        if path.is_dir():
            state = load_state(path)
            _check_same(file_digest(path / MANIFEST), origin)
            _check_family(state.config, config, origin)
            before = SampleShape(state.data.resolution, state.data.channels, state.data.num_classes)
            self.running = state.running
            self._files: dict[str, Mapping[str, Tensor]] = {name: SavedTensors(path, name) for name in TITLES}
            if not self._files["g"]:  # only the average was kept
                self._files["g"] = self._files["g_ema"]
            sections = ("generator.", "discriminator.") if self._files["d"] else ("generator.",)
            hint = _other_settings(state.config, config, sections)
        else:
            _check_same(file_digest(path), origin)
            self._files = self._of_one_file(path)
        rows: dict[str, dict[str, list[str]]] = {}
        problems: list[str] = []
        for name in TITLES:
            rows[name] = self._compare(name, config, before, now, problems)
        self._loaded = {name: frozenset(of["loaded"]) for name, of in rows.items()}
        self._check(config, origin, problems, _other_shape(before, now), hint)
        self._check_frozen(getattr(networks["d"], "frozen", ()))
        self.origin = replace(origin, table=self._table(rows))

    def _of_one_file(self, path: Path) -> dict[str, Mapping[str, Tensor]]:
        """The file has the tensors of the network with which it shares more names."""
        saved = SavedTensors(path.parent, "g_ema", path.name)
        shared = {name: len(saved.keys() & self._expected[name].keys()) for name in ("g", "d")}
        return {name: saved if shared["d" if name == "d" else "g"] == max(shared.values()) else {} for name in TITLES}

    def _compare(self, name: str, config: Config, before: SampleShape, now: SampleShape,
                 problems: list[str]) -> dict[str, list[str]]:
        """What becomes of each tensor of a network. What nothing explains is added to the problems."""
        file, expected = self._files[name], self._expected[name]
        there = file.shapes() if isinstance(file, SavedTensors) else {}
        rows: dict[str, list[str]] = {"loaded": [], "begins anew": [], "new": [], "left out": []}
        for key in [*expected, *(key for key in there if key not in expected)]:
            explained = not family_of(config).carries_over("d" if name == "d" else "g", key, before, now)
            if key not in expected:
                what, problem = "left out", f"has {key}, of which this run has none"
            elif key not in there:
                what, problem = "new", f"has no {key}"
            elif explained or there[key] != expected[key]:
                what, problem = "begins anew", f"has {key} of the shape {list(there[key])} instead of {list(expected[key])}"
            else:
                rows["loaded"].append(key)
                continue
            rows[what].append(key)
            if not explained:
                problems.append(f"its {TITLES[name]} {problem}" if there else f"it has no {TITLES[name]}")
        return rows

    def _check(self, config: Config, origin: Origin, problems: list[str], other_shape: str, hint: str) -> None:
        if not any(self._loaded.values()):
            raise InputError(f"run.init_from: nothing in {origin.path} fits these networks"
                             f"{f' ({problems[0]})' if problems else ''}{other_shape}{hint}; choose another one")
        if problems and config.run.init_strict:
            several = len(set(problems)) - 1
            raise InputError(f"run.init_from={origin.init_from} does not fit: {problems[0]}"
                             f"{f', and {several} more' if several else ''}{hint}; run.init_strict=false begins anew what does "
                             "not fit")

    def _check_frozen(self, frozen: Iterable[str]) -> None:
        if random := [key for key in frozen if key not in self._loaded["d"]]:
            raise InputError(f"discriminator.freeze_layers freezes {random[0]}, which begins anew and would never learn: "
                             "freeze fewer layers, or none where the resolution changes")

    def _table(self, rows: dict[str, dict[str, list[str]]]) -> list[tuple[str, str, str]]:
        names = dict(TITLES)
        if rows["g"] == rows["g_ema"]:
            names = {"g": f"{TITLES['g']}, {TITLES['g_ema']}", "d": TITLES["d"]}
        table = []
        for name, title in names.items():
            everything = [key for keys in rows[name].values() for key in keys]
            for what, keys in rows[name].items():
                if keys:
                    count = sum(self._expected[name][key].numel() for key in keys if key in self._expected[name])
                    size = f": {count:,} values" if count else ""
                    table.append((title, what, ", ".join(grouped(keys, everything)) + size))
        return table

    @torch.no_grad()
    def begin(self, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Set the values of networks that are whole; returns those of the average by name."""
        sums = []
        for name, network in networks.items():
            values = network.state_dict()
            for key in self._loaded[name]:
                values[key].copy_(self._files[name][key])
            sums.append(sum_of_bits(values.values()))
        average = {key: self._files["g_ema"][key] if key in self._loaded["g_ema"] else value.clone()
                   for key, value in networks["g"].state_dict().items()}
        self.checksum = sum(sums) + sum_of_bits(value.cpu() for value in average.values())
        return average


def _check_same(digest: str, origin: Origin) -> None:
    """Raise InputError where this rank sees something else than rank 0."""
    if digest != origin.sha256:
        raise InputError(f"run.init_from: {origin.path} is not on this machine what it is on that of rank 0: it must lie in a "
                         "folder that all nodes share")


def _check_family(saved: Mapping[str, Any], config: Config, origin: Origin) -> None:
    generator = saved.get("generator")
    family = generator.get("family", DEFAULT) if isinstance(generator, dict) else DEFAULT
    if family != config.generator.family:
        raise InputError(f"run.init_from={origin.init_from} has networks of the family {family}, not "
                         f"{config.generator.family}: set generator.family={family}, or choose another run.init_from")


def _other_shape(before: SampleShape, now: SampleShape) -> str:
    """How the samples of the origin differ from those of the run, for a message."""
    names = {"resolution": "pixels", "channels": "channels", "num_classes": "classes"}
    pairs = [(getattr(before, name), getattr(now, name), unit) for name, unit in names.items()]
    return "".join(f"; it has {was} {unit}, this run {is_now}" for was, is_now, unit in pairs if was != is_now)


def _other_settings(saved: Mapping[str, Any], config: Config, sections: tuple[str, ...]) -> str:
    """Which settings of these networks are not the origin's, for a message."""
    before, changes = dotted(saved), changes_of(config)
    other = [f"{key}={before[key]}" for key, value in dotted(to_dict(config)).items()
             if key.startswith(sections) and changes[key] is Change.FIXED
             and before.get(key, value) != value and not key.endswith("freeze_layers")]
    return f"; it was trained with {' '.join(other)}" if other else ""


def grouped(names: Collection[str], everything: Collection[str]) -> list[str]:
    """The shortest names of modules that have nothing else in them than `names`."""
    chosen, found = frozenset(names), dict[str, None]()
    mixed = {prefix for name in everything if name not in chosen for prefix in _prefixes(name)}
    for name in names:
        found[next(prefix for prefix in (*_prefixes(name), name) if prefix not in mixed)] = None
    return list(found)


def _prefixes(name: str) -> list[str]:
    """Of a dotted name, shortest first, without the name itself."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
