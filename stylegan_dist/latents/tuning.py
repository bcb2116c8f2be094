"""Pivotal tuning (Roich et al. 2021): the weights of the generator are tuned until fixed latents give the wanted images.

One generator is tuned for all images that are given. The result is a folder like that of a run.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.latents.loss import Loss
from stylegan_dist.latents.search import Report, Rows, draw
from stylegan_dist.latents.trained import Trained, open_trained
from stylegan_dist.training.checkpoint import make_room, publish
from stylegan_dist.training.run_folder import CONFIG_NAME
from stylegan_dist.training.saved import STATE, checkpoint_folder, read_manifest
from stylegan_dist.training.tensor_file import TensorFile

FOLDER = "tuned"
RECORD = "tuned.json"
LR = 3e-4
STEPS = 350


def tune(trained: Trained, parts: list[tuple[Rows, Loss]], steps: int, report: Report) -> Trained:
    """A tuned copy of the generator; Adam with the mean loss of all images.

    Args:
        parts: latents, which stay as they are, and their losses; each part is computed at once.
        report: takes the losses of a part in each step.
    """
    generator = copy.deepcopy(trained.generator).requires_grad_(True)
    tuned = Trained(trained.run_dir, generator, trained.shape, trained.kind, trained.nimg, trained.digest, trained.device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LR)
    images = sum(len(rows.numbers) for rows, _ in parts)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for rows, loss in parts:
            each = loss(draw(tuned, rows))
            (each.sum() / images).backward()
            report(each.detach())
        optimizer.step()
    generator.requires_grad_(False)
    return tuned


def save_tuned(tuned: Trained, out: Path, facts: dict[str, Any]) -> Trained:
    """Write a generator into a folder like that of its run, `OUT/tuned`, where all tools find it; returns it from there.

    The checkpoint is that of the run with another averaged generator. A former folder of this kind is replaced.

    Args:
        facts: what belongs to it, for people.
    Raises:
        InputError: something else has that name.
        OSError: it cannot be written.
    """
    final = out / FOLDER
    check_place(out)
    folder = out / f".{FOLDER}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source, place = checkpoint_folder(tuned.run_dir, tuned.nimg), checkpoint_folder(folder, tuned.nimg)
    shutil.copy(tuned.run_dir / CONFIG_NAME, folder / CONFIG_NAME)
    temporary = make_room(place)
    files: dict[str, Any] = {}
    for name, measure in read_manifest(source)[0].items():
        if name != STATE and not name.startswith("g_ema"):
            _same(source / name, temporary / name)
            files[name] = {"bytes": measure.bytes, "sha256": measure.sha256}
    files["g_ema.safetensors"] = _write(tuned.generator, temporary / "g_ema.safetensors")
    publish(temporary, place, (source / STATE).read_text().rstrip("\n"), [{"files": files}])
    write_whole(folder / RECORD, json.dumps(facts, indent=1) + "\n")
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)
    return open_trained(final, str(tuned.device), tuned.nimg)


def check_place(out: Path) -> None:
    """Raise InputError where something else than a tuned generator is in the way."""
    if (out / FOLDER).exists() and not (out / FOLDER / RECORD).is_file():
        raise InputError(f"{out / FOLDER} is no tuned generator: move it away, or choose another --out")


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
