"""What the page shows: a trained generator, directions, and the picture of its settings."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import PIL.Image
import simplejpeg
import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.editing.directions import Directions, load_directions, sefa
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.latents.saved import SavedLatents, latents_content
from stylegan_dist.latents.trained import Trained
from stylegan_dist.networks.generator import great_circle
from stylegan_dist.ranges import MOST_SEED
from stylegan_dist.view.settings import MOST_MOVES, Settings

LOSSLESS = 128      # pixels of a side up to which a frame is PNG
_QUALITY = 92       # of JPEG


@dataclass(frozen=True)
class Scene:
    """A generator with what its controls are made of.

    Attributes:
        directions: None where there is no W, or no direction.
        names: of classes; none where the data are not at hand.
    """

    trained: Trained
    directions: Directions | None
    names: tuple[str, ...]

    @property
    def moves(self) -> int:
        """Directions that have a control."""
        return min(MOST_MOVES, len(self.directions.vectors)) if self.directions else 0

    def facts(self) -> dict[str, Any]:
        """For the page: JSON."""
        trained, generator = self.trained, self.trained.generator
        return {
            "run": trained.run_dir.resolve().name, "nimg": trained.nimg, "digest": trained.digest,
            "device": str(trained.device), "resolution": trained.kind.shown_side(trained.shape.resolution),
            "classes": trained.shape.num_classes, "names": self.names, "truncates": generator.truncates,
            "layers": generator.num_ws, "noise": bool(generator.noise_maps()),
            "method": self.directions.facts.method if self.directions else "",
            "moves": self.moves, "most_seed": MOST_SEED,
        }

    @torch.no_grad()
    def point(self, settings: Settings) -> SavedLatents:
        """The latents of settings, as a file holds them: in W+, or in Z of a generator without W.

        Raises:
            InputError: truncation is asked for, and the generator does not truncate.
        """
        generator, label = self.trained.generator, self._label(settings, settings.seed)
        first = self._latents(settings.seed, label, settings.psi)
        if not generator.num_ws:
            latents = first
            if settings.blend:
                second = self._latents(settings.second, label, settings.psi)
                latents = great_circle(first[None], second[None], settings.blend)[0]
            return self._saved(latents, settings, label, "z")
        ws = first.expand(generator.num_ws, -1)
        mixed = range(settings.mix_from, settings.mix_to)
        if settings.blend or mixed:
            second = self._latents(settings.second, self._label(settings, settings.second), settings.psi)
            ws = torch.lerp(ws, second.expand_as(ws), settings.blend)
            ws[list(mixed)] = second
        for number, strength in enumerate(settings.moves):
            if strength and self.directions:
                ws = self.directions.move(ws[None], number, strength)[0]
        return self._saved(ws, settings, label, "w+")

    def picture(self, settings: Settings) -> Tensor:
        """uint8 [C, R, R] on the CPU. That of a seed alone has the pixels of `generate`, but for clips of StyleGAN-V, which
        have one motion here. Raises InputError as `point`."""
        return to_uint8(self.trained.kind.as_pictures(self._drawn(settings))[0])

    def frame(self, settings: Settings) -> tuple[str, bytes]:
        """A picture for the page: its type, and PNG or JPEG. Raises InputError as `point`."""
        pixels = self.picture(settings).permute(1, 2, 0).contiguous().numpy()
        side, channels = pixels.shape[0], pixels.shape[2]
        if side <= LOSSLESS or channels not in (1, 3):
            return "image/png", _png(pixels)
        content = simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorspace="RGB" if channels == 3 else "GRAY",
                                         colorsubsampling="444")
        return "image/jpeg", content

    def png(self, settings: Settings) -> bytes:
        """A picture with its exact pixels. Raises InputError as `point`."""
        return _png(self.picture(settings).permute(1, 2, 0).contiguous().numpy())

    def latents_file(self, settings: Settings) -> bytes:
        """The file of a point. Raises InputError as `point`."""
        return latents_content(self.point(settings))

    def _drawn(self, settings: Settings) -> Tensor:
        point = self.point(settings)
        label = point.facts["class"]
        labels = None if label is None else torch.tensor([label], device=self.trained.device)
        maps = [values[None, None] for values in point.maps]
        noise = "none" if settings.noise == "none" else maps or "const"
        with torch.no_grad():
            return self.trained.generator.synthesize(point.latents[None], labels, noise).cpu()

    def _label(self, settings: Settings, seed: int) -> int | None:
        classes = self.trained.shape.num_classes
        if not classes:
            return None
        return seed % classes if settings.label is None else settings.label

    def _latents(self, seed: int, label: int | None, psi: float) -> Tensor:
        device = self.trained.device
        labels = None if label is None else torch.tensor([label], device=device)
        index = torch.zeros(1, dtype=torch.int64, device=device)
        return self.trained.generator.latents(seed, "generate", index, labels, psi)[0]

    def _saved(self, latents: Tensor, settings: Settings, label: int | None, space: str) -> SavedLatents:
        maps = [] if settings.noise == "const" else [self._map(settings, number, one[0, 0])
                                                     for number, one in enumerate(self.trained.generator.noise_maps())]
        facts = {"space": space, "class": label, "checkpoint": self.trained.digest, "view": settings.record()}
        return SavedLatents(latents, maps, facts)

    def _map(self, settings: Settings, number: int, fixed: Tensor) -> Tensor:
        if settings.noise == "none":
            return torch.zeros_like(fixed)
        index = torch.zeros(1, dtype=torch.int64, device=fixed.device)
        return randomness.normal(settings.noise_seed, f"view.noise.{number}", index, fixed.shape)[0].to(fixed)


def open_scene(trained: Trained, directions: str | None) -> Scene:
    """A scene with the directions in a file, or those that SeFa finds.

    Raises:
        InputError: the file does not fit, or the generator has no W to move in.
    """
    found = None
    if directions is not None:
        if not trained.generator.num_ws:
            raise InputError(f"--directions: {trained.run_dir} has a generator without a mapping network, and so without W")
        found = load_directions(directions, trained)
    elif trained.generator.num_ws:
        with contextlib.suppress(InputError):  # no layer has a style that is affine in w
            found = sefa(trained, range(trained.generator.num_ws), MOST_MOVES)
    return Scene(trained, found, trained.class_names())


def _png(pixels: Any) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
