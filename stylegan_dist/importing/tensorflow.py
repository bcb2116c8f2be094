"""Files of StyleGAN2 and StyleGAN2-ADA for TensorFlow (NVIDIA).

A file is a pickle of (G, D, Gs), objects of one class; Gs is the averaged generator. Each holds its variables as arrays, by
name, and the source of the function that builds it, which is not needed: names and shapes of the variables and the arguments
of that function tell the architecture.

Weights of convolutions are [height, width, in, out] there, others [in, out]. The weight of an up-sampling convolution here is
that of a transposed one, so it is mirrored. Biases of styles are stored there less the one at which they begin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylegan_dist.errors import InputError
from stylegan_dist.importing.foreign import (
    NO_AVERAGE,
    ONLY,
    PART,
    Foreign,
    ForeignNetwork,
    Rule,
    pyramid_of,
    resolution_of,
    size_of,
)
from stylegan_dist.importing.machine import Refused
from stylegan_dist.importing.modules import MOST_PARTS
from stylegan_dist.importing.nvidia import DISCRIMINATOR, GENERATOR, LICENCE, MAPPING_RATE, MOST_NUMBER, grouping, note_clamp
from stylegan_dist.importing.values import TENSORFLOW_NETWORK, Array, Record, Storage, Stored
from stylegan_dist.networks.layers import resolutions
from stylegan_dist.records import shorten

_VERSIONS = (2, 3, 4, 5)  # of the format
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,200}")  # of a variable; others could change what a terminal shows
# Arguments that say how a network is trained or drawn, or what the shapes of its variables tell.
_SAID = {
    "latent_size", "label_size", "dlatent_size", "dlatent_broadcast", "num_channels", "resolution", "resolution_w",
    "resolution_h", "mapping_layers", "mapping_fmaps", "label_fmaps", "fmap_base", "fmap_decay", "fmap_min", "fmap_max",
    "fmap_const", "architecture", "mapping_func", "synthesis_func", "structure", "truncation_psi", "truncation_cutoff",
    "truncation_psi_val", "truncation_cutoff_val", "dlatent_avg_beta", "style_mixing_prob", "randomize_noise", "is_training",
    "is_validation", "dtype", "fused_modconv", "freeze_layers", "conv_clamp", "num_fp16_res", "mbstd_group_size",
    "mbstd_num_features", "mapping_lrmul"}
# Arguments whose other values make other networks.
_FIXED: dict[str, Any] = {"nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu", "normalize_latents": True,
                          "use_noise": True, "resample_kernel": [1, 3, 3, 1]}
_LAYER = (("weight", "weight"), ("bias", "bias"), ("mod_weight", "affine.weight"), ("mod_bias", "affine.bias"))


@dataclass(frozen=True)
class _Network:
    """A network of a file.

    Attributes:
        what: for messages.
        function: that builds it.
        arguments: of that function, and of those of its components.
        variables: by name, in the layout of ours.
    """

    what: str
    function: str
    arguments: dict[str, Any]
    variables: dict[str, Stored]

    def number(self, argument: str, otherwise: float | None) -> float:
        """An argument, 0 for None. Raises InputError: it is no number from 0 to MOST_NUMBER."""
        value = self.arguments.get(argument, otherwise) or 0
        if not isinstance(value, (int, float)) or not 0 <= value <= MOST_NUMBER:
            raise InputError(f"{self.what} has the odd {argument} {shorten(value)}: {ONLY}")
        return value

    def size(self, name: str, dimension: int) -> int:
        """A size of a variable. Raises InputError where it is missing."""
        return size_of(self.variables, name, dimension, self.what)

    def blocks(self, pattern: str) -> list[int]:
        """The resolutions of which there are variables of a name. Raises InputError: they are not square."""
        found = [match for name in self.variables if (match := re.fullmatch(rf"{pattern}/\w+", name))]
        if odd := [match[0] for match in found if match[1] != match[2]]:
            raise InputError(f"{self.what} has {odd[0]}: only square images are possible here")
        return sorted({int(match[1]) for match in found})


def networks_of(root: Any) -> dict[str, Record] | None:
    """The networks in the value of a file, under the names of ours; None if it is of another format.

    Raises:
        InputError: it holds something else beside them.
    """
    parts = (None, None, root) if isinstance(root, Record) else root
    if not isinstance(parts, (tuple, list)) or not any(map(_is_network, parts)):
        return None
    if len(parts) != 3 or not all(part is None or _is_network(part) for part in parts) or (parts[0] or parts[2]) is None:
        raise InputError(f"it holds {len(parts)} objects, where files of StyleGAN2 for TensorFlow hold the generator, the "
                         "discriminator and the averaged generator, or this one alone: write these three into a new file")
    return {name: part for name, part in zip(("g", "d", "g_ema"), parts, strict=True) if part is not None}


def _is_network(value: Any) -> bool:
    return isinstance(value, Record) and value.name == TENSORFLOW_NETWORK


def read(records: Mapping[str, Record]) -> Foreign:
    """The content of a file.

    Raises:
        InputError: networks that cannot be represented here.
        Refused: it is damaged.
    """
    networks = {name: _network(record, DISCRIMINATOR if name == "d" else GENERATOR) for name, record in records.items()}
    notes: list[str] = []
    if "g_ema" not in networks:
        networks["g_ema"] = networks["g"]
        notes.append(NO_AVERAGE)
    generator = networks["g_ema"]
    for name in ("g", "d", "g_ema"):
        if name in networks:
            _check(networks[name], notes if name != "g" else [])
    settings, resolution = _generator(generator)
    rules = dict.fromkeys(("g", "g_ema"), _generator_rules(resolution))
    if "d" in networks:
        settings |= _discriminator(networks["d"], resolution, settings["precision.clamp"], notes)
        rules["d"] = _discriminator_rules(resolution)
    labels = "mapping/LabelEmbed/weight"
    return Foreign(
        "StyleGAN2, as its versions for TensorFlow save it", LICENCE, "stylegan2", settings, resolution,
        generator.size(f"synthesis/{resolution}x{resolution}/ToRGB/weight", 0),
        generator.size(labels, 1) if labels in generator.variables else 0,
        {name: ForeignNetwork(network.variables, rules[name]) for name, network in networks.items()}, notes=notes)


def _network(record: Record, what: str) -> _Network:
    """Raises Refused: it is none; InputError: of an unknown version."""
    found = _Network(what, str(record.attributes.get("build_func_name")), {}, {})
    components = record.attributes.get("components", {})
    if not isinstance(components, dict) or not all(isinstance(name, str) and _is_network(part) and not part.attributes.get(
            "components") for name, part in components.items()):
        raise Refused(f"refused: the components of {what} are no networks, or have components of their own")
    for prefix, part in (("", record), *((f"{name}/", part) for name, part in components.items())):
        if (version := part.attributes.get("version")) not in _VERSIONS:
            raise InputError(f"{what} is saved in the version {shorten(version)} of the format: 2 to 5 are known")
        arguments, variables = part.attributes.get("static_kwargs"), part.attributes.get("variables")
        if not isinstance(arguments, dict) or not isinstance(variables, list) or not all(
                isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) for one in variables):
            raise Refused(f"refused: {what} has no arguments or no named variables")
        if len(found.variables) + len(variables) > MOST_PARTS:
            raise Refused(f"refused: {what} has more than {MOST_PARTS} variables")
        found.arguments.update(arguments)
        for name, value in variables:
            if not _NAME.fullmatch(prefix + name) or prefix + name in found.variables:
                raise Refused(f"refused: {what} has a variable of the odd name {shorten(prefix + name)}, or twice")
            found.variables[prefix + name] = _stored(prefix + name, value)
    return found


def _stored(name: str, value: Any) -> Stored:
    """A variable in the layout of ours. Raises Refused: it is no array of float32."""
    with np.errstate(over="ignore"):  # it becomes infinite, which is refused
        array = np.asarray(value, np.float32) if isinstance(value, float) else getattr(value, "value", None)
    if not isinstance(value, (float, Array)) or not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise Refused(f"refused: {name} is no array of float32")
    scope, _, last = name.rpartition("/")
    if array.ndim == 4 and last == "weight":
        array = (array[::-1, ::-1] if scope.endswith("/Conv0_up") else array).transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T

    def read() -> bytes:
        return (array + np.float32(1) if last == "mod_bias" else array).tobytes()

    strides = tuple(math.prod(array.shape[i + 1:]) for i in range(array.ndim))
    return Stored(Storage(torch.float32, array.size, read), 0, array.shape, strides)


def _check(network: _Network, notes: list[str]) -> None:
    """Raise InputError where a network computes something else than ours. `notes` gets the arguments that are not known."""
    what, names = network.what, " ".join(network.variables)
    if "StyleMod" in names or "ToRGB_lod" in names or "FromRGB_lod" in names:
        kind = "the first StyleGAN" if "StyleMod" in names else "StyleGAN2's configurations that grow"
        raise InputError(f"{what} is of {kind}: only those of the configurations E and F and of StyleGAN2-ADA can be "
                         "represented here; choose a file of these")
    if "LabelConcat" in names or (what == DISCRIMINATOR and network.number("label_size", 0) and "LabelEmbed" not in names):
        raise InputError(f"{what} takes labels as StyleGAN2 does without ADA: {ONLY}; of files with labels, those of "
                         "StyleGAN2-ADA are possible")
    for argument, wanted in _FIXED.items():
        value = network.arguments.get(argument, wanted)
        if (list(value) if isinstance(value, tuple) else value) != wanted:
            shown = value if isinstance(value, (list, tuple)) and len(value) <= 8 else [value]
            raise InputError(f"{what} has the {argument} {', '.join(map(shorten, shown))} instead of {wanted}: {ONLY}")
    rate = network.number("mapping_lrmul", MAPPING_RATE if what == GENERATOR else 0.1)
    if abs(rate - MAPPING_RATE) > 1e-9 and (what == GENERATOR or "Mapping0" in names):
        raise InputError(f"{what} has the mapping_lrmul {rate:g} instead of {MAPPING_RATE}: {ONLY}")
    if unknown := [shorten(name) for name in network.arguments if name not in _SAID and name not in _FIXED]:
        notes.append(f"{what} was built with {', '.join(unknown[:8])}, which is not known here: compare its pictures with "
                     "those of the program that made it")


def _generator(network: _Network) -> tuple[dict[str, object], int]:
    """Settings and resolution."""
    what, shape = network.what, r"synthesis/(\d{1,5})x(\d{1,5})"
    widths = {4: network.size("synthesis/4x4/Conv/weight", 0)}
    widths |= {r: network.size(f"synthesis/{r}x{r}/Conv1/weight", 0) for r in network.blocks(f"{shape}/Conv1")}
    resolution = resolution_of(list(widths), what)
    colours, residual = network.blocks(f"{shape}/ToRGB"), network.blocks(f"{shape}/Skip")
    if residual or colours == [resolution]:
        raise InputError(f"{what} has the architecture {'resnet' if residual else 'orig'}: only skip generators exist here, as "
                         "of the configuration F and of StyleGAN2-ADA; choose a file of these")
    base, most = pyramid_of(widths, what)
    labels = "mapping/LabelEmbed/weight"
    embedded = network.size(labels, 0) if labels in network.variables else 0
    settings: dict[str, object] = {
        "generator.z_dim": network.size("mapping/Dense0/weight", 1) - embedded,
        "generator.w_dim": network.size("mapping/Dense0/weight", 0),
        "generator.mapping_layers": _count(network, r"mapping/Dense\d+/weight"),
        "generator.channel_base": base, "generator.channel_max": most,
        "precision.clamp": float(network.number("conv_clamp", None))}
    if low := min(int(network.number("num_fp16_res", 0)), len(widths) - 1):
        settings["precision.top_resolutions"] = low
    return settings, resolution


def _discriminator(network: _Network, resolution: int, clamp: object, notes: list[str]) -> dict[str, object]:
    """Settings. `notes` gets what a person should know."""
    what, shape = network.what, r"(\d{1,5})x(\d{1,5})"
    widths = {4: network.size("4x4/Conv/weight", 0)}
    widths |= {r: network.size(f"{r}x{r}/Conv0/weight", 1) for r in network.blocks(f"{shape}/Conv0")}
    if (own := resolution_of(list(widths), what)) != resolution:
        raise InputError(f"{what} judges images of {own} pixels, and the generator makes {resolution}")
    if len(network.blocks(f"{shape}/FromRGB")) > 1:
        raise InputError(f"{what} has the architecture skip: only resnet and orig exist here; leave it out of the file")
    note_clamp(float(network.number("conv_clamp", None)), clamp, notes)
    base, most = pyramid_of(widths, what)
    group = network.arguments.get("mbstd_group_size", None if network.function.endswith("D_main") else 4)
    result: dict[str, object] = {
        "discriminator.architecture": "resnet" if network.blocks(f"{shape}/Skip") else "orig",
        "discriminator.channel_base": base, "discriminator.channel_max": most,
        **grouping(group, network.arguments.get("mbstd_num_features", 1), notes)}
    if "LabelEmbed/weight" in network.variables:
        result["discriminator.mapping_layers"] = _count(network, r"Mapping\d+/weight")
    return result


def _count(network: _Network, pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in network.variables)


def _generator_rules(resolution: int) -> list[Rule]:
    rules: list[Rule] = [(r"dlatent_avg", "w_avg"), (r"lod", PART), (r"synthesis/4x4/Const/const", "synthesis.b4.const"),
                         (r"mapping/LabelEmbed/(weight|bias)", r"mapping.embed.\1"),
                         (r"mapping/Dense(\d+)/(weight|bias)", r"mapping.layers.\1.\2")]
    upper = resolutions(resolution)[1:]
    layers = [("4x4/Conv", "b4.conv1")]
    for r in upper:
        layers += [(f"{r}x{r}/Conv0_up", f"b{r}.conv0"), (f"{r}x{r}/Conv1", f"b{r}.conv1")]
    for number, (theirs, ours) in enumerate(layers):
        rules += [(f"synthesis/noise{number}", f"synthesis.{ours}.noise_const"),
                  (f"synthesis/{theirs}/noise_strength", f"synthesis.{ours}.noise_strength")]
    for theirs, ours in [*layers, *((f"{r}x{r}/ToRGB", f"b{r}.torgb") for r in (4, *upper))]:
        rules += [(f"synthesis/{theirs}/{last}", f"synthesis.{ours}.{own}") for last, own in _LAYER]
    return rules


def _discriminator_rules(resolution: int) -> list[Rule]:
    places = {f"{resolution}x{resolution}/FromRGB": "fromrgb", "4x4/Conv": "conv", "4x4/Dense0": "dense", "Output": "out",
              "LabelEmbed": "mapping.embed"}
    for r in resolutions(resolution)[1:]:
        places |= {f"{r}x{r}/{theirs}": f"b{r}.{ours}"
                   for theirs, ours in (("Conv0", "conv0"), ("Conv1_down", "conv1"), ("Skip", "skip"))}
    return [*((rf"{theirs}/(weight|bias)", rf"{ours}.\1") for theirs, ours in places.items()),
            (r"Mapping(\d+)/(weight|bias)", r"mapping.layers.\1.\2")]
