"""Files of StyleGAN2 for TensorFlow: networks that are imported compute what the published equations say, in the layouts of
those files; nothing in a file runs; what cannot be represented is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_files as files
import torch
from foreign_files import SOURCE

from stylegan_dist import cli
from stylegan_dist.errors import InputError
from stylegan_dist.importing import machine
from stylegan_dist.importing.run import import_file
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.training.build import build_discriminator
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import load_network
from stylegan_dist.training.snapshot import load_generator

TIGHT = 1e-8
Variables = dict[str, np.ndarray]

# The networks in float64, from the papers' equations (Karras et al. 2018, section 4; 2020, section 2 and appendix B; 2020b).


def leaky(x, clamp):
    x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    return np.clip(x, -clamp, clamp) if clamp else x


def unit(x):
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)


def dense(v: Variables, name: str, x, rate: float = 1.0):
    weight = v[f"{name}/weight"]
    return x @ weight * (rate / np.sqrt(len(weight))) + v[f"{name}/bias"] * rate


def per_channel(x):
    return x[:, None, None] if x.ndim == 1 else x[:, :, None, None]


def correlate(x, weight, stride: int = 1):
    """x [N, I, H, W] with weight [k, k, I, O], or [N, k, k, I, O], where it fits into x whole."""
    many = weight if weight.ndim == 5 else weight[None].repeat(len(x), 0)
    k = many.shape[1]
    size = x.shape[2] - k + 1
    parts = (np.einsum("nihw,nio->nohw", x[:, :, a:a + size, b:b + size], many[:, a, b]) for a in range(k) for b in range(k))
    return sum(parts)[:, :, ::stride, ::stride]


def pad(x, before: int, after: int):
    return np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))


def low_pass(x, gain: float = 1.0):
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * gain
    size = x.shape[2] - 3
    return sum(taps[a, b] * x[:, :, a:a + size, b:b + size] for a in range(4) for b in range(4))


def zeros_between(x):
    result = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    result[:, :, ::2, ::2] = x
    return result


def modulated(v: Variables, name: str, x, w, up: bool = False, demodulate: bool = True):
    weight = v[f"{name}/weight"]
    style = w @ v[f"{name}/mod_weight"] / np.sqrt(w.shape[1]) + v[f"{name}/mod_bias"] + 1
    own = (weight / np.sqrt(weight[..., 0].size))[None] * style[:, None, None, :, None]
    if demodulate:
        own = own / np.sqrt((own**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    if not up:
        return correlate(pad(x, len(weight) // 2, len(weight) // 2), own)
    # Zeros between pixels, the convolution wherever it touches the image, then the filter: nothing is cut off in between.
    return low_pass(pad(correlate(pad(zeros_between(x), 2, 1), own), 1, 1), gain=4)


def reference_w(v: Variables, z, labels, psi: float):
    x = unit(z)
    if labels is not None:
        x = np.concatenate([x, unit(dense(v, "mapping/LabelEmbed", labels))], 1)
    for i in range(sum("mapping/Dense" in name for name in v) // 2):
        x = leaky(dense(v, f"mapping/Dense{i}", x, 0.01), 0)
    return v["dlatent_avg"] + psi * (x - v["dlatent_avg"])


def reference_images(v: Variables, w, clamp: float = 0):
    x, rgb, number, r = v["synthesis/4x4/Const/const"].repeat(len(w), 0), 0.0, 0, 4

    def layer(name, x, up=False):
        nonlocal number
        x = modulated(v, name, x, w, up) + v[f"synthesis/noise{number}"] * v[f"{name}/noise_strength"]
        number += 1
        return leaky(x + per_channel(v[f"{name}/bias"]), clamp)

    while f"synthesis/{r}x{r}/ToRGB/weight" in v:
        block = f"synthesis/{r}x{r}"
        if r == 4:
            x = layer(f"{block}/Conv", x)
        else:
            x = layer(f"{block}/Conv1", layer(f"{block}/Conv0_up", x, up=True))
            rgb = low_pass(pad(zeros_between(rgb), 2, 1), gain=4)
        colours = modulated(v, f"{block}/ToRGB", x, w, demodulate=False) + per_channel(v[f"{block}/ToRGB/bias"])
        rgb = rgb + (np.clip(colours, -clamp, clamp) if clamp else colours)
        r *= 2
    return rgb


def reference_logits(v: Variables, images, labels, clamp: float = 0):
    """Of one group of images."""
    def scaled(name):
        weight = v[f"{name}/weight"]
        return weight / np.sqrt(weight[..., 0].size)

    def layer(name, x):
        k = v[f"{name}/weight"].shape[0]
        x = correlate(low_pass(pad(x, 2, 2)), scaled(name), 2) if "down" in name else correlate(
            pad(x, k // 2, k // 2), scaled(name))
        return leaky(x + per_channel(v[f"{name}/bias"]), clamp)

    r = images.shape[2]
    x = layer(f"{r}x{r}/FromRGB", images)
    while r > 4:
        block = f"{r}x{r}"
        y = layer(f"{block}/Conv1_down", layer(f"{block}/Conv0", x))
        if f"{block}/Skip/weight" in v:
            y = (y + correlate(low_pass(pad(x, 1, 1)), scaled(f"{block}/Skip"), 2)) / np.sqrt(2)
        x, r = y, r // 2
    spread = np.sqrt(((x - x.mean(0))**2).mean(0) + 1e-8).mean()
    x = layer("4x4/Conv", np.concatenate([x, np.full((len(x), 1, 4, 4), spread)], 1))
    x = dense(v, "Output", leaky(dense(v, "4x4/Dense0", x.reshape(len(x), -1)), 0))
    if labels is None:
        return x[:, 0]
    y = unit(dense(v, "LabelEmbed", labels))
    for i in range(sum("Mapping" in name for name in v) // 2):
        y = leaky(dense(v, f"Mapping{i}", y, 0.01), 0)
    return (x * y).sum(1) / np.sqrt(x.shape[1])


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def assert_networks(run: Path, original, classes: int, clamp: float) -> None:
    """Generators and discriminator of a run are those of the file."""
    g, d, g_ema = map(files.variables, original)
    random = np.random.default_rng(0)
    z, label = random.standard_normal((2, files.Z)), np.arange(4) % max(classes, 1)
    labels, hot = (tensor(label), np.eye(classes)[label]) if classes else (None, None)
    snapshot = load_generator(run, torch.device("cpu"))
    network = snapshot.generator
    folder = next((run / "checkpoints").glob("nimg-*"))
    for name, variables in (("g_ema", g_ema), ("g", g)):
        load_network(network.float(), folder, name)
        network.double()
        for psi in (1.0, 0.4):
            with torch.no_grad():
                w = network.map(tensor(z), None if labels is None else labels[:2], psi)
                pictures = network.synthesize(w, None)
            expected = reference_w(variables, z, None if hot is None else hot[:2], psi)
            assert np.abs(w.numpy() - expected).max() < TIGHT
            wanted = reference_images(variables, expected, clamp)
            assert np.abs(pictures.numpy() - wanted).max() < TIGHT * np.abs(wanted).max()
            assert np.abs(wanted).mean() > 0.1
    config = read_run_config(run)
    config.precision.channels_last = False
    channels = original[0].static_kwargs["num_channels"]
    judge = build_discriminator(config, SampleShape(16, channels, classes), torch.device("cpu"))
    load_network(judge, folder, "d")
    images = random.standard_normal((4, channels, 16, 16))
    with torch.no_grad():
        logits = judge.double()(tensor(images), labels).numpy()
    assert np.abs(logits - reference_logits(d, images, hot, clamp)).max() < TIGHT


CASES = {
    "StyleGAN2": (4, {}, {}, {}),
    "StyleGAN2-ADA with labels": (3, {"classes": 3, "version": 5, "channels": 1}, {"num_fp16_res": 2, "conv_clamp": 0.9},
                                  {"mbstd_group_size": 4}),
    "orig, as for CIFAR-10, by a new Python": (5, {"version": 5}, {}, {"residual": False, "mbstd_group_size": 4}),
    "labels with layers, texts for bytes": (2, {"classes": 2, "version": 5}, {}, {
        "layers": 2, "mapping_lrmul": 0.01, "mbstd_group_size": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_networks_are_those_of_the_file(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    if case.endswith("bytes"):  # where long texts, which stand for the bytes of arrays, begin
        monkeypatch.setattr(machine, "MOST_TEXT", 200)
    protocol, both, generator, discriminator = CASES[case]
    clamp = generator.get("conv_clamp", 0)
    g, g_ema = (files.generator(seed, **both, **generator) for seed in (1, 2))
    d = files.discriminator(3, **both, **discriminator, **({"conv_clamp": clamp} if clamp else {}))
    path = files.write(tmp_path / "network-snapshot-000123.pkl", (g, d, g_ema), protocol)
    imported = import_file(path, tmp_path / "run")
    assert imported.nimg == 123_000
    classes = both.get("classes", 0)
    assert_networks(tmp_path / "run", (g, d, g_ema), classes, clamp)
    config = read_run_config(tmp_path / "run")
    assert (config.discriminator.architecture, config.discriminator.mbstd_group) == (
        "orig" if discriminator.get("residual") is False else "resnet", 4)
    assert config.precision.clamp == clamp
    if classes:
        assert config.discriminator.mapping_layers == discriminator.get("layers", 0)
    assert not [note for note in imported.foreign.notes if "not known" in note]
    assert "executed-module-source" in SOURCE
    assert sorted(place.name for place in tmp_path.iterdir()) == ["network-snapshot-000123.pkl", "run"], "nothing ran"


def test_generator_alone_on_the_command_line(tmp_path, capsys):
    """Gs alone, or in its place; the table has the names of the file; pictures are drawn."""
    g, run = files.generator(1, noise_colour="pink"), tmp_path / "run"
    for content in (g, (None, None, g)):
        path = files.write(tmp_path / "some.pkl", content)
        assert cli.main(["import", str(path), str(run), "--table"]) == 0
        said = capsys.readouterr().out
        assert "the file has no discriminator" in said
        assert "built with 'noise_colour', which is not known here" in said
        assert "synthesis.b8.conv0.affine.bias <- synthesis/8x8/Conv0_up/mod_bias" in said
        assert "w_avg <- dlatent_avg" in said
        assert "(no tensor here) <- lod" in said
        assert json.loads((run / "import.json").read_text())["format"] == "StyleGAN2, as its versions for TensorFlow save it"
        run = tmp_path / "other"
    assert cli.main(["generate", str(run), "--seeds", "0-1", "--out", str(tmp_path / "out")]) == 0
    assert len([*(tmp_path / "out").glob("seed*.png")]) == 2


def changed(network: files.Network, name: str, value, component: str = "synthesis") -> files.Network:
    """With another variable; None: without it."""
    part = network.components[component] if component else network
    rest = dict(part.variables)
    rest.pop(name, None)
    part.variables = [*rest.items()] if value is None else [*rest.items(), (name, value)]
    return network


def attribute(network: files.Network, name: str, value) -> files.Network:
    setattr(network, name, value)
    return network


def renamed(network: files.Network, old: str, new: str, component: str = "synthesis") -> files.Network:
    part = network.components[component] if component else network
    part.variables = [(name.replace(old, new), value) for name, value in part.variables]
    return network


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


UP = "8x8/Conv0_up"
G_WRONG = {  # what is said -> a generator
    r"lacks synthesis\.b8\.conv0\.bias": lambda g: changed(g, f"{UP}/bias", None),
    r"lacks w_avg": lambda g: changed(g, "dlatent_avg", None, ""),
    r"no mapping/Dense0/weight": lambda g: renamed(g, "Dense0", "Dense9", "mapping"),
    r"no place here for synthesis/8x8/Conv0_up/more": lambda g: changed(g, f"{UP}/more", ones(3)),
    r"synthesis/8x8/Conv0_up/weight of the shape \[9, 8, 3, 3\]": lambda g: changed(g, f"{UP}/weight", ones(3, 3, 8, 9)),
    r"Const/const of the shape \[1, 8, 4, 5\]": lambda g: changed(g, "4x4/Const/const", ones(1, 8, 4, 5)),
    r"bias is no array of float32": lambda g: changed(g, f"{UP}/bias", np.ones(8)),
    r"noise1 is no array of float32": lambda g: changed(g, "noise1", "x"),
    r"odd name 'synthesis/\\x1b\[2J": lambda g: changed(g, "\x1b[2J", ones(2)),
    r"not finite": lambda g: changed(g, f"{UP}/bias", ones(8) * np.nan),
    r"blocks of \[4, 16\] pixels": lambda g: renamed(g, "8x8/", "64x64x/"),
    r"synthesis/8x4/Conv1/.*only square": lambda g: renamed(g, "8x8/", "8x4/"),
    r"is of the first StyleGAN: .*choose a file": lambda g: changed(g, "4x4/Const/StyleMod/bias", ones(16)),
    r"configurations that grow": lambda g: renamed(g, "16x16/ToRGB", "ToRGB_lod0"),
    r"the architecture resnet: only skip": lambda g: changed(g, "8x8/Skip/weight", ones(1, 1, 8, 8)),
    r"the architecture orig: only skip": lambda g: renamed(renamed(g, "4x4/ToRGB", "x"), "8x8/ToRGB", "y"),
    r"takes labels as StyleGAN2 does without ADA": lambda g: changed(g, "LabelConcat/weight", ones(3, 10), "mapping"),
    r"the version 6 of the format": lambda g: attribute(g, "version", 6),
    r"has no arguments or no named variables": lambda g: attribute(g, "variables", [ones(2)]),
    r"components of the generator are no networks": lambda g: attribute(g, "components", {"synthesis": 3}),
    r"components of their own": lambda g: attribute(g, "components", {"synthesis": files.generator(0)}),
}
ARGUMENTS = {
    r"the nonlinearity 'relu' instead of lrelu": {"nonlinearity": "relu"},
    r"resample_kernel 1, 2, 1 instead of \[1, 3, 3, 1\]": {"resample_kernel": [1, 2, 1]},
    r"resample_kernel None": {"resample_kernel": None},
    r"the use_noise False": {"use_noise": False},
    r"the normalize_latents False": {"normalize_latents": False},
    r"the mapping_lrmul 0\.1 instead of 0\.01": {"mapping_lrmul": 0.1},
    r"the odd conv_clamp -1": {"conv_clamp": -1},
    r"the odd conv_clamp 10000": {"conv_clamp": 10**300},
    r"the generator has the odd conv_clamp 2000000000\.0": {"conv_clamp": 2e9},
    r"the odd num_fp16_res list": {"num_fp16_res": ["four"]},
}
D_WRONG = {
    r"the architecture skip: only resnet and orig": lambda d: changed(d, "8x8/FromRGB/weight", ones(1, 1, 3, 8), ""),
    r"the discriminator lacks dense\.weight": lambda d: changed(d, "4x4/Dense0/weight", None, ""),
    r"the discriminator takes labels as": lambda d: attribute(d, "static_kwargs", {"label_size": 3}),
    r"5 channels of minibatch standard deviation": lambda d: attribute(d, "static_kwargs", {"mbstd_num_features": 5}),
    r"no place here for Output_sn": lambda d: changed(d, "Output_sn", ones(1), ""),
    r"judges images of 8 pixels, and the generator makes 16": lambda d: files.discriminator(3, resolution=8),
}


def refuse(tmp_path: Path, content, message: str) -> None:
    path = files.write(tmp_path / "x.pkl", content)
    with pytest.raises(InputError, match=message) as error:
        import_file(path, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == [path], "nothing is left, and nothing ran"


@pytest.mark.parametrize("message", [*G_WRONG, *ARGUMENTS])
def test_generators_that_cannot_be_represented_are_refused(tmp_path, message):
    g = files.generator(1, **ARGUMENTS[message]) if message in ARGUMENTS else G_WRONG[message](files.generator(1))
    refuse(tmp_path, g, message)


@pytest.mark.parametrize("message", D_WRONG)
def test_discriminators_that_cannot_be_represented_are_refused(tmp_path, message):
    refuse(tmp_path, (None, D_WRONG[message](files.discriminator(3)), files.generator(1)), message)


class Hostile:
    """Runs a program when Python unpickles it."""

    def __reduce__(self):
        import os
        return os.system, ("touch marker",)


def test_hostile_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("variables", [("dlatent_avg", Hostile())]), ("components", {"mapping": Hostile()}),
                        ("build_module_src", Hostile()), ("static_kwargs", {"func": Hostile()})):
        refuse(tmp_path, attribute(files.generator(1), name, value), r"refused: (posix|nt)\.system at byte \d+ \(nothing in it")
    g = files.generator(1)
    g.components["more"] = g  # within itself
    refuse(tmp_path, g, "components of their own")
    refuse(tmp_path, (g, g), "it holds 2 objects")
    refuse(tmp_path, (None, g, None), "it holds 3 objects")
    big = ones(2000, 500)  # of which thousands of variables are made
    refuse(tmp_path, attribute(files.generator(1), "components", {
        "synthesis": files.Network("x", 4, {}, {f"{i}/mod_bias": big for i in range(5000)})}), "no synthesis/4x4/Conv/weight")
