"""Closed walks through latents, and films of them."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.monitor.images import MOST_PIXELS, grid_pixels, image_grid, save_clip
from stylegan_dist.networks.generator import Generator

ENDINGS = (".mp4", ".gif")
_QUALITY = "18"  # crf of H.264: pictures show no blocks


def closed_spline(keys: Tensor, frames: int) -> Iterator[Tensor]:
    """Points on the closed cubic spline through `keys` at equal steps: K * frames points [...], the keys among them.

    Value, velocity and acceleration have no jump, also from the last point to the first. Between keys k and k + 1 the spline
    is the cubic Hermite polynomial of these and of velocities v with v[k-1] + 4 v[k] + v[k+1] = 3 (keys[k+1] - keys[k-1]),
    which make accelerations equal (de Boor 2001, chapter IV). Shifts are the same for all k: Fourier terms of v do not mix.
    """
    values, count = keys.double(), len(keys)
    terms = torch.fft.fft(3 * (values.roll(-1, 0) - values.roll(1, 0)), dim=0)
    system = 4 + 2 * torch.cos(2 * torch.pi * torch.arange(count, dtype=torch.float64) / count).to(keys.device)
    velocity = torch.fft.ifft(terms / system.view(-1, *[1] * (keys.dim() - 1)), dim=0).real
    for k in range(count):
        following = (k + 1) % count
        one, two, v1, v2 = values[k], values[following], velocity[k], velocity[following]
        for t in (frame / frames for frame in range(frames)):
            point = one * (1 + 2 * t) * (1 - t)**2 + two * (3 - 2 * t) * t**2 + v1 * t * (1 - t)**2 - v2 * (1 - t) * t**2
            yield point.to(keys.dtype)


def between(generator: Generator, one: list[Tensor], two: list[Tensor], part: float) -> list[Tensor]:
    """Noise maps on the way from one sample to another, [1, 1, H, W] each. Their strength has no jump.

    Args:
        one, two: of the samples; none: the fixed maps of the generator.
        part: of the way, from 0 to 1.
    Returns: none where both have none.
    """
    if not one and not two:
        return []
    maps = []
    for first, second in zip(one or generator.noise_maps(), two or generator.noise_maps(), strict=True):
        mixed = first.lerp(second, part)
        size = first.square().mean().sqrt().lerp(second.square().mean().sqrt(), part)  # that of the mixture falls between
        maps.append(mixed * (size / mixed.square().mean().sqrt().clamp(min=1e-8)))
    return maps


def check_film(path: Path, count: int, side: int) -> None:
    """Raise InputError where a film of this name, of `count` frames, cannot be written."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--out {path}: films are {' or '.join(ENDINGS)}")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder: give the name of a file")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError(f'{path.name} needs the package imageio-ffmpeg: pip install "stylegan-dist[film]", or write a .gif')
    if path.suffix.lower() == ".gif" and (pixels := grid_pixels(count, side)) > MOST_PIXELS:
        raise InputError(f"{count} frames are {pixels} pixels, and a .gif is held in memory: write an .mp4, or fewer --frames")


def save_film(path: Path, frames: Iterator[Tensor], fps: int) -> None:
    """Write a film, whole or not at all.

    Args:
        frames: uint8 [C, H, W], each.
    Raises:
        InputError: ffmpeg is missing or fails.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        save_clip(path, torch.stack([frame[None] for frame in frames]), 1, round(1000 / fps))
        return
    pictures = (np.asarray(image_grid(frame[None], 1).convert("RGB")) for frame in frames)
    first = next(pictures)
    height, width = first.shape[:2]
    with replacing(path) as temporary, tempfile.TemporaryFile() as said, _ffmpeg(temporary, width, height, fps, said) as film:
        try:
            with film.stdin as pipe:
                for picture in itertools.chain([first], pictures):
                    pipe.write(picture.tobytes())
        except BrokenPipeError:
            pass  # it says why
        if code := film.wait():
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split())[-300:] or f"exit code {code}"
            raise InputError(f"ffmpeg cannot write {path} ({words}): make room, choose another place, or write a .gif")


@contextlib.contextmanager
def _ffmpeg(path: Path, width: int, height: int, fps: int, said: IO[bytes]) -> Iterator[Any]:
    """A process that films RGB pictures from its input. It ends with the block; Ctrl-C in the terminal does not reach it.

    Args:
        said: takes its messages.
    """
    import imageio_ffmpeg

    # H.264 halves the sides of colours: odd ones get a row or a column more.
    command = ["-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-",
               "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", _QUALITY,
               "-movflags", "+faststart", "-f", "mp4", str(path.absolute())]
    try:
        process = subprocess.Popen([imageio_ffmpeg.get_ffmpeg_exe(), *command], stdin=subprocess.PIPE, stderr=said,
                                   start_new_session=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"ffmpeg cannot be started ({error}): write a .gif instead") from None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
