"""A generator as two files, weights and a description. Imports neither accelerate nor the engines."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.families import family_of
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.records import Digest, read_record
from stylegan_dist.training.saved import SavedData

DESCRIPTION = "config.json"
WEIGHTS = "model.safetensors"
MAX_DESCRIPTION = 1 << 20  # bytes


@dataclass(frozen=True)
class Description:
    """The content of config.json: all that must be known to build the generator, and where it comes from.

    Attributes:
        generator: the knobs of `generator`, the family among them.
        clamp: of activations; None for none.
        data: form of the samples, and the fingerprint of the data of the run.
        nimg: images seen.
        checkpoint: SHA-256 of the checkpoint's manifest.
        version: of this program, for people.
    """

    format: Literal[1]
    library: Literal["stylegan_dist"]
    generator: dict[str, Any]
    clamp: float | None
    data: SavedData
    nimg: Annotated[int, Field(ge=0, le=2**63 - 1)]
    checkpoint: Digest
    version: str = ""


def build(description: Description, device: torch.device) -> Generator:
    """The generator, without values.

    Raises:
        InputError: a knob is wrong.
    """
    knobs = [f"generator.{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in description.generator.items()]
    config = load_config(None, [*knobs, "run.recompute=0"])
    data = description.data
    with device:
        return family_of(config).generator(config, SampleShape(data.resolution, data.channels, data.num_classes),
                                           Precision(clamp=description.clamp))


def from_pretrained(folder: str | os.PathLike, device: str | torch.device = "cpu") -> Generator:
    """The generator in a folder that `stylegan-dist export` has written, in full precision, for evaluation.

    Its `sample` draws by seed, as `stylegan-dist generate` does; `synthesize(map(z, labels, psi), labels)` takes any z.

    Raises:
        InputError: a file is missing or damaged, or they do not fit each other.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder} has no {DESCRIPTION}: give a folder that stylegan-dist export has written")
    try:
        with open(folder / DESCRIPTION, "rb") as file:
            description = read_record(Description, file.read(MAX_DESCRIPTION + 1), MAX_DESCRIPTION)
        values = load_file(folder / WEIGHTS)
        generator = build(description, torch.device("meta"))
    except (InputError, OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} does not hold a generator ({' '.join(str(error).split())})") from None
    wanted = {name: (value.shape, value.dtype) for name, value in generator.state_dict().items()}
    if wanted != {name: (value.shape, value.dtype) for name, value in values.items()}:
        raise InputError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: take both from one export")
    generator.load_state_dict(values, assign=True)
    return generator.to(device).eval().requires_grad_(False)
