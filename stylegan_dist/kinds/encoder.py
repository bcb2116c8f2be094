"""Which autoencoder made the latents of a set, where its weights are, and how they are read: known by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular, replacing
from stylegan_dist.kinds.autoencoder import Autoencoder, Form
from stylegan_dist.paths import user_path
from stylegan_dist.private import user_folder
from stylegan_dist.records import Digest, parse_json, read_record, shorten

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"   # of a folder in the layout of diffusers
OWN = "stylegan-dist train-encoder"    # what `made_by` of a `config.json` says of an autoencoder that was trained here
RUN_COPY = "encoder.safetensors"       # the weights, in the folder of a run
COPIED_BYTES = 1 << 29                 # of weights that a run copies
CACHE = "encoders"                     # folder of this program's cache
_MOST_JSON, _MOST_BYTES = 1 << 20, 1 << 32
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What files of early versions call the tensors of an attention.
_EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_EARLIER_NAME = re.compile(r"(\.attentions\.0\.)(query|key|value|proj_attn)(\.(?:weight|bias))")


@dataclass(frozen=True)
class Encoder:
    """An autoencoder, known by its form and its weights."""

    maker: Literal["own", "diffusers"]       # own: trained by `train-encoder`
    sha256: Digest                           # of the file with the weights
    form: Form
    path: Annotated[str, Field(max_length=4096)] = field(compare=False)  # of that file when the set was made: a hint

    def describe(self) -> str:
        """For people."""
        what = "an autoencoder that was trained here" if self.maker == "own" else "an AutoencoderKL"
        return f"{what} ({self.sha256[:8]})"

    def identity(self) -> dict[str, Any]:
        """What decides its latents."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def read_encoder(place: str) -> tuple[Encoder, int | None]:
    """The autoencoder at a path, and the resolution that it was trained at, if it was trained here.

    Args:
        place: a folder with `config.json` and `diffusion_pytorch_model.safetensors`, or one of these files.
    Raises:
        InputError: there is none, it is of another structure, or its weights are no safetensors.
    """
    path = Path(user_path(place, "the encoder", url=False))
    if path.suffix in _PICKLES:
        raise InputError(f"{path} is a pickle, which can run code and is not opened: give the folder of the same autoencoder "
                         f"with {CONFIG} and {WEIGHTS}")
    folder = path.parent if path.name in (CONFIG, WEIGHTS) else path
    config, weights = folder / CONFIG, folder / WEIGHTS
    if missing := next((one.name for one in (config, weights) if not os.path.isfile(one)), ""):
        pickles = sorted(one.name for one in folder.glob("*") if one.suffix in _PICKLES) if os.path.isdir(folder) else []
        found = f"; {pickles[0]} there is a pickle, which is not opened" if pickles else ""
        raise InputError(f"{folder} is no autoencoder: it has no {missing}{found}. Give a folder that `{OWN}` has made, or one "
                         f"of an AutoencoderKL in the layout of diffusers, with {CONFIG} and {WEIGHTS}")
    try:
        with open_regular(config) as file:
            values = parse_json(file.read(_MOST_JSON + 1), _MOST_JSON)
        form, own = _form(values), values.get("made_by") == OWN
        side = values.get("sample_size")
    except (OSError, ValueError) as error:
        raise InputError(f"{config} does not describe an autoencoder that is known here: {error}") from None
    content, digest = _read(weights)
    encoder = Encoder("own" if own else "diffusers", digest, form, str(weights.resolve()))
    _network(content, form, weights)
    return encoder, side if own and isinstance(side, int) else None


def _form(values: Any) -> Form:
    """The form that a `config.json` describes. Raises ValueError."""
    if not isinstance(values, dict) or values.get("_class_name") != "AutoencoderKL":
        name = values.get("_class_name") if isinstance(values, dict) else None
        raise ValueError(f"_class_name is {shorten(name)} instead of 'AutoencoderKL'")
    given = {one.name: values[one.name] for one in fields(Form) if one.name in values}
    form = read_record(Form, json.dumps({"in_channels": 3, "latent_channels": 4, "block_out_channels": [64], **given}))
    form.check()
    for key, usual in _fixed(form).items():
        if values.get(key, usual) != usual:
            raise ValueError(f"{key} is another than {usual}")
    return form


def config_of(form: Form, **facts: Any) -> str:
    """The text of a `config.json`."""
    return json.dumps({"_class_name": "AutoencoderKL", **asdict(form), **_fixed(form), **facts}, indent=1) + "\n"


def _fixed(form: Form) -> dict[str, Any]:
    """What `config.json` says of this structure beside its form."""
    levels = len(form.block_out_channels)
    return {"out_channels": form.in_channels, "act_fn": "silu", "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels}


def find_weights(encoder: Encoder, home: str) -> tuple[Path, bytes]:
    """The file with the weights, and what is in it: in the folder of the run, where the set was made, or in our cache.

    Raises:
        InputError: it is in none of them. Says where to put it.
    """
    cache = user_folder(CACHE)
    places = [Path(home) / RUN_COPY] if home else []
    places += [Path(encoder.path)]
    places += [cache / f"{encoder.sha256}.safetensors"] if cache else []
    other = ""
    for place in places:
        if not os.path.isfile(place):  # also what this user may not look into
            continue
        try:
            content, digest = _read(place)
        except InputError as error:
            other = other or f" ({error})"
            continue
        if digest == encoder.sha256:
            return place, content
        other = other or f" ({place} is another file: SHA-256 {digest})"
    put = " or ".join(str(place) for place in places if place != Path(encoder.path)) or "where it was"
    raise InputError(f"the autoencoder of these latents is not on this machine{other}: put the file with the SHA-256 "
                     f"{encoder.sha256}, which was {encoder.path} when the latents were made, at {put}")


def copy_weights(encoder: Encoder, folder: Path) -> None:
    """Copy the weights into the folder of a run, so that they are there wherever it goes; not those of more than 512 MiB.

    Raises:
        InputError: they are not on this machine.
        OSError: the folder cannot be written.
    """
    found, content = find_weights(encoder, str(folder))
    if found != folder / RUN_COPY and len(content) <= COPIED_BYTES:
        with replacing(folder / RUN_COPY) as temporary:
            temporary.write_bytes(content)


def open_autoencoder(encoder: Encoder, home: str, device: torch.device | str) -> Autoencoder:
    """The network, frozen, in float32. It is read once in a process.

    Raises:
        InputError: its weights are not to be had, or are damaged.
    """
    return _opened(encoder, home, torch.device(device))


@lru_cache(maxsize=4)
def _opened(encoder: Encoder, home: str, device: torch.device) -> Autoencoder:
    path, content = find_weights(encoder, home)
    return _network(content, encoder.form, path).to(device)


def _network(content: bytes, form: Form, path: Path) -> Autoencoder:
    """The network with the weights of a file; every tensor must be there, and no other. Raises InputError."""
    try:
        with torch.device("meta"):
            network = Autoencoder(form)
        network.load_state_dict(_fitting(safetensors.torch.load(content), network.state_dict()), assign=True)
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be used as the weights of this autoencoder: {' '.join(str(error).split())}; restore "
                         f"it, with its {CONFIG}") from None
    return network.eval().requires_grad_(False)


def _fitting(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names, float32. Raises ValueError."""
    found: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = _EARLIER_NAME.sub(lambda match: f"{match[1]}{_EARLIER[match[2]]}{match[3]}", given)
        if name not in expected:
            raise ValueError(f"it has {shorten(given)}, which is not a part of the network")
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{given} has the shape {list(tensor.shape)} instead of {list(expected[name].shape)}")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ValueError(f"{given} has values that are no finite numbers")
        found[name] = tensor.to(torch.float32)
    if missing := sorted(set(expected) - set(found)):
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    return found


def _read(path: Path) -> tuple[bytes, str]:
    """What is in a file, and its SHA-256. Raises InputError: it cannot be read, or is too large."""
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; correct the path or the permissions") from None
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path} is no file of weights: it has more than {_MOST_BYTES:,} bytes")
    return content, hashlib.sha256(content).hexdigest()
