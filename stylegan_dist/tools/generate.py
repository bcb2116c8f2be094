"""Pictures of the averaged generator of a run, by seed. A run of arrays, sounds or clips gives these, too.

The picture of a seed depends on the seed, the class and the truncation alone, not on the other seeds, their order or
the batch. Each picture is therefore computed alone. Matrix products and convolutions sum in another order for another
batch, which moves about one pixel value in 10,000 by one level. Native operators do the same. They are therefore used
only on request, and nobody waits for a compiler in order to see a picture.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.kinds.film import frame_ms
from stylegan_dist.latents.trained import open_trained
from stylegan_dist.monitor.images import grid_pixels, save_clip, save_grid
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.ops import native
from stylegan_dist.records import shorten
from stylegan_dist.training.snapshot import Which

GRID_NAME, MOVING_NAME = "grid.png", "grid.gif"
LINES_NAME = "lines.txt"
SEEDS_LIMIT = 1_000_000
GRID_LIMIT = 256  # pictures in the grid; a larger one is hard to look at
MOST_VALUES = 1 << 28  # of all frames of a clip, which are in memory at once
MOST_MOVING = 1 << 25  # pixels of all frames of the grid that moves; more would be a large file
FRAMES_AT_ONCE = 32


@dataclass
class GenerateOptions:
    """What to draw."""

    seeds: list[int]
    truncation: float = 1.0      # psi
    label: int | None = None     # class of all pictures; None: class `seed mod classes`, if conditional
    noise: str = "const"         # "const" or "none"
    device: str = "cpu"
    columns: int = 8             # of the grid
    which: Which = "newest"      # checkpoint
    translation: tuple[float, float] = (0.0, 0.0)  # of the content, as in `Sampling`
    rotation: float = 0.0
    ops: str = "reference"       # "reference": the operators of PyTorch; "fused": native ones, which are compiled if need be
    frames: int | None = None    # of clips; None: as many as those of the data
    speed: float = 1.0           # frames of the data from one frame to the next


def generate(run_dir: str | os.PathLike, out: str | os.PathLike, options: GenerateOptions) -> Path:
    """Write one PNG a seed, and a grid of them; returns the path of the grid.

    A run of clips gives animated WebP files in place of PNG, and a grid that moves (grid.gif) beside that of middle frames.
    A run of arrays also gives each array as .npy, [C, H, W] in the dtype and range of the data. If these are log-mel
    spectrograms, it also gives a sound as .wav. A run of text gives one file, lines.txt, with a line a seed, and the grid.

    Raises:
        InputError: no such run, no checkpoint, a class or device that does not exist, an unwritable folder, native
            operators that are asked for and not available.
    """
    if not math.isfinite(options.truncation):
        raise InputError(f"--trunc {options.truncation} must be a number, usually from 0 to 1")
    if options.ops == "fused" and not (found := native.native()).devices:
        raise InputError(f"--ops fused: there are no native operators ({found.reason}): use --ops reference")
    with native.using(options.ops):
        return _generate(run_dir, Path(out), options)


def _generate(run_dir: str | os.PathLike, out: Path, options: GenerateOptions) -> Path:
    trained = open_trained(run_dir, options.device, options.which)
    trained.check_class(options.label)
    generator, kind, classes = trained.generator, trained.kind, trained.shape.num_classes
    labels = [None if not classes else seed % classes if options.label is None else options.label for seed in options.seeds]
    if (most := MOST_VALUES // (3 * trained.shape.resolution**2)) < (count := _frame_count(generator, options)):
        raise InputError(f"{count} frames of {trained.shape.resolution} pixels are more than fit into one file here: at most "
                         f"{most}, so choose fewer --frames, or a greater --speed")
    grid: list[torch.Tensor] = []
    moving: list[torch.Tensor] = []
    lines: list[str] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for seed, label in tqdm(list(zip(options.seeds, labels, strict=True)), unit="img", desc="generate"):
            drawn = _draw(generator, seed, label, options, trained.device)
            name = f"seed{seed:04d}" + ("" if label is None else f"-class{label}")
            if (read := kind.lines(drawn[None])) is None:
                kind.save(out / name, drawn)
            else:
                lines += read
            if len(grid) < GRID_LIMIT:
                grid.append(to_uint8(kind.as_pictures(drawn[None])[0]))
                if film := kind.as_film(drawn[None]):
                    fps, frames = film.fps, to_uint8(film.frames[0])
                    moving += [frames] * (grid_pixels(frames.shape[0] * (len(moving) + 1), frames.shape[-1]) <= MOST_MOVING)
        if lines:
            write_whole(out / LINES_NAME, "".join(f"{line}\n" for line in lines))
        save_grid(out / GRID_NAME, torch.stack(grid), options.columns)
        if moving:
            save_clip(out / MOVING_NAME, torch.stack(moving, 1), options.columns, frame_ms(fps))
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None
    return out / GRID_NAME


def parse_seeds(text: str) -> list[int]:
    """Seeds from "3", "0-63" or "1,5,10-12".

    Raises:
        InputError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"--seeds {shorten(text)} is not a list of seeds: write for example 0-63 or 1,5,10-12")
        last = last or first
        if max(len(first), len(last)) > len(str(randomness.SEED_LIMIT)) or not int(first) <= int(last) < randomness.SEED_LIMIT:
            raise InputError(f"--seeds {shorten(text)}: seeds go upwards from 0 to {randomness.SEED_LIMIT - 1}")
        if len(seeds) + int(last) - int(first) >= SEEDS_LIMIT:
            raise InputError(f"--seeds {shorten(text)} are more than {SEEDS_LIMIT} pictures: draw them in several parts")
        seeds += range(int(first), int(last) + 1)
    return seeds


def _draw(generator: Generator, seed: int, label: int | None, options: GenerateOptions, device: torch.device) -> torch.Tensor:
    """One picture, float [C, R, R]. Alone, because in a batch its last bits depend on the others."""
    index = torch.zeros(1, dtype=torch.int64, device=device)
    labels = None if label is None else torch.tensor([label], device=device)
    sampling = Sampling(options.truncation, options.noise, 1, options.translation, options.rotation)
    if options.frames is None and options.speed == 1:
        return draw_samples(generator, seed, "generate", index, labels, sampling)[0]
    return _film(generator, seed, index, labels, sampling, options)


def _frame_count(generator: Generator, options: GenerateOptions) -> int:
    return options.frames or math.ceil(generator.frames / options.speed)


@torch.no_grad()
def _film(generator: Generator, seed: int, index: torch.Tensor, labels: torch.Tensor | None, sampling: Sampling,
          options: GenerateOptions) -> torch.Tensor:
    """One clip of any length and speed, float [frames * C, R, R]: a frame depends on its time alone, not on the last one."""
    times = torch.arange(_frame_count(generator, options), dtype=torch.float64, device=index.device) * options.speed
    parts = [generator.film(seed, "generate", index, labels, sampling, part)[0].cpu() for part in times.split(FRAMES_AT_ONCE)]
    return torch.cat(parts)
