"""Latents in files: one safetensors file for each image, with the facts that belong to them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.latents.trained import Trained
from stylegan_dist.records import parse_json

FORMAT = "stylegan-dist-latents"
LATENTS = "latents"
_MAP = "noise."
_FACTS = "facts"
_MOST_FACTS = 1 << 20  # bytes


@dataclass(frozen=True)
class SavedLatents:
    """One point of a latent space.

    Attributes:
        latents: float32 [...], as one of `Generator.latents`; or [P, ...] in W+.
        maps: noise maps [H, W] in the order of `Generator.noise_maps`; none where the fixed ones are used.
        facts: what is known of it; `space` ("w", "w+" or "z"), `class` (or None), `checkpoint` (digest) and more.
    """

    latents: Tensor
    maps: list[Tensor]
    facts: dict[str, Any]

    def check(self, trained: Trained) -> None:
        """Raise InputError where the latents do not fit the generator."""
        generator = trained.generator
        fixed = generator.noise_maps()
        one = trained.latent_shape
        shapes = [one, *([torch.Size((generator.num_ws, *one))] if generator.num_ws else [])]
        fits = not self.maps or [own.shape for own in self.maps] == [own.shape[2:] for own in fixed]
        if self.latents.shape not in shapes or not fits:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise InputError(f"the latents are {list(self.latents.shape)} with {len(self.maps)} noise maps, which does not fit "
                             f"{trained.run_dir} ({wanted}, {len(fixed)} maps): they are of another run")
        trained.check_class(self.facts.get("class"))

    def drawn_by(self, trained: Trained) -> Tensor:
        """The image [1, C, R, R] in the range of networks. Raises InputError as `check`."""
        self.check(trained)
        generator, device, label = trained.generator, trained.device, self.facts.get("class")
        labels = torch.tensor([label or 0], device=device) if trained.shape.num_classes else None
        maps = [one[None, None].to(device) for one in self.maps]
        with torch.no_grad():
            return generator.synthesize(self.latents[None].to(device), labels, maps or "const")


def latents_content(saved: SavedLatents) -> bytes:
    """The content of a file."""
    tensors = {LATENTS: saved.latents, **{f"{_MAP}{number}": one for number, one in enumerate(saved.maps)}}
    return safetensors.torch.save({name: value.detach().float().cpu().contiguous() for name, value in tensors.items()},
                                  {"format": FORMAT, _FACTS: json.dumps(saved.facts)})


def save_latents(path: Path, saved: SavedLatents) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(latents_content(saved))


def load_latents(path: str | os.PathLike) -> SavedLatents:
    """The content of a file that `project` has written.

    Raises:
        InputError: it is missing, damaged or something else.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"there are no latents {path}: give a file that `stylegan-dist project` has written")
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no latents: give a file that `stylegan-dist project` has written")
            facts = parse_json(metadata.get(_FACTS, ""), _MOST_FACTS)
            names = list(file.keys())
            maps = sorted((name for name in names if name.startswith(_MAP)), key=lambda name: int(name.removeprefix(_MAP)))
            tensors = {name: file.get_tensor(name) for name in (LATENTS, *maps)}
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} is damaged, or holds no latents ({' '.join(str(error).split())}): project the "
                         "image again") from None
    label = facts.get("class") if isinstance(facts, dict) else ""
    if not (label is None or type(label) is int) or not all(one.isfinite().all() for one in tensors.values()):
        raise InputError(f"{path} is damaged (its facts or values): project the image again")
    return SavedLatents(tensors[LATENTS].float(), [tensors[name].float() for name in maps], facts)
