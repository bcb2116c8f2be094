"""Files of rosinality's stylegan2-pytorch: networks of StyleGAN2, saved with `torch.save` as state dicts.

A file is a dictionary with `g_ema`, `g`, `d`, and perhaps `latent_avg`. Where that is missing the mean of w is computed.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.errors import InputError
from stylegan_dist.families.stylegan2.networks import Generator
from stylegan_dist.importing.foreign import FILTER, Foreign, ForeignNetwork, Rule, pyramid_of, resolution_of, size_of
from stylegan_dist.importing.modules import state_dict
from stylegan_dist.importing.values import Stored

LICENCE = "the code is under the MIT licence; weights that were converted from NVIDIA's stay under NVIDIA's licence"
MEAN_OF = 10_000  # latents
_size = partial(size_of, project="stylegan2-pytorch")
_PARTS = {"conv.weight": "weight", "conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias",
          "noise.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}


def read(root: dict[str, Any]) -> Foreign | None:
    """The content of a file; None if it is of another format.

    Raises:
        InputError: networks that cannot be represented here.
        Refused: it is damaged.
    """
    name = next((name for name in ("g_ema", "g") if isinstance(root.get(name), dict)), None)
    if name is None or "input.input" not in root[name]:
        return None
    what = "the generator"
    generator = state_dict(root[name], name)
    widths = {4: _size(generator, "conv1.conv.weight", 1, what)}
    for key in generator:
        if match := re.fullmatch(r"convs\.(\d{1,2})\.conv\.weight", key):
            widths[8 << int(match[1]) // 2] = _size(generator, key, 1, what)
    resolution = resolution_of(list(widths), what)
    base, most = pyramid_of(widths, what)
    layers = sum(bool(re.fullmatch(r"style\.\d+\.weight", key)) for key in generator)
    settings: dict[str, object] = {
        "generator.z_dim": _size(generator, "style.1.weight", 1, what),
        "generator.w_dim": _size(generator, "style.1.weight", 0, what), "generator.mapping_layers": layers,
        "generator.channel_base": base, "generator.channel_max": most, "precision.clamp": 0.0}
    channels = _size(generator, "to_rgb1.conv.weight", 1, what)
    mean = root.get("latent_avg")
    notes = ["its discriminator was trained with strided groups of images, here they are consecutive"] if "d" in root else []
    if name == "g":
        notes.append("the file has no averaged generator: g takes its place")
    if not isinstance(mean, Stored):
        notes.append(f"the file has no mean of w: it is computed from {MEAN_OF:,} latents")
    fill = {"w_avg": _mean_of(mean if isinstance(mean, Stored) else None)}
    networks = {ours: ForeignNetwork(state_dict(root[theirs], theirs), _generator_rules(resolution), fill)
                for ours, theirs in (("g_ema", name), ("g", "g")) if isinstance(root.get(theirs), dict)}
    if isinstance(root.get("d"), dict):
        discriminator = state_dict(root["d"], "d")
        settings |= _discriminator_settings(discriminator, resolution)
        networks["d"] = ForeignNetwork(discriminator, _discriminator_rules(resolution))
    return Foreign("StyleGAN2, as rosinality's stylegan2-pytorch saves it", LICENCE, "stylegan2", settings, resolution,
                   channels, 0, networks, notes=notes)


def _generator_rules(resolution: int) -> list[Rule]:
    rules: list[Rule] = [(rf"style\.{i + 1}\.(weight|bias)", rf"mapping.layers.{i}.\1") for i in range(64)]
    rules += [(r"(?:.+\.)?(?:blur|upsample)\.kernel", FILTER), (r"input\.input", "synthesis.b4.const")]
    layers = [("conv1", "synthesis.b4.conv1"), ("to_rgb1", "synthesis.b4.torgb")]
    rules += [(r"noises\.noise_0", "synthesis.b4.conv1.noise_const")]
    for k, r in enumerate(_upper(resolution)):
        for i in (0, 1):
            layers.append((f"convs.{2 * k + i}", f"synthesis.b{r}.conv{i}"))
            rules.append((rf"noises\.noise_{2 * k + 1 + i}", f"synthesis.b{r}.conv{i}.noise_const"))
        layers.append((f"to_rgbs.{k}", f"synthesis.b{r}.torgb"))
    return rules + [(re.escape(f"{theirs}.{part}"), f"{ours}.{own}") for theirs, ours in layers for part, own in _PARTS.items()]


def _discriminator_settings(tensors: dict[str, Stored], resolution: int) -> dict[str, object]:
    what = "the discriminator"
    widths = {4: _size(tensors, "final_conv.0.weight", 0, what)}
    for key in tensors:
        if match := re.fullmatch(r"convs\.([1-9]\d?)\.conv1\.0\.weight", key):
            widths[resolution >> (int(match[1]) - 1)] = _size(tensors, key, 0, what)
    if resolution_of(list(widths), what) != resolution:
        raise InputError(f"{what} judges images of another size than the generator makes")
    base, most = pyramid_of(widths, what)
    return {"discriminator.architecture": "resnet", "discriminator.channel_base": base, "discriminator.channel_max": most,
            "discriminator.mbstd_group": 4}


def _discriminator_rules(resolution: int) -> list[Rule]:
    rules: list[Rule] = [(r"(?:.+\.)?kernel", FILTER), (r"convs\.0\.0\.weight", "fromrgb.weight"),
                         (r"convs\.0\.1\.bias", "fromrgb.bias"), (r"final_conv\.0\.weight", "conv.weight"),
                         (r"final_conv\.1\.bias", "conv.bias"), (r"final_linear\.0\.(weight|bias)", r"dense.\1"),
                         (r"final_linear\.1\.(weight|bias)", r"out.\1")]
    for i, r in enumerate(_upper(resolution)[::-1], 1):
        rules += [(rf"convs\.{i}\.{theirs}", f"b{r}.{ours}") for theirs, ours in (
            (r"conv1\.0\.weight", "conv0.weight"), (r"conv1\.1\.bias", "conv0.bias"), (r"conv2\.1\.weight", "conv1.weight"),
            (r"conv2\.2\.bias", "conv1.bias"), (r"skip\.1\.weight", "skip.weight"))]
    return rules


def _upper(resolution: int) -> list[int]:
    """8, 16, ..., resolution."""
    return [1 << i for i in range(3, resolution.bit_length())]


def _mean_of(stored: Stored | None) -> Any:
    """What fills `w_avg`."""
    @torch.no_grad()
    def mean(network: torch.nn.Module) -> Tensor:
        generator = cast(Generator, network)
        if stored is not None:
            return stored.tensor().reshape(generator.w_avg.shape)
        index = torch.arange(MEAN_OF)
        return generator.mapping(randomness.normal(0, "import.mean.z", index, (generator.z_dim,)), None).mean(dim=0)

    return mean
