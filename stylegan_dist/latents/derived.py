"""A folder like that of a run for a generator that was made from a run's: tuned, or blended with another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.latents.trained import Trained, open_trained
from stylegan_dist.training.checkpoint import make_room, publish
from stylegan_dist.training.run_folder import CONFIG_NAME
from stylegan_dist.training.saved import STATE, checkpoint_folder, read_manifest
from stylegan_dist.training.tensor_file import TensorFile

RECORD = "derived.json"


def save_derived(trained: Trained, generator: nn.Module, folder: Path, facts: dict[str, Any]) -> Trained:
    """Write `generator` into a folder like that of the run of `trained`, where all tools find it; returns it from there.

    The checkpoint is that of the run with another averaged generator. A former folder of this kind is replaced.

    Args:
        facts: what belongs to it, for people.
    Raises:
        InputError: something else has that name.
        OSError: it cannot be written.
    """
    check_place(folder)
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    source, place = checkpoint_folder(trained.run_dir, trained.nimg), checkpoint_folder(draft, trained.nimg)
    shutil.copy(trained.run_dir / CONFIG_NAME, draft / CONFIG_NAME)
    temporary = make_room(place)
    files: dict[str, Any] = {}
    for name, measure in read_manifest(source)[0].items():
        if name != STATE and not name.startswith("g_ema"):
            _same(source / name, temporary / name)
            files[name] = {"bytes": measure.bytes, "sha256": measure.sha256}
    files["g_ema.safetensors"] = _write(generator, temporary / "g_ema.safetensors")
    publish(temporary, place, (source / STATE).read_text().rstrip("\n"), [{"files": files}])
    write_whole(draft / RECORD, json.dumps(facts, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
    return open_trained(folder, str(trained.device), trained.nimg)


def check_place(folder: Path) -> None:
    """Raise InputError where something else than such a generator is in the way."""
    if folder.exists() and not (folder / RECORD).is_file():
        raise InputError(f"{folder} is something else than a tuned or blended generator: move it away, or choose another place")


def _write(generator: nn.Module, path: Path) -> dict[str, int | str]:
    content = {name: value.cpu() for name, value in generator.state_dict().items()}
    file = TensorFile(content)
    for name, value in content.items():
        file[name] = value
    return file.write(path)


def _same(source: Path, target: Path) -> None:
    """A file under a second name; a copy where that is not possible. Files of checkpoints are never written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
