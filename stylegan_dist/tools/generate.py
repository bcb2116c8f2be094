"""Pictures of the averaged generator of a run, by seed. A run of arrays or sounds gives these, too.

The picture of a seed depends on the seed, the class and the truncation alone, not on the other seeds, their order or
the batch. Each picture is therefore computed alone. Matrix products and convolutions sum in another order for another
batch, which moves about one pixel value in 10,000 by one level. Native operators do the same. They are therefore used
only on request, and nobody waits for a compiler in order to see a picture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.machine import usable_device
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.ops import native
from stylegan_dist.records import shorten
from stylegan_dist.training.snapshot import Which, load_generator

GRID_NAME = "grid.png"
SEEDS_LIMIT = 1_000_000
GRID_LIMIT = 256  # pictures in the grid; a larger one is hard to look at


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


def generate(run_dir: str | os.PathLike, out: str | os.PathLike, options: GenerateOptions) -> Path:
    """Write one PNG a seed, and a grid of them; returns the path of the grid.

    A run of arrays also gives each array as .npy, [C, H, W] in the dtype and range of the data. If these are log-mel
    spectrograms, it also gives a sound as .wav.

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
    device = usable_device(options.device, "--device")
    snapshot = load_generator(run_dir, device, options.which)
    generator, kind = snapshot.generator, snapshot.kind
    labels = _labels(generator, options)
    grid: list[torch.Tensor] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for seed, label in tqdm(list(zip(options.seeds, labels, strict=True)), unit="img", desc="generate"):
            drawn = _draw(generator, seed, label, options, device)
            name = f"seed{seed:04d}" + ("" if label is None else f"-class{label}")
            kind.save(out / name, drawn)
            if len(grid) < GRID_LIMIT:
                grid.append(to_uint8(kind.as_pictures(drawn[None])[0]))
        save_grid(out / GRID_NAME, torch.stack(grid), options.columns)
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
    return draw_samples(generator, seed, "generate", index, labels, sampling)[0]


def _labels(generator: Generator, options: GenerateOptions) -> Sequence[int | None]:
    """The class of every seed."""
    classes = generator.num_classes
    if not classes:
        if options.label is not None:
            raise InputError("--class has no meaning here: the run was trained without labels")
        return [None] * len(options.seeds)
    if options.label is not None and not 0 <= options.label < classes:
        raise InputError(f"--class {options.label} does not exist: the run has classes 0 to {classes - 1}")
    return [seed % classes if options.label is None else options.label for seed in options.seeds]
