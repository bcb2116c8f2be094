"""Checkpoints: written completely or not at all, readable under any number of ranks.

    checkpoints/nimg-00012800/
        g.safetensors  d.safetensors  g_ema.safetensors      parameters and buffers by name
        optimizer_g.safetensors  optimizer_d.safetensors     "<parameter>.<state>", full tensors
        state.json                                           images seen, running means, identities
        manifest.json                                        sizes and SHA-256 of the others, written last

Tensors are complete and have the names of the parameters, whatever engine trained. A file that would become too large
is split between tensors into g-00001-of-00003.safetensors and so on. The ranks write files in turn.

The folder is written under a hidden name, synced and renamed. It gets a hidden name again before it is removed. A
killed process therefore never leaves part of a checkpoint under its final name, and an incomplete checkpoint was
damaged later. The newest checkpoint is found by looking at the folder, not by a pointer. No pickle is used. `saved.py`
reads checkpoints.

A save has three parts. All ranks together copy the tensors to the host (`staged`). Each rank examines and writes its files
(`write_file`). Rank 0 puts the checkpoint in its place (`publish`). `saver.py` does the last two in the background.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_dist.config.schema import CheckpointConfig
from stylegan_dist.errors import Diverged, InputError
from stylegan_dist.files import file_digest
from stylegan_dist.ranks import Ranks, Sharded, host_name
from stylegan_dist.training.best import forget_best, is_best
from stylegan_dist.training.lease import number_of
from stylegan_dist.training.pin import is_pinned
from stylegan_dist.training.saved import (
    FOLDER,
    MANIFEST,
    NAMES,
    STATE,
    SavedTensors,
    checkpoint_folder,
    file_names,
    load_state,
    read_manifest,
    sound,
)
from stylegan_dist.training.tensor_file import TensorFile

Tensors = Mapping[str, Mapping[str, Tensor | Sharded]]  # file name without ending -> tensors by name

_NAME = re.compile(r"nimg-(\d{8,19})")
_UNFINISHED = re.compile(r"\.nimg-\d+\.([0-9a-f]{32})(?:\.\d+)?\.tmp")
# Checkpoints that this process has written or examined: the states of the files at that time, and the damage.
_known: dict[Path, tuple[dict[str, tuple[int, ...]], str | None]] = {}


def list_checkpoints(run_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """(images seen, folder) of all checkpoints, whole or damaged, oldest first."""
    folder = Path(run_dir) / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [(int(match[1]), entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return sorted((nimg, entry) for nimg, entry in found
                  if nimg and entry == checkpoint_folder(Path(run_dir), nimg) and entry.is_dir())


def make_room(final: Path, token: str = "", number: int = 0) -> Path:
    """Make the folder in which a checkpoint is written, and remove what killed processes have left. For rank 0.

    Args:
        token: of the owner of the run (`lease.py`). Another owner's folder has another name.
        number: of the save. A thread that was given up may still write into the folder of an earlier one.
    Raises:
        OSError
    """
    folder = final.parent
    folder.mkdir(exist_ok=True)  # not the run's folder: where that has gone, half a run must not appear
    temporary = folder / (f".{final.name}.{token}.{number}.tmp" if token else f".{final.name}.tmp")
    for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote or removed
        owner = _UNFINISHED.fullmatch(leftover.name)
        if owner is None or number_of(owner[1]) <= number_of(token):  # later owners may be at work
            _delete(leftover)
    temporary.mkdir()
    return temporary


def staged(tensors: Tensors, file_bytes: int, ranks: Ranks, buffers: dict[str, Tensor]) -> Iterator[tuple[str, TensorFile]]:
    """Name and content of each file that this rank is to write, copied to the host. All ranks must go through all of it.

    Args:
        file_bytes: largest file, except for single tensors that are larger.
        buffers: memory of files by name, used again and kept up to date.
    """
    device = ranks.device
    for number, (name, content) in enumerate(_cut(tensors, file_bytes).items()):
        mine = number % ranks.world_size == ranks.rank
        file = TensorFile(content, buffers.get(name), pinned=device.type == "cuda") if mine else None
        for key, value in content.items():
            whole = _whole(value, mine)
            if file is not None and whole is not None:
                file[key] = whole
        if file is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            buffers[name] = file.buffer
            yield name, file


def new_part() -> dict[str, Any]:
    """What a rank has to say of its part of a checkpoint: measures by file, why it could not write, what is not finite."""
    return {"files": {}, "failure": None, "broken": None}


def write_file(part: dict[str, Any], temporary: Path, name: str, file: TensorFile, rank: int,
               cancelled: Callable[[], bool] = lambda: False) -> None:
    """Examine and write a file; `part` tells the outcome. Nothing more is written after a failure. Needs no other rank."""
    if part["broken"] is None:
        part["broken"] = next((f"{key} in {name}" for key, value in file.items() if not sound(name, value)), None)
    if part["broken"] is None and part["failure"] is None:
        try:
            part["files"][name] = file.write(temporary / name, cancelled)
        except OSError as error:
            part["failure"] = f"{error} (on rank {rank}, {host_name()})" if rank else str(error)


def judge(parts: Sequence[Mapping[str, Any]]) -> None:
    """Raises Diverged or InputError where a rank says so of its part."""
    for part in parts:
        if part["broken"] is not None:
            raise Diverged(f"{part['broken']} has values that are not finite")
    for part in parts:
        if part["failure"] is not None:
            raise InputError(part["failure"])


def _cut(tensors: Tensors, limit: int) -> dict[str, Mapping[str, Tensor | Sharded]]:
    """File name -> tensors. Depends on names and sizes alone."""
    files: dict[str, Mapping[str, Tensor | Sharded]] = {}
    for name, content in tensors.items():
        parts: list[dict[str, Tensor | Sharded]] = [{}]
        size = 0
        for key, value in content.items():
            added = value.shape.numel() * value.dtype.itemsize
            if parts[-1] and size + added > limit:
                parts.append({})
                size = 0
            parts[-1][key] = value
            size += added
        files.update(zip(file_names(name, len(parts)), parts, strict=True))
    return files


def _whole(value: Tensor | Sharded, wanted: bool) -> Tensor | None:
    if isinstance(value, Sharded):
        return value.read()
    return value if wanted else None


def publish(temporary: Path, final: Path, state: str, parts: Sequence[Mapping[str, Any]],
            permit: Callable[[], None] = lambda: None) -> None:
    """Complete a checkpoint of which all ranks have written their part, and give it its name. For rank 0.

    Args:
        state: the text of state.json.
        permit: raises where this process must not change the run any more.
    """
    (temporary / STATE).write_text(state + "\n")
    measures = {name: measure for part in parts for name, measure in part["files"].items()}
    files = dict(sorted({**measures, STATE: _measure(temporary / STATE)}.items()))
    (temporary / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    _sync(temporary / MANIFEST)
    _sync(temporary)
    permit()
    if final.exists():  # damaged, so that the run continued from an older one
        _remove(final)
        permit()
    temporary.rename(final)
    _sync(final.parent)
    _known[final] = _file_states(final), None


def _remove(folder: Path, spared: Callable[[], bool] = lambda: False) -> None:
    """Remove a checkpoint, unless it turns out to be spared when it has lost its name."""
    hidden = folder.with_name(f".{folder.name}.removed.tmp")
    folder.rename(hidden)
    if spared():
        hidden.rename(folder)
    else:
        _delete(hidden)


def _delete(hidden: Path) -> None:
    if hidden.is_symlink():  # somebody moved a checkpoint to another disk, where it stays
        hidden.unlink()
    else:
        shutil.rmtree(hidden, ignore_errors=True)


def put_aside(run_dir: Path, beyond: int) -> None:
    """Give checkpoints with more than `beyond` images another name, under which no run continues from them.

    One of the same number that has the name already is removed. A score of one of them is forgotten: other weights will have
    seen as many images.
    """
    forget_best(run_dir, beyond)
    for nimg, folder in list_checkpoints(run_dir):
        if nimg > beyond:
            aside = name_aside(folder)
            if aside.exists():
                _remove(aside)
            folder.rename(aside)


def name_aside(folder: Path) -> Path:
    """The name of a checkpoint that the run has gone back from."""
    return folder.with_name(f"abandoned-{folder.name}")


def prune_checkpoints(run_dir: Path, settings: CheckpointConfig, batch: int,
                      permit: Callable[[], None] = lambda: None) -> list[str]:
    """Remove what is older than the newest `checkpoint.keep`, but the best (`best.py`), and the first in each stretch of
    `checkpoint.archive_kimg`.

    The one to which a run that diverges goes back is kept, too (`newest_healthy`), and for a while what another process reads
    (`pin.py`).

    Damaged checkpoints count neither as new nor as first. They are removed where enough newer whole ones exist. The function
    reads only checkpoints that this process has neither written nor examined, and only where something could be removed.

    Args:
        batch: images in a step.
        permit: raises where this process must not change the run any more.
    Returns: what a person should hear: damage that was not known before.
    """
    damage: list[str] = []
    keep, archive_every = settings.keep, int(settings.archive_kimg * 1000)
    checkpoints = list_checkpoints(run_dir)
    if len(checkpoints) <= keep:
        return []
    kept, whole = [], 0
    for nimg, folder in reversed(checkpoints):
        if whole == keep:
            break
        kept.append((nimg, folder))
        whole += _is_whole(folder, damage)
    if archive_every:
        for _, group in groupby(checkpoints, key=lambda one: one[0] // archive_every):
            stretch = list(group)
            if len(stretch) > 1 and stretch[0] not in kept:
                kept.append(next((one for one in stretch if _is_whole(one[1], damage)), stretch[0]))
            else:
                kept.append(stretch[0])
    healthy = newest_healthy(run_dir, settings.every_kimg, batch, damage)
    kept += [one for one in checkpoints if one[0] == healthy]
    news = [f"a damaged checkpoint, which does not count among checkpoint.keep={keep}: {problem}" for problem in damage]
    for nimg, folder in checkpoints:
        if (nimg, folder) not in kept and not is_best(run_dir, nimg, news) and not is_pinned(run_dir, nimg):
            permit()
            _remove(folder, lambda nimg=nimg: is_best(run_dir, nimg, []) or is_pinned(run_dir, nimg))  # type: ignore[misc]
    return news


def newest_healthy(run_dir: Path, every_kimg: float, batch: int, damage: list[str] | None = None) -> int:
    """Images seen at the checkpoint to which a run that diverges goes back; 0: there is none.

    It is the newest whole one that had no step with values that are not finite shortly before. One that was saved at an
    interval comes before one that was saved on request, because where a run goes back to must not depend on where it was
    interrupted.

    Args:
        every_kimg: between two that are due.
        batch: images in a step.
        damage: takes what is wrong with damaged ones; None to read all of each, also if it was examined before.
    """
    def whole(folder: Path) -> bool:
        return check_checkpoint(folder) is None if damage is None else _is_whole(folder, damage)

    others = []
    for nimg, folder in reversed(list_checkpoints(run_dir)):
        if is_healthy(folder):
            if not passes(every_kimg, nimg - batch, nimg):
                others.append((nimg, folder))
            elif whole(folder):
                return nimg
    return next((nimg for nimg, folder in others if whole(folder)), 0)


def passes(every_kimg: float, before: int, nimg: int) -> bool:
    """Whether what is due every `every_kimg` is due after a step from `before` to `nimg` images."""
    every = every_kimg * 1000
    return nimg // every > before // every


def is_healthy(folder: Path) -> bool:
    """Whether none of the steps shortly before a checkpoint had values that are not finite. Older ones do not say: they are."""
    try:
        return not load_state(folder).broken_steps
    except InputError:  # damaged
        return False


def _is_whole(folder: Path, damage: list[str]) -> bool:
    states, problem = _known.get(folder, ({}, None))
    if states != _file_states(folder):
        problem = check_checkpoint(folder)
        damage += [problem] if problem else []
    return problem is None


def _file_states(folder: Path) -> dict[str, tuple[int, ...]]:
    """Values that change when somebody writes to a file or replaces it."""
    states: dict[str, tuple[int, ...]] = {}
    for entry in os.scandir(folder):
        if entry.is_file():
            state = entry.stat()
            states[entry.name] = state.st_size, state.st_mtime_ns, state.st_ino
    return states


def check_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint, read completely. None if it is whole: a run can continue from it.

    Whole: all files are there, of the size and content that the manifest promises, and hold what they must.
    """
    try:
        states = _file_states(folder)
        problem = _damage(folder)
    except OSError as error:
        return f"{folder} cannot be read ({error})"
    _known[folder] = states, problem
    return problem


def _damage(folder: Path) -> str | None:
    try:
        for name, promised in read_manifest(folder)[0].items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != promised.bytes or file_digest(path) != promised.sha256:
                return f"{path} is damaged"
        load_state(folder)
        for name in NAMES:
            for _ in SavedTensors(folder, name).values():  # looks at each
                pass
    except InputError as error:
        return str(error)
    return None


def newest_whole_checkpoint(run_dir: Path) -> tuple[int, list[str]]:
    """Images seen at the newest undamaged checkpoint (0 if there is none), and the damage passed over."""
    damage: list[str] = []
    for nimg, folder in reversed(list_checkpoints(run_dir)):
        problem = check_checkpoint(folder)
        if problem is None:
            return nimg, damage
        damage.append(problem)
    return 0, damage


def _measure(path: Path) -> dict[str, int | str]:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
