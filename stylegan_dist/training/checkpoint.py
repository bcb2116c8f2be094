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
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import file_digest
from stylegan_dist.ranks import ALONE, Ranks, Sharded
from stylegan_dist.training.saved import MANIFEST, NAMES, STATE, SavedTensors, file_names, load_state, read_manifest, sound

Tensors = Mapping[str, Mapping[str, Tensor | Sharded]]  # file name without ending -> tensors by name

FOLDER = "checkpoints"
_NAME = re.compile(r"nimg-(\d{8,19})")
# Checkpoints that this process has written or examined: the states of the files at that time, and the damage.
_known: dict[Path, tuple[dict[str, tuple[int, ...]], str | None]] = {}


class Diverged(InputError):
    """The state of the run has values that are not finite. It must not be saved."""


def checkpoint_folder(run_dir: Path, nimg: int) -> Path:
    return run_dir / FOLDER / f"nimg-{nimg:08d}"


def list_checkpoints(run_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """(images seen, folder) of all checkpoints, whole or damaged, oldest first."""
    folder = Path(run_dir) / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [(int(match[1]), entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return sorted((nimg, entry) for nimg, entry in found
                  if nimg and entry == checkpoint_folder(Path(run_dir), nimg) and entry.is_dir())


def save_checkpoint(run_dir: Path, nimg: int, tensors: Tensors, state: dict, ranks: Ranks = ALONE,
                    file_bytes: int = 1 << 30) -> Path:
    """Write one checkpoint. All ranks must call it with the same names.

    Of a state that is distributed over the ranks, a rank holds no more than one file at a time.

    Args:
        tensors: file name without ending -> tensors by name.
        state: what state.json holds.
        file_bytes: largest file, except for single tensors that are larger.
    Raises:
        Diverged: a value is not finite, see `sound`.
        InputError: the disk is full or not writable.
        On all ranks; nothing is left behind.
    """
    final = checkpoint_folder(run_dir, nimg)
    temporary = final.parent / f".{final.name}.tmp"
    ranks.on_main(lambda: _make_room(temporary))
    try:
        written, failure, broken = {}, None, []
        for number, (name, content) in enumerate(_cut(tensors, file_bytes).items()):
            mine = number % ranks.world_size == ranks.rank
            host = {key: whole.detach().cpu().contiguous() for key, value in content.items()
                    if (whole := _whole(value, mine)) is not None and mine}
            broken += [f"{key} in {name}" for key, value in host.items() if not sound(name, value)]
            # Reading needs all ranks, so one that cannot write goes on reading, and fails at the end.
            if mine and failure is None:
                try:
                    save_file(host, temporary / name)
                    written[name] = _measure(temporary / name)
                except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
                    failure = str(error)
            del host  # before the next file is there
        gathered = ranks.gather([written, broken[:1]])
        if found := [key for _, keys in gathered for key in keys]:
            raise Diverged(f"{found[0]} has values that are not finite")
        ranks.together(lambda: _raise(failure))
        files = {name: measure for part, _ in gathered for name, measure in part.items()}
        ranks.on_main(lambda: _publish(temporary, final, state, files))
    except BaseException:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _make_room(temporary: Path) -> None:
    temporary.parent.mkdir(exist_ok=True)  # not the run's folder: where that has gone, half a run must not appear
    for leftover in temporary.parent.glob(".*.tmp"):  # of a process that was killed while it wrote or removed
        _delete(leftover)
    temporary.mkdir()


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


def _raise(failure: str | None) -> None:
    if failure is not None:
        raise InputError(failure)


def _publish(temporary: Path, final: Path, state: dict, files: dict) -> None:
    (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n")
    files = dict(sorted({**files, STATE: _measure(temporary / STATE)}.items()))
    (temporary / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    _sync(temporary / MANIFEST)
    if final.exists():  # damaged, so that the run continued from an older one
        _remove(final)
    temporary.rename(final)
    _sync(final.parent)
    _known[final] = _file_states(final), None


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".{folder.name}.removed.tmp")
    folder.rename(hidden)
    _delete(hidden)


def _delete(hidden: Path) -> None:
    if hidden.is_symlink():  # somebody moved a checkpoint to another disk, where it stays
        hidden.unlink()
    else:
        shutil.rmtree(hidden, ignore_errors=True)


def prune_checkpoints(run_dir: Path, keep: int, archive_every: int) -> list[str]:
    """Remove what is older than the newest `keep`, but the first in each stretch of `archive_every` images (0: none).

    Damaged checkpoints count neither as new nor as first. They are removed where enough newer whole ones exist. The function
    reads only checkpoints that this process has neither written nor examined, and only where something could be removed.

    Returns: damage that was not known before.
    """
    news: list[str] = []
    checkpoints = list_checkpoints(run_dir)
    if len(checkpoints) <= keep:
        return news
    kept, whole = [], 0
    for nimg, folder in reversed(checkpoints):
        if whole == keep:
            break
        kept.append((nimg, folder))
        whole += _is_whole(folder, news)
    if archive_every:
        for _, group in groupby(checkpoints, key=lambda one: one[0] // archive_every):
            stretch = list(group)
            if len(stretch) > 1 and stretch[0] not in kept:
                kept.append(next((one for one in stretch if _is_whole(one[1], news)), stretch[0]))
            else:
                kept.append(stretch[0])
    for one in checkpoints:
        if one not in kept:
            _remove(one[1])
    return news


def _is_whole(folder: Path, news: list[str]) -> bool:
    states, problem = _known.get(folder, ({}, None))
    if states != _file_states(folder):
        problem = check_checkpoint(folder)
        news += [problem] if problem else []
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
