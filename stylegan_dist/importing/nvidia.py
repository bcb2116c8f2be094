"""Files of stylegan2-ada-pytorch and stylegan3 (NVIDIA): networks of StyleGAN2.

A file is a pickle of a dictionary with `G`, `D` and `G_ema`. Each module in it is an object with the source of its class,
which is not needed: the names and shapes of its tensors and some attributes tell the architecture. Stored values are equal to
ours: no transposes, no gains.
"""

from __future__ import annotations

import re
from typing import Any

from stylegan_dist.errors import InputError
from stylegan_dist.importing import stylegan3
from stylegan_dist.importing.foreign import (
    FILTER,
    NO_AVERAGE,
    ONLY,
    Foreign,
    ForeignNetwork,
    Rule,
    pyramid_of,
    resolution_of,
    size_of,
)
from stylegan_dist.importing.modules import Tree, tree_of
from stylegan_dist.importing.values import Record
from stylegan_dist.records import shorten

LICENCE = "NVIDIA's code and published weights are for research or evaluation only, not commercial (NVIDIA Source Code License)"
GENERATOR, DISCRIMINATOR = "the generator", "the discriminator"
_MAPPING: list[Rule] = [(r"mapping\.(embed\.(?:weight|bias))", r"mapping.\1"),
                        (r"mapping\.fc(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
                        (r"mapping\.w_avg", "w_avg")]
_SYNTHESIS: list[Rule] = [
    (r"synthesis\.(?:.+\.)?resample_filter", FILTER),
    (r"(synthesis\.b4\.const)", r"\1"),
    (r"(synthesis\.b\d+\.(?:conv[01]|torgb)\.(?:weight|bias|affine\.(?:weight|bias)))", r"\1"),
    (r"(synthesis\.b\d+\.conv[01]\.(?:noise_const|noise_strength))", r"\1"),
]
_DISCRIMINATOR: list[Rule] = [
    *_MAPPING,
    (r"(?:.+\.)?resample_filter", FILTER),
    (r"b\d+\.fromrgb\.(weight|bias)", r"fromrgb.\1"),
    (r"b4\.(conv|out)\.(weight|bias)", r"\1.\2"),
    (r"b4\.fc\.(weight|bias)", r"dense.\1"),
    (r"(b\d+\.(?:conv0|conv1)\.(?:weight|bias)|b\d+\.skip\.weight)", r"\1"),
]
MAPPING_RATE = 0.01
MOST_NUMBER = 1e9  # of an attribute or argument: that of the knob precision.clamp


def read(root: dict[str, Any]) -> Foreign | None:
    """The content of a file; None if it is of another format.

    Raises:
        InputError: networks that cannot be represented here.
        Refused: it is damaged.
    """
    records = {ours: root.get(theirs) for ours, theirs in (("g_ema", "G_ema"), ("g", "G"), ("d", "D"))}
    trees = {name: tree_of(record) for name, record in records.items() if isinstance(record, Record)}
    generator = trees.get("g_ema") or trees.get("g")
    if generator is None or "synthesis" not in generator.modules:
        return None
    notes = []
    if "g_ema" not in trees:
        trees["g_ema"] = generator
        notes.append(NO_AVERAGE)
    if "synthesis.input" in generator.modules:
        read_generator, title = stylegan3.read_generator, "StyleGAN3, as stylegan3 saves it"
    else:
        read_generator, title = _generator, "StyleGAN2, as stylegan2-ada-pytorch and stylegan3 save it"
    family, settings, resolution, channels = read_generator(generator)
    _check_layers(generator, GENERATOR)
    width, taken = (size_of(generator.tensors, "mapping.fc0.weight", dimension, GENERATOR) for dimension in (0, 1))
    labels = "mapping.embed.weight"
    classes = size_of(generator.tensors, labels, 1, GENERATOR) if labels in generator.tensors else 0
    settings |= {"generator.z_dim": taken - (width if classes else 0), "generator.w_dim": width,
                 "generator.mapping_layers": _layers(generator), "precision.clamp": _clamp(generator, GENERATOR)}
    networks = {}
    for name, tree in trees.items():
        if name == "d":
            settings |= _discriminator(tree, resolution, notes, settings["precision.clamp"])
            networks[name] = ForeignNetwork(tree.tensors, _DISCRIMINATOR)
        elif family == "stylegan2":
            networks[name] = ForeignNetwork(tree.tensors, [*_MAPPING, *_SYNTHESIS])
        else:
            networks[name] = ForeignNetwork(tree.tensors, [*_MAPPING, *stylegan3.SYNTHESIS], stylegan3.fill(tree))
    return Foreign(title, LICENCE, family, settings, resolution, channels, classes, networks, notes=notes)


def _generator(tree: Tree) -> tuple[str, dict[str, object], int, int]:
    """Family, settings, resolution and channels."""
    what = GENERATOR
    widths = {int(match[1]): stored.shape[0] for name, stored in tree.tensors.items()
              if (match := re.fullmatch(r"synthesis\.b(\d{1,5})\.conv1\.weight", name)) and stored.shape}
    resolution = resolution_of(list(widths), what)
    for path, architecture in tree.attributes("architecture"):
        if architecture != "skip":
            raise InputError(f"{what} has the architecture {shorten(architecture)} in {path}: only skip generators exist here")
    for path, uses in tree.attributes("use_noise"):
        if uses is not True:
            raise InputError(f"{what} has a layer without noise, {path}: {ONLY}")
    base, most = pyramid_of(widths, what)
    settings: dict[str, object] = {"generator.channel_base": base, "generator.channel_max": most}
    if low := sum(uses is True for _, uses in tree.attributes("use_fp16")):
        settings["precision.top_resolutions"] = low
    return "stylegan2", settings, resolution, size_of(tree.tensors, f"synthesis.b{resolution}.torgb.weight", 0, what)


def _discriminator(tree: Tree, resolution: int, notes: list[str], clamp: object) -> dict[str, object]:
    """Settings. StyleGAN3 has the same discriminator. `notes` gets what a person should know."""
    what = DISCRIMINATOR
    widths = {int(match[1]): stored.shape[1] for name, stored in tree.tensors.items()
              if (match := re.fullmatch(r"b(\d{1,5})\.conv0\.weight", name)) and len(stored.shape) > 1}
    widths[4] = size_of(tree.tensors, "b4.conv.weight", 0, what)
    if (own := resolution_of(list(widths), what)) != resolution:
        raise InputError(f"{what} judges images of {own} pixels, and the generator makes {resolution}")
    architectures = {value for _, value in tree.attributes("architecture")} or {"resnet"}
    if len(architectures) > 1 or not architectures <= {"resnet", "orig"}:
        raise InputError(f"{what} has the architecture {', '.join(map(shorten, architectures))}: only resnet and orig "
                         "exist here")
    _check_layers(tree, what)
    note_clamp(_clamp(tree, what), clamp, notes)
    base, most = pyramid_of(widths, what)
    result: dict[str, object] = {
        "discriminator.architecture": architectures.pop(), "discriminator.channel_base": base,
        "discriminator.channel_max": most,
        **grouping(tree.attribute("b4.mbstd", "group_size", 4), tree.attribute("b4.mbstd", "num_channels", 1), notes)}
    if "mapping.embed.weight" in tree.tensors:
        result["discriminator.mapping_layers"] = _layers(tree)
    return result


def note_clamp(own: float, clamp: object, notes: list[str]) -> None:
    """Note that the discriminator had another clamp than the generator."""
    if own != clamp:
        notes.append(f"{DISCRIMINATOR} was trained with the clamp {own:g} and the generator with {clamp:g}, which is set for "
                     "both")


def grouping(group: object, number: object, notes: list[str]) -> dict[str, object]:
    """Settings of the minibatch standard deviation. `notes` gets how it differs.

    Args:
        group: images in a group; None: all of a micro-batch.
        number: channels.
    Raises:
        InputError: it cannot be represented here.
    """
    if number != 1 or not (group is None or (isinstance(group, int) and group > 0)):
        raise InputError(f"{DISCRIMINATOR} has {shorten(number)} channels of minibatch standard deviation in groups of "
                         f"{shorten(group)}: {ONLY}")
    notes.append(f"{DISCRIMINATOR} was trained with strided groups of images, here they are consecutive: its logits differ "
                 "where a batch has more than one group")
    if group is None:
        notes.append(f"{DISCRIMINATOR} was trained with the whole micro-batch as one group of images; here a group has 4 at "
                     "most")
    return {"discriminator.mbstd_group": group} if group else {}


def _layers(tree: Tree) -> int:
    return sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in tree.tensors)


def _check_layers(tree: Tree, what: str) -> None:
    """Raise InputError where a layer computes something else than ours."""
    for path, activation in tree.attributes("activation"):
        plain = path.endswith(("affine", "embed", "skip", ".out"))
        if activation not in (("linear",) if plain else ("lrelu",)):
            raise InputError(f"{what} has the activation {shorten(activation)} in {path}: {ONLY}")
    for path, rate in tree.attributes("bias_gain"):
        wanted = MAPPING_RATE if re.fullmatch(r"mapping\.fc\d+", path) else 1.0
        if not isinstance(rate, (int, float)) or abs(rate - wanted) > 1e-9:
            raise InputError(f"{what} has the learning rate multiplier {shorten(rate)} in {path} instead of {wanted:g}: "
                             f"{ONLY}")


def _clamp(tree: Tree, what: str) -> float:
    """The bound of activations, 0 for none."""
    values = {value for path, value in tree.attributes("conv_clamp") if not path.endswith("skip")}
    value = next(iter(values), None) or 0.0
    if len(values) > 1 or not isinstance(value, (int, float)) or not 0 <= value <= MOST_NUMBER:
        raise InputError(f"{what} has odd or different clamps in its layers: {ONLY}")
    return float(value)
