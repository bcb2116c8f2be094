"""Checkpoints: written completely or not at all, readable under any number of ranks.

    checkpoints/nimg-00012800/
        g.safetensors  d.safetensors  g_ema.safetensors      parameters and buffers by name
        optimizer_g.safetensors  optimizer_d.safetensors     "<parameter>.<state>", full tensors
        state.json                                           images seen, running means, identities
        manifest.json                                        sizes and SHA-256 of the others, written last

The folder is written under a temporary name, synced and renamed, so one that has a manifest is whole.
The newest is found by looking, never by a pointer. No pickle is involved anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stylegan_dist.errors import InputError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"nimg-(\d{8,})")


def checkpoint_folder(run_dir: Path, nimg: int) -> Path:
    return run_dir / FOLDER / f"nimg-{nimg:08d}"


def list_checkpoints(run_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """(images seen, folder) of all complete checkpoints, oldest first."""
    folder = Path(run_dir) / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [(int(match[1]), entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return sorted((nimg, entry) for nimg, entry in found if (entry / MANIFEST).is_file())


def save_checkpoint(run_dir: Path, nimg: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
    """Write one checkpoint.

    Args:
        tensors: file name without ending -> tensors by name.
        state: what state.json holds.
    Raises:
        OSError: the disk is full or not writable; nothing is left behind under a final name.
    """
    final = checkpoint_folder(run_dir, nimg)
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(".*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    for entry in final.parent.iterdir():  # and of one that was killed while it removed
        if _NAME.fullmatch(entry.name) and not (entry / MANIFEST).is_file():
            shutil.rmtree(entry, ignore_errors=True)
    temporary = final.parent / f".{final.name}.tmp"
    temporary.mkdir()
    try:
        for name, content in tensors.items():
            host = {key: value.detach().cpu().contiguous() for key, value in content.items()}
            save_file(host, temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n")
        files = {path.name: _measure(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
        _sync(temporary / MANIFEST)
        if final.exists():  # saved before, then continued from an older one: the content is the same
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(final.parent)
    except SafetensorError as error:  # how safetensors reports a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(str(error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def prune_checkpoints(run_dir: Path, keep: int, archive_every: int) -> None:
    """Remove all but the newest `keep`, and the first in each stretch of `archive_every` images (0: none)."""
    checkpoints = list_checkpoints(run_dir)
    archived, stretch = set(), -1
    for nimg, folder in checkpoints:
        if archive_every and nimg // archive_every > stretch:
            stretch = nimg // archive_every
            archived.add(folder)
    for _, folder in checkpoints[:-keep]:
        if folder not in archived:
            # Without its manifest a half-removed folder counts as none.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def check_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint: a file missing, of another size or content. None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, promised in files.items():
            path = folder / os.path.basename(name)
            if not path.is_file():
                return f"{path} is missing"
            if _measure(path, sync=False) != promised:
                return f"{path} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / MANIFEST} is damaged ({error})"
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


def load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one file of a checkpoint, on the CPU."""
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {folder / name}.safetensors: {error}; remove the folder to use an older one") from None


def load_state(folder: Path) -> dict:
    """The content of state.json."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / STATE}: {error}; remove the folder to use an older one") from None


def load_network(network: nn.Module, folder: Path, name: str) -> None:
    """Set parameters and buffers; every name and shape must fit."""
    try:
        network.load_state_dict(load_tensors(folder, name), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{folder / name}.safetensors does not fit the configured network: {first}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state under the names of the parameters; hyper-parameters belong to the configuration."""
    result = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                result[f"{name}.{key}"] = torch.as_tensor(value)
    return result


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`. Keeps the optimizer's own hyper-parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    numbers = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in numbers:
            raise InputError(f"the checkpoint's optimizer state names {name}, which the configured network does not have")
        state.setdefault(numbers[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _measure(path: Path, sync: bool = True) -> dict[str, int | str]:
    if sync:
        _sync(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(file):  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
