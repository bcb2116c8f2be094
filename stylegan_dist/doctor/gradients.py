"""Compares the gradients of native operators with those of PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stylegan_dist.config import load_config
from stylegan_dist.families import family_of
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Arithmetic
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ops import native
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import DTYPES

# Of the networks that the operators are tried with, and everything that a rule would choose.
SMALL = ("run.batch=4", "generator.z_dim=32", "generator.w_dim=32", "generator.mapping_layers=2", "generator.channel_base=1024",
         "generator.channel_max=32", "discriminator.channel_base=1024", "discriminator.channel_max=32",
         "discriminator.mbstd_group=2", "loss.r1_gamma=1", "precision.clamp=0", "precision.channels_last=true")
# Largest difference of gradients, relative to the largest gradient of a network.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def device_types() -> list[str]:
    """Device types that PyTorch can use here."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def check_operators(device: str) -> Iterator[tuple[str, float, float]]:
    """Gradients of each phase of training small networks, with native operators and with those of PyTorch.

    Yields: what was compared, the relative difference, and how large it may be.
    """
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        wanted = _gradients(device, dtype, "reference")
        for phase, found in _gradients(device, dtype, "everywhere").items():
            yield f"{device} {str(dtype).removeprefix('torch.')} {phase}", _difference(found, wanted[phase]), TOLERANCE[dtype]


def _gradients(device: str, dtype: torch.dtype, path: str) -> dict[str, list[torch.Tensor]]:
    """Gradients of the parameters, by phase, for four images of 32 pixels."""
    name = next(name for name, other in DTYPES.items() if other == dtype)
    config = load_config(None, [*SMALL, f"precision.dtype={name}"])
    shape, place = SampleShape(32, 3), torch.device(device)
    generator, discriminator = build_generator(config, shape, place), build_discriminator(config, shape, place)
    networks = {"g": generator, "d": discriminator}
    objective = family_of(config).objective(config, generator, discriminator, None)
    pixels = torch.linspace(-1, 1, 4 * 3 * 32 * 32, device=device).view(4, 3, 32, 32).sin()
    part = MicroBatch(pixels, None, torch.arange(4, device=device))
    found = {}
    with native.using(path), Arithmetic(tf32=False):  # whose rounding is larger than what the check allows
        for phase in objective.phases():
            share = torch.stack([loss(part).share for loss in phase.losses]).sum()
            gradients = torch.autograd.grad(share, list(networks[phase.network].parameters()), allow_unused=True)
            found[phase.name] = [torch.zeros(()) if gradient is None else gradient.float().cpu() for gradient in gradients]
    return found


def _difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    scale = max(float(b.abs().max()) for b in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / scale
