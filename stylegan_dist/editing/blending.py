"""Blending two related generators: coarse stages of one, fine stages of the other (Pinkney and Adler 2020)."""

from __future__ import annotations

import copy
import math

import torch

from stylegan_dist.errors import InputError
from stylegan_dist.latents.trained import Trained
from stylegan_dist.networks.generator import Generator

LEAST_KINSHIP = 0.1  # of networks that can be blended


def blend(coarse: Trained, fine: Trained, resolution: int, width: float = 0.0) -> Generator:
    """A generator with the stages up to `resolution` of `coarse`, and the others of `fine`.

    The mapping network, its mean and all that belongs to no stage are those of `coarse`. With a width the share of `fine` at
    resolution r is 1 / (1 + exp(-(log2(r / resolution) - 1/2) / width)), without one it is 0 or 1.

    Raises:
        InputError: the generators do not have the same parameters, have no stages, or none lies on one of the sides.
    """
    a, b = coarse.generator.state_dict(), fine.generator.state_dict()
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        raise InputError(f"{coarse.run_dir} and {fine.run_dir} do not have the same networks: blend a run with one that was "
                         "transferred from it (run.init_from)")
    stages = {name: coarse.generator.stage_of(name) for name in a}
    there = sorted({stage for found in stages.values() for stage in _listed(found)})
    if not there:
        raise InputError(f"the generator of {coarse.run_dir} has no stages of resolutions that could be told apart: blending "
                         "is for generators of StyleGAN2 and StyleGAN3")
    if not any(stage <= resolution for stage in there) or not any(stage > resolution for stage in there):
        choices = ", ".join(map(str, there[:-1])) or "none"
        raise InputError(f"--at {resolution} leaves nothing to blend: choose one of {choices}")
    blended = copy.deepcopy(coarse.generator)
    values = {}
    for name, value in a.items():
        shares = torch.tensor([_share(stage, resolution, width) for stage in _listed(stages[name])], dtype=value.dtype)
        if len(shares):
            value = torch.lerp(value, b[name].to(value), shares.reshape(-1, *[1] * (value.dim() - 1)))
        values[name] = value
    blended.load_state_dict(values)
    return blended


def kinship(one: Generator, other: Generator) -> float:
    """The correlation of the weights of two networks of the same shapes: near 0 where they began with different random ones.

    Each matrix or kernel counts as much as its number of values. Vectors, such as biases, are alike in all networks.
    """
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(one.parameters(), other.parameters(), strict=True)
             if a.dim() > 1]
    found = [len(a) * torch.nn.functional.cosine_similarity(a, b, dim=0) for a, b in pairs]
    return float(sum(found) / max(1, sum(len(a) for a, _ in pairs)))


def _listed(stages: int | list[int] | None) -> list[int]:
    return [] if stages is None else [stages] if isinstance(stages, int) else stages


def _share(stage: int, resolution: int, width: float) -> float:
    distance = math.log2(stage / resolution) - 0.5
    return float(distance > 0) if width == 0 else 1 / (1 + math.exp(-distance / width))
