"""Clips of a bright square that goes round: small, moving, and looping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from stylegan_dist.kinds.clip import ClipOptions
from stylegan_dist.making.pack import PackOptions, pack

FRAMES, SIDE = 6, 16


def circling(number: int, frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """Frames uint8 [frames, side, side]; the first follows the last. Brightness and start depend on the number."""
    angle = 2 * np.pi * (number / 7 + np.arange(frames) / frames)
    row, column = ((side / 2 + side / 4 * wave - 0.5)[:, None] for wave in (np.sin(angle), np.cos(angle)))
    place = np.arange(side)

    def near(centre: np.ndarray) -> np.ndarray:
        return np.clip(side / 6 - np.abs(place - centre), 0, 1)

    return np.rint((120 + 12 * (number % 11)) * near(row)[:, :, None] * near(column)[:, None, :]).astype(np.uint8)


def save_gif(path: Path, frames: np.ndarray, milliseconds: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def make_clips(folder: Path, count: int = 24) -> Path:
    """A shard set of looping clips in two classes."""
    for number in range(count):
        save_gif(folder / "films" / "ab"[number % 2] / f"{number:02d}.gif", circling(number))
    options = ClipOptions(resolution=SIDE, channels=1, frames=FRAMES, loops="yes")
    pack(folder / "films", folder / "shards", PackOptions(options, labels="folders", samples_per_shard=7, workers=1))
    return folder / "shards"
