"""Files of R3GAN: a pickle of a dictionary with plain objects of its classes, `G`, `D`, `G_ema` and `cur_nimg`."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from stylegan_dist.errors import InputError
from stylegan_dist.importing.foreign import FILTER, NO_AVERAGE, Foreign, ForeignNetwork, Rule, pyramid_of, size_of
from stylegan_dist.importing.modules import Tree, tree_of
from stylegan_dist.importing.values import Record

LICENCE = "the R3GAN repository has no licence file: ask its authors what may be done with their code and weights"
_size = partial(size_of, project="R3GAN")
_STAGE = r"Model\.MainLayers\.(\d{1,2})\.Layers\."
_BLOCK = (("LinearLayer1.Layer.weight", "conv1.weight"), ("LinearLayer2.Layer.weight", "conv2.weight"),
          ("LinearLayer3.Layer.weight", "conv3.weight"), ("NonLinearity1.Bias", "act1.bias"),
          ("NonLinearity2.Bias", "act2.bias"))


def read(root: dict[str, Any]) -> Foreign | None:
    """The content of a file; None if it is of another format.

    Raises:
        InputError: networks that cannot be represented here.
        Refused: it is damaged.
    """
    records = {ours: root.get(theirs) for ours, theirs in (("g_ema", "G_ema"), ("g", "G"), ("d", "D"))}
    trees = {name: tree_of(record) for name, record in records.items()
             if isinstance(record, Record) and record.name.startswith("training.networks.")}
    generator = trees.get("g_ema") or trees.get("g")
    if generator is None or "Model.MainLayers" not in generator.modules:
        return None
    notes = []
    if "g_ema" not in trees:
        trees["g_ema"] = generator
        notes.append(NO_AVERAGE)
    settings: dict[str, object] = {"precision.clamp": 0.0}
    own, resolution = _network(generator, "generator")
    classes = class_dim = 0
    if "Model.EmbeddingLayer.weight" in generator.tensors:
        class_dim = _size(generator.tensors, "Model.EmbeddingLayer.weight", 0, "the generator")
        classes = _size(generator.tensors, "Model.EmbeddingLayer.weight", 1, "the generator")
        settings["generator.class_dim"] = class_dim
    taken = _size(generator.tensors, "Model.MainLayers.0.Layers.0.LinearLayer.weight", 1, "the generator")
    settings |= own | {"generator.z_dim": taken - class_dim}
    rules = {"g": _generator_rules(resolution, int(str(own["generator.blocks"])))}
    rules["g_ema"] = rules["g"]
    if "d" in trees:
        judge, judged = _network(trees["d"], "discriminator")
        if judged != resolution:
            raise InputError(f"the discriminator judges images of {judged} pixels, and the generator makes {resolution}")
        settings |= judge
        rules["d"] = _discriminator_rules(resolution, int(str(judge["discriminator.blocks"])))
    nimg = root.get("cur_nimg")
    return Foreign("R3GAN, as its authors' code saves it", LICENCE, "r3gan", settings, resolution,
                   _size(generator.tensors, "Model.AggregationLayer.Layer.weight", 0, "the generator"), classes,
                   {name: ForeignNetwork(tree.tensors, rules[name]) for name, tree in trees.items()},
                   nimg if type(nimg) is int and 0 < nimg < 1 << 62 else None, notes)


def _network(tree: Tree, section: str) -> tuple[dict[str, object], int]:
    """Settings and resolution. A generator goes from 4x4 pixels up, a discriminator down."""
    what = f"the {section}"
    found: dict[int, set[int]] = {}
    for name in tree.tensors:
        if match := re.fullmatch(_STAGE + r"(\d{1,2})\.LinearLayer3\.Layer\.weight", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    first, stages = int(section == "generator"), len(found)
    blocks = max(map(len, found.values()), default=0)
    if not 2 <= stages <= 10 or sorted(found) != [*range(stages)] \
            or any(sorted(numbers) != [*range(first, first + blocks)] for numbers in found.values()):
        raise InputError(f"{what} has not the same number of blocks at each resolution: that cannot be represented here")
    widths, groups = {}, set()
    for stage in found:
        name = f"Model.MainLayers.{stage}.Layers.{first}"
        resolution = 4 << (stage if first else stages - 1 - stage)
        widths[resolution] = _size(tree.tensors, f"{name}.LinearLayer1.Layer.weight", 1, what)
        groups.add(_size(tree.tensors, f"{name}.LinearLayer2.Layer.weight", 1, what))
    if len(groups) > 1:
        raise InputError(f"{what} has groups of {sorted(groups)} feature maps: only one size can be represented here")
    base, most = pyramid_of(widths, what)
    return {f"{section}.blocks": blocks, f"{section}.group_width": groups.pop(), f"{section}.channel_base": base,
            f"{section}.channel_max": most}, max(widths)


def _generator_rules(resolution: int, blocks: int) -> list[Rule]:
    rules: list[Rule] = [(_STAGE + r"\d{1,2}\.Resampler\.Kernel", FILTER),
                         (r"Model\.MainLayers\.0\.Layers\.0\.Basis", "basis"),
                         (r"Model\.MainLayers\.0\.Layers\.0\.LinearLayer\.weight", "dense.weight"),
                         (r"Model\.AggregationLayer\.Layer\.weight", "torgb.weight"),
                         (r"Model\.EmbeddingLayer\.weight", "embed.weight")]
    for stage in range(resolution.bit_length() - 2):
        rules += _stage_rules(f"Model.MainLayers.{stage}.Layers", f"b{4 << stage}", 1, blocks, width=0)
    return rules


def _discriminator_rules(resolution: int, blocks: int) -> list[Rule]:
    last = resolution.bit_length() - 3
    end = re.escape(f"Model.MainLayers.{last}.Layers.{blocks}")
    rules: list[Rule] = [(_STAGE + r"\d{1,2}\.Resampler\.Kernel", FILTER),
                         (rf"{end}\.Basis\.weight", "basis"), (rf"{end}\.LinearLayer\.weight", "dense.weight"),
                         (r"Model\.ExtractionLayer\.Layer\.weight", "fromrgb.weight"),
                         (r"Model\.EmbeddingLayer\.weight", "embed.weight")]
    for stage in range(last + 1):
        rules += _stage_rules(f"Model.MainLayers.{stage}.Layers", f"b{resolution >> stage}", 0, blocks, width=blocks)
    return rules


def _stage_rules(theirs: str, ours: str, first: int, blocks: int, width: int) -> list[Rule]:
    """Args: first: number of the first block among their layers; width: of the layer that changes the width."""
    rules: list[Rule] = [(re.escape(f"{theirs}.{width}.LinearLayer.Layer.weight"), f"{ours}.width.weight")]
    for block in range(blocks):
        rules += [(re.escape(f"{theirs}.{first + block}.{name}"), f"{ours}.blocks.{block}.{own}") for name, own in _BLOCK]
    return rules
