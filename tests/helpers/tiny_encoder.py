"""A tiny autoencoder in the layout of diffusers, with weights that are drawn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from stylegan_dist.kinds.autoencoder import Autoencoder, Form

FORM = Form(3, 4, (8, 16), 1, 4)   # halves the side once
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def drawn(form: Form = FORM, seed: int = 0) -> Autoencoder:
    """The network of a form."""
    network, generator = Autoencoder(form), torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
        mean = float("norm" in name and name.endswith("weight"))
        parameter.data = mean + scale * torch.randn(parameter.shape, generator=generator)
    return network.requires_grad_(False)


def write(folder: Path, form: Form = FORM, seed: int = 0, earlier: bool = False, **facts) -> Path:
    """The folder, with a `config.json` as diffusers writes it.

    Args:
        earlier: the names that early versions give to the tensors of an attention.
        facts: of `config.json` instead of the usual ones; None leaves one out.
    """
    folder.mkdir(parents=True)
    levels = len(form.block_out_channels)
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0", "act_fn": "silu",
              "out_channels": form.in_channels,
              "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
              "sample_size": 256, "scaling_factor": 0.18215, "force_upcast": True, **asdict(form), **facts}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    tensors = drawn(form, seed).state_dict()
    if earlier:
        for name in list(tensors):
            for now, then in EARLIER.items():
                if f".attentions.0.{now}." in name:
                    tensors[name.replace(now, then)] = tensors.pop(name)
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder
