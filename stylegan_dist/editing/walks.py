"""Closed walks through latents, and films of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.monitor.images import image_grid, save_clip

ENDINGS = (".mp4", ".gif")
_QUALITY = "18"  # crf of H.264: pictures show no blocks


def closed_spline(keys: Tensor, frames: int) -> Tensor:
    """Points on the closed cubic spline through `keys` at equal steps: [K, ...] -> [K * frames, ...], the keys among them.

    Value, velocity and acceleration have no jump, also from the last point to the first. Between keys k and k + 1 the spline
    is the cubic Hermite polynomial of these and of velocities v with v[k-1] + 4 v[k] + v[k+1] = 3 (keys[k+1] - keys[k-1]),
    which make accelerations equal (de Boor 2001, chapter IV).
    """
    count = len(keys)
    flat = keys.double().flatten(1)
    system = 4 * torch.eye(count, dtype=flat.dtype) + torch.eye(count, dtype=flat.dtype).roll(1, 1) + \
        torch.eye(count, dtype=flat.dtype).roll(-1, 1)
    velocity = torch.linalg.solve(system.to(flat.device), 3 * (flat.roll(-1, 0) - flat.roll(1, 0)))
    t = (torch.arange(frames, device=flat.device) / frames).to(flat)[None, :, None]
    one, two = flat[:, None], flat.roll(-1, 0)[:, None]
    v1, v2 = velocity[:, None], velocity.roll(-1, 0)[:, None]
    points = one * (1 + 2 * t) * (1 - t)**2 + two * (3 - 2 * t) * t**2 + v1 * t * (1 - t)**2 - v2 * (1 - t) * t**2
    return points.flatten(0, 1).unflatten(1, keys.shape[1:]).to(keys.dtype)


def check_film(path: Path) -> None:
    """Raise InputError where a film of this name cannot be written."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--out {path}: films are {' or '.join(ENDINGS)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError(f'{path.name} needs the package imageio-ffmpeg: pip install "stylegan-dist[film]", or write a .gif')


def save_film(path: Path, frames: Iterator[Tensor], count: int, fps: int) -> None:
    """Write a film, whole or not at all.

    Args:
        frames: uint8 [C, H, W], each.
        count: of frames.
    Raises:
        InputError: ffmpeg refuses.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        save_clip(path, torch.stack([frame[None] for frame in frames]), 1, round(1000 / fps))
        return
    import imageio_ffmpeg

    pictures = (np.asarray(image_grid(frame[None], 1).convert("RGB")) for frame in frames)
    first = next(pictures)
    height, width = (side + side % 2 for side in first.shape[:2])  # H.264 halves the colours' sides
    with replacing(path) as temporary:
        film = imageio_ffmpeg.write_frames(str(temporary), (width, height), fps=fps, codec="libx264", macro_block_size=2,
                                           output_params=["-crf", _QUALITY, "-f", "mp4", "-movflags", "+faststart"],
                                           ffmpeg_log_level="error")
        try:
            film.send(None)
            for picture in _chained(first, pictures):
                film.send(np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), mode="edge"))
        finally:
            film.close()
        if not temporary.stat().st_size:
            raise InputError(f"ffmpeg wrote nothing into {path}: write a .gif instead")


def _chained(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
