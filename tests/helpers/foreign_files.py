"""Checkpoint files in the structure of other projects, written by PyTorch's and Python's own means from networks of ours.

The classes are stand-ins: they have the names that the files need, and none of the code of those projects.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
FILTER = torch.outer(TAPS, TAPS) / 64
SOURCE = "import os; os.system('touch executed-module-source')"  # stands for the source of a module, which nothing may run


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("only its name is used")


class EasyDict(dict):
    """Stands for a dictionary with attributes."""


class Part(nn.Module):
    """A module of NVIDIA's, of a class that its attribute `class_name` names."""

    def __reduce__(self) -> Any:
        state = dict(self.__dict__)
        meta = EasyDict(type="class", version=6, module_src=SOURCE, class_name=state.pop("class_name", "Network"), state=state)
        return _reconstruct_persistent_obj, (meta,), None


class Plain(nn.Module):
    """A module of R3GAN's; its subclasses get the names."""


@contextlib.contextmanager
def standing_in(**modules: Mapping[str, Any]) -> Iterator[None]:
    """Modules with these names ("__" for a dot) and content, as long as something is pickled."""
    names: dict[str, Mapping[str, Any]] = {name.partition("__")[0]: {} for name in modules}  # packages
    names |= {name.replace("__", "."): content for name, content in modules.items()}
    for name, content in names.items():
        sys.modules[name] = types.ModuleType(name)
        for key, value in content.items():
            setattr(sys.modules[name], key, value)
            value.__module__, value.__qualname__ = name, key
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _tree(tensors: Mapping[str, Tensor], buffers: tuple[str, ...]) -> Part:
    """Nested parts with these tensors; names that end with one of `buffers` are buffers."""
    top = Part()
    for name, value in tensors.items():
        *path, last = name.split(".")
        part = top
        for step in path:
            if step not in part._modules:
                part.add_module(step, Part())
            part = part._modules[step]
        if last in buffers:
            part.register_buffer(last, value.clone())
        else:
            part.register_parameter(last, nn.Parameter(value.clone()))
    return top


def nvidia_generator(network: nn.Module, clamp: float | None = None) -> Part:
    tensors = {}
    for name, value in network.state_dict().items():
        theirs = "mapping.w_avg" if name == "w_avg" else name.replace("mapping.layers.", "mapping.fc")
        tensors[theirs] = value[0] if name.endswith("noise_strength") else value
        if name.endswith(("conv0.weight", "conv1.weight")):
            tensors[theirs.removesuffix("weight") + "resample_filter"] = FILTER
            value = tensors[theirs]  # as channels-last layers are stored
            tensors[theirs] = value.to(memory_format=torch.channels_last)
    top = _tree(tensors, ("w_avg", "noise_const", "resample_filter"))
    top.class_name, top._init_kwargs = "Generator", EasyDict(z_dim=network.z_dim, synthesis_kwargs=EasyDict(channel_base=1))
    _set_attributes(top, clamp)
    return top


def nvidia_stylegan3(network: nn.Module, channel_base: int, channel_max: int) -> Part:
    tensors = {}
    for name, value in network.state_dict().items():
        theirs = "mapping.w_avg" if name == "w_avg" else name.replace("mapping.layers.", "mapping.fc")
        theirs = theirs.replace("input.frequencies", "input.freqs").replace("input.motion", "input.affine")
        if name == "synthesis.magnitudes":
            continue
        if name.startswith("synthesis.layers."):
            number, _, rest = name.removeprefix("synthesis.layers.").partition(".")
            layer = network.synthesis.layers[int(number)].layer
            path = f"synthesis.L{number}_{layer.after.size}_{layer.after.channels}"
            theirs = f"{path}.{rest}"
            tensors[f"{path}.magnitude_ema"] = network.synthesis.magnitudes[int(number)]
            if not layer.rgb:
                filters = network.synthesis.layers[int(number)].filters(torch.device("cpu"))
                tensors[f"{path}.up_filter"], tensors[f"{path}.down_filter"] = filters
        tensors[theirs] = value
    top = _tree(tensors, ("w_avg", "freqs", "phases", "transform", "magnitude_ema", "up_filter", "down_filter"))
    top.class_name = "Generator"
    top.synthesis._init_kwargs = EasyDict(channel_base=channel_base, channel_max=channel_max)
    _set_attributes(top, None)
    return top


def nvidia_discriminator(network: nn.Module, clamp: float | None = None) -> Part:
    top_resolution = network.resolutions[0]
    tensors = {}
    for name, value in network.state_dict().items():
        first, _, rest = name.partition(".")
        theirs = {"fromrgb": f"b{top_resolution}.fromrgb.{rest}", "conv": f"b4.conv.{rest}", "dense": f"b4.fc.{rest}",
                  "out": f"b4.out.{rest}"}.get(first, name.replace("mapping.layers.", "mapping.fc"))
        tensors[theirs] = value
    for r in network.resolutions:
        tensors[f"b{r}.resample_filter"] = tensors[f"b{r}.conv1.resample_filter"] = FILTER
    top = _tree(tensors, ("resample_filter", *(["weight"] if clamp else [])))  # frozen layers lie in the buffers
    top.class_name = "Discriminator"
    _set_attributes(top, clamp, "resnet" if hasattr(network, "b8") and network.b8.skip is not None else "orig")
    mbstd = Part()
    mbstd.group_size, mbstd.num_channels = network.mbstd_group, 1
    top.b4.add_module("mbstd", mbstd)
    return top


def _set_attributes(top: Part, clamp: float | None, architecture: str = "skip") -> None:
    for path, part in top.named_modules():
        last = path.rpartition(".")[2]
        if last.startswith("fc") or last in ("affine", "embed", "out"):
            part.activation = "lrelu" if last.startswith("fc") else "linear"
            part.bias_gain = np.float64(0.01) if path.startswith("mapping.fc") else 1  # a NumPy scalar, as of np.sqrt
        elif last in ("conv", "conv0", "conv1", "fromrgb"):
            part.activation, part.conv_clamp, part.use_noise = "lrelu", clamp, True
        elif last == "skip":
            part.activation, part.conv_clamp = "linear", None
        elif last == "torgb":
            part.conv_clamp = clamp
        elif last.startswith("b") and last[1:].isdecimal():
            part.architecture, part.use_fp16, part.in_size = architecture, last in ("b32", "b16"), np.array([4, 4])


def write_nvidia(path: Path, protocol: int = 4, **networks: Part | None) -> Path:
    """A pickle of G, D, G_ema, and what else the files have."""
    content = {**networks, "augment_pipe": None, "training_set_kwargs": EasyDict(class_name="x", path="/data", use_labels=True)}
    with standing_in(torch_utils__persistence={"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
                     dnnlib__util={"EasyDict": EasyDict}), open(path, "wb") as file:
        pickle.dump(content, file, protocol)
    return path


def write_r3gan(path: Path, nimg: int, **networks: nn.Module) -> Path:
    """A pickle of plain objects; `G`, `D`, `G_ema` are networks of ours."""
    classes = {name: type(name, (Plain,), {}) for name in (
        "Generator", "Discriminator", "Stage", "Basis", "Up", "ResidualBlock", "Convolution")}
    resamplers = {"Resampler": type("Resampler", (Plain,), {})}
    activations = {"BiasedActivation": type("BiasedActivation", (Plain,), {})}
    outer = {name: type(name, (Plain,), {}) for name in ("Generator", "Discriminator")}
    content: dict[str, Any] = {"cur_nimg": nimg, "training_set_kwargs": {}}
    for name, network in networks.items():
        model = classes["Discriminator" if name == "D" else "Generator"]()
        (_r3gan_discriminator if name == "D" else _r3gan_generator)(model, network, classes | resamplers | activations)
        content[name] = outer["Discriminator" if name == "D" else "Generator"]()
        content[name].Model = model
        optimizer = torch.optim.Adam(model.parameters())
        content[f"{name}_opt_state"] = optimizer.state_dict()
    with standing_in(training__networks=outer, R3GAN__Networks=classes, R3GAN__Resamplers=resamplers,
                     R3GAN__FusedOperators=activations), open(path, "wb") as file:
        pickle.dump(content, file)
    return path


def _convolution(classes: Mapping[str, type], weight: Tensor) -> nn.Module:
    layer = classes["Convolution"]()
    layer.Layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.Layer.weight = nn.Parameter(weight.clone())
    return layer


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _change(classes: Mapping[str, type], width: nn.Module) -> nn.Module:
    layer = classes["Up"]()
    layer.Resampler = classes["Resampler"]()
    layer.Resampler.register_buffer("Kernel", FILTER.clone())
    if hasattr(width, "weight"):
        layer.LinearLayer = _convolution(classes, width.weight)
    return layer


def _stage(classes: Mapping[str, type], blocks: nn.Sequential) -> list[nn.Module]:
    layers = []
    for block in blocks:
        layer = classes["ResidualBlock"]()
        for i, convolution in enumerate((block.conv1, block.conv2, block.conv3), 1):
            setattr(layer, f"LinearLayer{i}", _convolution(classes, convolution.weight))
        for i, rectifier in enumerate((block.act1, block.act2), 1):
            activation = classes["BiasedActivation"]()
            activation.Bias = nn.Parameter(rectifier.bias.clone())
            setattr(layer, f"NonLinearity{i}", activation)
        layers.append(layer)
    return layers


def _finish(classes: Mapping[str, type], layers: list[nn.Module], low: bool) -> nn.Module:
    stage = classes["Stage"]()
    stage.Layers = nn.ModuleList(layers)
    stage.DataType = torch.bfloat16 if low else torch.float32
    return stage


def _r3gan_generator(model: nn.Module, network: nn.Module, classes: Mapping[str, type]) -> None:
    stages = []
    for r in network.resolutions:
        ours = getattr(network, f"b{r}")
        if r == 4:
            first = classes["Basis"]()
            first.Basis, first.LinearLayer = nn.Parameter(network.basis.clone()), _linear(network.dense.weight)
        else:
            first = _change(classes, ours.width)
        stages.append(_finish(classes, [first, *_stage(classes, ours.blocks)], r > 8))
    model.MainLayers, model.AggregationLayer = nn.ModuleList(stages), _convolution(classes, network.torgb.weight)
    if network.embed is not None:
        model.EmbeddingLayer = _linear(network.embed.weight)


def _r3gan_discriminator(model: nn.Module, network: nn.Module, classes: Mapping[str, type]) -> None:
    stages = []
    for r in network.resolutions:
        ours = getattr(network, f"b{r}")
        if r == 4:
            last = classes["Basis"]()
            last.Basis, last.LinearLayer = _linear(network.basis[:, None]), _linear(network.dense.weight)
        else:
            last = _change(classes, ours.width)
        stages.append(_finish(classes, [*_stage(classes, ours.blocks), last], r > 8))
    model.MainLayers, model.ExtractionLayer = nn.ModuleList(stages), _convolution(classes, network.fromrgb.weight)
    if network.embed is not None:
        model.EmbeddingLayer = _linear(network.embed.weight)


def rosinality_generator(network: nn.Module) -> dict[str, Tensor]:
    """A state dict of the generator of stylegan2-pytorch."""
    result = {}
    for i, layer in enumerate(network.mapping.layers, 1):
        result[f"style.{i}.weight"], result[f"style.{i}.bias"] = layer.weight, layer.bias
    synthesis = network.synthesis
    result["input.input"] = synthesis.b4.const[None]
    for number, layer in enumerate(synthesis.layers()):
        name = "conv1" if number == 0 else f"convs.{number - 1}"
        result |= {f"{name}.conv.weight": layer.weight[None], f"{name}.conv.modulation.weight": layer.affine.weight,
                   f"{name}.conv.modulation.bias": layer.affine.bias, f"{name}.noise.weight": layer.noise_strength,
                   f"{name}.activate.bias": layer.bias, f"noises.noise_{number}": layer.noise_const[None, None]}
        if number % 2:
            result[f"{name}.conv.blur.kernel"] = FILTER * 4
    for number, r in enumerate(synthesis.resolutions):
        layer, name = getattr(synthesis, f"b{r}").torgb, "to_rgb1" if r == 4 else f"to_rgbs.{number - 1}"
        result |= {f"{name}.conv.weight": layer.weight[None], f"{name}.conv.modulation.weight": layer.affine.weight,
                   f"{name}.conv.modulation.bias": layer.affine.bias, f"{name}.bias": layer.bias[None, :, None, None]}
        if number:
            result[f"{name}.upsample.kernel"] = FILTER * 4
    return {name: value.detach().clone() for name, value in result.items()}


def rosinality_discriminator(network: nn.Module) -> dict[str, Tensor]:
    result = {"convs.0.0.weight": network.fromrgb.weight, "convs.0.1.bias": network.fromrgb.bias,
              "final_conv.0.weight": network.conv.weight, "final_conv.1.bias": network.conv.bias,
              "final_linear.0.weight": network.dense.weight, "final_linear.0.bias": network.dense.bias,
              "final_linear.1.weight": network.out.weight, "final_linear.1.bias": network.out.bias}
    for i, r in enumerate(network.resolutions, 1):
        block = getattr(network, f"b{r}")
        result |= {f"convs.{i}.conv1.0.weight": block.conv0.weight, f"convs.{i}.conv1.1.bias": block.conv0.bias,
                   f"convs.{i}.conv2.0.kernel": FILTER, f"convs.{i}.conv2.1.weight": block.conv1.weight,
                   f"convs.{i}.conv2.2.bias": block.conv1.bias, f"convs.{i}.skip.0.kernel": FILTER,
                   f"convs.{i}.skip.1.weight": block.skip.weight}
    return {name: value.detach().clone() for name, value in result.items()}


def write_rosinality(path: Path, archive: bool, **content: Any) -> Path:
    optimizer = {"state": {0: {"step": 1, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.002, "betas": (0, 0.99)}]}
    for name, value in content.items():
        if isinstance(value, dict):  # as `state_dict` gives it
            content[name] = OrderedDict(value)
            content[name]._metadata = OrderedDict({"": {"version": 1}})
    torch.save({"args": argparse.Namespace(size=8, lr=0.002), "g_optim": optimizer, **content}, path,
               _use_new_zipfile_serialization=archive)
    return path
