"""One step of a real training, of a small network on a data set that is made for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stylegan_dist.doctor.asking import TEMPORARY
from stylegan_dist.doctor.child import last_line, python_command
from stylegan_dist.doctor.record import Check, Finding, Options, error, ok

SECONDS = 60  # for the training
IMAGES, RESOLUTION = 8, 16
# All phases of the published losses, with a reader process; everything that a machine decides is left to it.
SMALL = (
    "run.kimg=0.008", "run.batch=8", "run.world_size=1", "data.workers=1", "data.lanes=1", "data.verify=never",
    "generator.z_dim=16", "generator.w_dim=16", "generator.mapping_layers=1", "generator.channel_base=256",
    "generator.channel_max=16", "discriminator.channel_base=256", "discriminator.channel_max=16", "discriminator.mbstd_group=4",
    "loss.r1_gamma=1", "monitor.wandb=disabled", "monitor.grid_columns=2", "monitor.grid_rows=2",
)


def _training(options: Options) -> Iterator[Finding]:
    import torch

    if not options.scratch:
        yield error("training step", "there is no folder to write a small data set to", "set TMPDIR to a folder with room")
        return
    folder = Path(options.scratch)
    _make_data(folder)
    env = dict(os.environ)
    if env.get("STYLEGAN_DIST_BUILD", "auto") == "auto":  # compiling takes minutes, and is looked at by itself
        env["STYLEGAN_DIST_BUILD"] = "never"
    command = python_command("stylegan_dist.cli", "main", "train", f"data.shards={folder / 'shards'}",
                             f"run.dir={folder / 'run'}", *SMALL)
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, errors="replace") as process:
        try:
            reason = last_line(process.communicate(timeout=SECONDS)[1]).removeprefix("error: ")
            wrong = f"training ends with exit code {process.returncode}: {reason}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            wrong = f"training has not taken a step within {SECONDS} s: {last_line(process.communicate()[1])}"
    if wrong:
        yield error("training step", wrong, "do what the text says; if it says nothing, train something small by hand (bash "
                    "launch/demo.sh), and report where that stops")
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    yield ok("training step", f"packed {IMAGES} images, trained for a step on {where}, saved a checkpoint and samples")


def _make_data(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from stylegan_dist.kinds.image import ImageOptions
    from stylegan_dist.making.pack import PackOptions, pack

    images = folder / "images"
    images.mkdir()
    y, x, c = np.ogrid[:RESOLUTION, :RESOLUTION, :3]
    for number in range(IMAGES):
        Image.fromarray((13 * x * (number + 1) + 7 * y + 80 * c).astype(np.uint8)).save(images / f"{number}.png")
    with contextlib.redirect_stdout(sys.stderr):
        pack(images, folder / "shards", PackOptions(ImageOptions(resolution=RESOLUTION), workers=1))


CHECKS = (
    Check("training step", _training, SECONDS + 15, "train something small by hand (bash launch/demo.sh); see where it stops",
          ("PyTorch", "libraries", "GPU", TEMPORARY)),
)
