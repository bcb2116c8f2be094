"""Generators of StyleGAN3 in files of stylegan3 (NVIDIA). Mapping network and discriminator are those of StyleGAN2's files."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_dist.errors import InputError
from stylegan_dist.importing.foreign import ONLY, PART, Rule
from stylegan_dist.importing.modules import Tree
from stylegan_dist.importing.values import Stored
from stylegan_dist.records import shorten

SYNTHESIS: list[Rule] = [
    (r"synthesis\.input\.(weight|phases|transform)", r"synthesis.input.\1"),
    (r"synthesis\.input\.freqs", "synthesis.input.frequencies"),
    (r"synthesis\.input\.affine\.(weight|bias)", r"synthesis.input.motion.\1"),
    (r"synthesis\.L(\d+)_\d+_\d+\.(weight|bias|affine\.weight|affine\.bias)", r"synthesis.layers.\1.\2"),
    (r"synthesis\.L\d+_\d+_\d+\.(?:magnitude_ema|up_filter|down_filter)", PART),
]
_LAYER = r"synthesis\.L(\d{1,3})_(\d{1,5})_(\d{1,5})"
_PUBLISHED = {"channel_base": 32768, "channel_max": 512}  # where a file does not say
_FILTERS = 1e-5  # by which taps may differ


def read_generator(tree: Tree) -> tuple[str, dict[str, object], int, int]:
    """Family, settings, resolution and channels.

    Raises:
        InputError: it cannot be represented here.
    """
    names = sorted((int(match[1]), int(match[2]), int(match[3]), path) for path in tree.modules
                   if (match := re.fullmatch(_LAYER, path)))
    if [number for number, *_ in names] != [*range(len(names))] or len(names) < 4:
        raise InputError("the generator has not the layers of StyleGAN3 from L0 on: it is damaged or a changed one")
    first = tree.tensors.get(f"{names[0][3]}.weight")
    kernel = first.shape[-1] if first is not None and first.shape else 0
    if kernel not in (1, 3):
        raise InputError(f"the generator has convolutions of {kernel} pixels, instead of 3 (stylegan3-t) or 1 (stylegan3-r)")
    if (scale := tree.attribute("synthesis", "output_scale", 0.25)) != 0.25:
        raise InputError(f"the generator multiplies its images by {shorten(scale)} instead of 0.25: {ONLY}")
    settings: dict[str, object] = {"generator.layers": len(names) - 1}
    for key, usual in _PUBLISHED.items():
        settings[f"generator.{key}"] = _option(tree, key, usual)
    return f"stylegan3-{'t' if kernel == 3 else 'r'}", settings, names[-1][1], names[-1][2]


def _option(tree: Tree, key: str, usual: int) -> int:
    """An argument with which the synthesis network was made."""
    options = tree.modules["synthesis"].attributes.get("_init_kwargs")
    value = options.get(key) if isinstance(options, dict) else None
    return value if type(value) is int else usual


def fill(tree: Tree) -> dict[str, Callable[[nn.Module], Tensor]]:
    """The magnitudes are one tensor here. The filters are designed here, and compared with those of the file."""
    def magnitudes(network: nn.Module) -> Tensor:
        layers: Any = network.get_submodule("synthesis.layers")
        found = {int(match[1]): path for path in tree.modules if (match := re.fullmatch(_LAYER, path))}
        values = []
        for number, layer in enumerate(layers):
            path = found[number]
            if f"{path}.magnitude_ema" not in tree.tensors:
                raise InputError(f"the generator has no {path}.magnitude_ema: it is damaged or a changed one")
            values.append(tree.tensors[f"{path}.magnitude_ema"].tensor().reshape(()))
            _check_filters(path, tree.tensors, [] if layer.layer.rgb else layer.filters(torch.device("cpu")))
        return torch.stack(values)

    return {"synthesis.magnitudes": magnitudes}


def _check_filters(path: str, tensors: dict[str, Stored], ours: Any) -> None:
    for name, own in zip(("up_filter", "down_filter"), ours, strict=False):
        stored = tensors.get(f"{path}.{name}")
        if stored is None or stored.shape != tuple(own.shape) or not torch.allclose(stored.tensor(), own, atol=_FILTERS):
            raise InputError(f"the generator has another {path}.{name} than StyleGAN3's: {ONLY}")
