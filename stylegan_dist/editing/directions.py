"""Directions in W along which samples change, found without labels, and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylegan_dist.editing.points import say_where_from
from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.latents.trained import Trained
from stylegan_dist.records import read_record

FORMAT = "stylegan-dist-directions"
DRAWS = 100_000          # of w, for their covariance
_AT_ONCE = 1000          # of these
_MOST_FACTS = 1 << 20    # bytes

Report = Callable[[int], None]  # takes the number of latents drawn since the last call


@dataclass(frozen=True)
class Facts:
    """What directions are.

    Attributes:
        method: "sefa" or "ganspace".
        layers: numbers of the ws that an edit moves.
        label: the class whose latents were analysed; None for all.
        checkpoint: digest of the run's checkpoint.
    """

    method: Literal["sefa", "ganspace"]
    layers: tuple[int, ...]
    label: int | None
    checkpoint: str


@dataclass(frozen=True)
class Directions:
    """Unit vectors in W, strongest first.

    Attributes:
        vectors: float32 [K, w_dim].
        spreads: float32 [K], the standard deviation of w along each. A strength of an edit counts these.
    """

    vectors: Tensor
    spreads: Tensor
    facts: Facts

    def move(self, ws: Tensor, number: int, strength: float) -> Tensor:
        """ws [N, num_ws, w_dim], moved by `strength` standard deviations along a direction in its layers."""
        moved = ws.clone()
        step = (strength * self.spreads[number] * self.vectors[number]).to(ws)
        moved[:, list(self.facts.layers)] += step
        return moved


def parse_layers(text: str, count: int, name: str = "--layers") -> tuple[int, ...]:
    """Numbers from "3", "0-6", "1,4-5" or "all", below `count`.

    Raises:
        InputError: anything else.
    """
    if text == "all":
        return tuple(range(count))
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = first, last if dash else first
        if not all(number.isdecimal() and len(number) < 6 and int(number) < count for number in numbers):
            raise InputError(f"{name} {text[:40]!r}: this generator has the layers 0 to {count - 1}; write for example "
                             f"0-{count - 1}, or all")
        layers |= set(range(int(numbers[0]), int(numbers[1]) + 1))
    if not layers:
        raise InputError(f"{name} {text[:40]!r} is no layer: a range goes upwards, for example 0-{count - 1}")
    return tuple(sorted(layers))


def sefa(trained: Trained, layers: Sequence[int], count: int, label: int | None = None) -> Directions:
    """Closed-form factorisation (Shen and Zhou 2021, equation 6): unit vectors n that maximise |A n|².

    A has the rows of the affine maps from w to the styles of the chosen layers, each of length 1.

    Raises:
        InputError: no chosen layer is driven by a w in this way.
    """
    chosen = [matrix.double() for number, matrix in trained.generator.style_matrices() if number in set(layers)]
    if not chosen:
        raise InputError(f"no layer of {trained.run_dir} among {list(layers)} has a style that is an affine map of w; "
                         "use --method ganspace")
    rows = torch.cat(chosen)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    return _measured(trained, vectors.T.flip(0)[:count], Facts("sefa", tuple(layers), label, trained.digest))


def ganspace(trained: Trained, layers: Sequence[int], count: int, label: int | None = None, report: Report | None = None,
             draws: int = DRAWS) -> Directions:
    """Principal components of w (Härkönen et al. 2020, section 2.2), from the covariance of `draws` latents in float64."""
    total = outer = None
    for start in range(0, draws, _AT_ONCE):
        w = _latents(trained, start, min(_AT_ONCE, draws - start), label)
        if total is None or outer is None:
            total, outer = torch.zeros_like(w[0]), torch.zeros_like(w[0])[:, None] * w[0]
        total, outer = total + w.sum(0), outer + w.T @ w
        if report is not None:
            report(len(w))
    assert total is not None
    assert outer is not None
    mean = total / draws
    values, vectors = torch.linalg.eigh(outer / draws - mean[:, None] * mean)
    spreads = values.flip(0)[:count].clamp_min(0).sqrt()
    facts = Facts("ganspace", tuple(layers), label, trained.digest)
    return Directions(_signed(vectors.T.flip(0)[:count]).float().cpu(), spreads.float().cpu(), facts)


def save_directions(path: Path, directions: Directions) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError."""
    content = safetensors.torch.save({"vectors": directions.vectors.contiguous(), "spreads": directions.spreads.contiguous()},
                                     {"format": FORMAT, "facts": json.dumps(asdict(directions.facts))})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_directions(path: str | os.PathLike, trained: Trained) -> Directions:
    """The directions in a file of `edit find`. A note is printed where they are of another checkpoint.

    Raises:
        InputError: it is missing, damaged, something else, or does not fit the generator.
    """
    path, again = Path(path), "find directions with `stylegan-dist edit find`"
    try:
        if not path.is_file():
            raise InputError(f"there are no directions {path}: {again}")
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no directions: {again}")
            facts = read_record(Facts, metadata.get("facts", ""), _MOST_FACTS)
            vectors, spreads = (file.get_tensor(name).float() for name in ("vectors", "spreads"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} is damaged, or holds no directions ({' '.join(str(error).split())}): {again}") from None
    width = trained.latent_shape[-1]
    sound = bool(vectors.isfinite().all() and spreads.isfinite().all())
    layered = all(0 <= layer < trained.generator.num_ws for layer in facts.layers)
    if not (sound and layered and vectors.ndim == 2 and vectors.shape[1] == width and spreads.shape == vectors.shape[:1]):
        raise InputError(f"{path} does not fit {trained.run_dir} ({trained.generator.num_ws} layers, w of {width} numbers): "
                         f"{again}")
    say_where_from(trained, str(path), facts.checkpoint)
    return Directions(vectors, spreads, facts)


def _measured(trained: Trained, vectors: Tensor, facts: Facts) -> Directions:
    """With the standard deviation of w along each."""
    parts = [_latents(trained, start, _AT_ONCE, facts.label) @ vectors.T for start in range(0, 10 * _AT_ONCE, _AT_ONCE)]
    return Directions(_signed(vectors).float().cpu(), torch.cat(parts).std(0).float().cpu(), facts)


def _signed(vectors: Tensor) -> Tensor:
    """With the sign that makes the largest entry positive: eigenvectors have none of their own."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors)


def _latents(trained: Trained, start: int, count: int, label: int | None) -> Tensor:
    """w float64 [count, w_dim]."""
    return trained.latents("edit.population", torch.arange(start, start + count), label).double()
