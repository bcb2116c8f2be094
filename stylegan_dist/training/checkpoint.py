"""Checkpoints: written completely or not at all, readable under any number of ranks.

    checkpoints/nimg-00012800/
        g.safetensors  d.safetensors  g_ema.safetensors      parameters and buffers by name
        optimizer_g.safetensors  optimizer_d.safetensors     "<parameter>.<state>", full tensors
        state.json                                           images seen, running means, identities
        manifest.json                                        sizes and SHA-256 of the others, written last

Whatever engine trained: tensors are whole and have their own names. A file that would become too large is cut
into g-00001-of-00003.safetensors and so on, between tensors. The ranks take turns in writing files.

The folder is written under a temporary name, synced and renamed, so one that has a manifest is whole.
The newest is found by looking, never by a pointer. No pickle is involved anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stylegan_dist.digest import file_digest
from stylegan_dist.errors import InputError
from stylegan_dist.training.engine import ALONE, Ranks, Sharded

Tensors = Mapping[str, Mapping[str, Tensor | Sharded]]  # file name without ending -> tensors by name

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


def save_checkpoint(run_dir: Path, nimg: int, tensors: Tensors, state: dict, ranks: Ranks = ALONE,
                    file_bytes: int = 1 << 30) -> Path:
    """Write one checkpoint. All ranks must call it with the same names.

    A rank holds no more than one file of a state that is spread over the ranks.

    Args:
        tensors: file name without ending -> tensors by name.
        state: what state.json holds.
        file_bytes: largest file, except for single tensors that are larger.
    Raises:
        InputError: the disk is full or not writable, on all ranks; nothing is left behind under a final name.
    """
    final = checkpoint_folder(run_dir, nimg)
    temporary = final.parent / f".{final.name}.tmp"
    ranks.on_main(lambda: _make_room(temporary))
    try:
        written, failure = {}, None
        for number, (name, content) in enumerate(_cut(tensors, file_bytes).items()):
            mine = number % ranks.world_size == ranks.rank
            host = {key: whole.detach().cpu().contiguous() for key, value in content.items()
                    if (whole := _whole(value, mine)) is not None and mine}
            # Reading needs all ranks, so one that cannot write goes on reading, and fails at the end.
            if mine and failure is None:
                try:
                    save_file(host, temporary / name)
                    written[name] = _measure(temporary / name)
                except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
                    failure = str(error)
            del host  # before the next file is there
        ranks.together(lambda: _raise(failure))
        files = {name: measure for part in ranks.gather(written) for name, measure in part.items()}
        ranks.on_main(lambda: _publish(temporary, final, state, files))
    except BaseException:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _make_room(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for leftover in temporary.parent.glob(".*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    for entry in temporary.parent.iterdir():  # and of one that was killed while it removed
        if _NAME.fullmatch(entry.name) and not (entry / MANIFEST).is_file():
            shutil.rmtree(entry, ignore_errors=True)
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
        for i, part in enumerate(parts, 1):
            files[f"{name}{f'-{i:05d}-of-{len(parts):05d}' if len(parts) > 1 else ''}.safetensors"] = part
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
    if final.exists():  # saved before, then continued from an older one: the content is the same
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)


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


class SavedTensors(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name, each read from the disk when it is asked for, on the CPU.

    Args:
        name: the file's name without ending, and without the number of a part.
    Raises:
        InputError: there is no such file, or it is damaged.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / f"{name}.safetensors"
        paths = [self.path] if self.path.exists() else sorted(folder.glob(f"{name}-*-of-*.safetensors")) or [self.path]
        with self._explained():
            self._files = [safe_open(path, framework="pt") for path in paths]
        self._where = {key: file for file in self._files for key in file.keys()}  # noqa: SIM118 - not a dictionary

    def __getitem__(self, key: str) -> Tensor:
        file = self._where[key]
        with self._explained():
            return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read {self.path}: {error}; remove the folder to use an older one") from None


def load_state(folder: Path) -> dict:
    """The content of state.json."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / STATE}: {error}; remove the folder to use an older one") from None


def load_network(network: nn.Module, folder: Path, name: str) -> None:
    """Set parameters and buffers; every name and shape must fit."""
    try:
        network.load_state_dict(dict(SavedTensors(folder, name)), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{folder / name}.safetensors does not fit the configured network: {first}") from None


def _measure(path: Path, sync: bool = True) -> dict[str, int | str]:
    if sync:
        _sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
