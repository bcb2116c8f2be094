"""A run begins with the weights of another: what is taken over, what begins anew, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saving import save_checkpoint
from tiny_states import INDEX, TINY, step

from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.ranks import ALONE
from stylegan_dist.training.best import remember_best
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.transfer import ORIGIN_NAME, find_origin, grouped, open_transfer, record_origin

# As wide at every resolution, so that shapes do not tell what belongs to which.
FAMILIES = {
    "stylegan2": ("generator.channel_base=1024", "discriminator.channel_base=1024"),
    "r3gan": ("generator.family=r3gan", "generator.z_dim=8", "generator.class_dim=4", "generator.channel_base=1024",
              "generator.channel_max=8", "generator.group_width=8", "generator.blocks=1"),
}
SMALL = {
    "mlp": ("generator.family=mlp", "generator.z_dim=8", "generator.width=8", "discriminator.width=4"),
    "dcgan": ("generator.family=dcgan", "generator.z_dim=8", "generator.channel_base=32", "generator.norm_group=2"),
}


def index_of(resolution: int = 8, channels: int = 3, classes: int = 2) -> DatasetIndex:
    return replace(INDEX, resolution=resolution, channels=channels, classes=[str(i) for i in range(classes)],
                   class_counts=[4] * classes)


def state_of(index: DatasetIndex, family: str, *overrides: str) -> TrainState:
    """A new run's, begun as it is configured."""
    settings = [setting for setting in TINY if family == "stylegan2" or not setting.startswith(("generator", "discriminator"))]
    config = load_config(None, [*settings, *(FAMILIES | SMALL)[family], *overrides])
    resolved = resolve(config, index)
    return TrainState(resolved, index, torch.device("cpu"), transfer=open_transfer(resolved, index, ALONE))


def origin_of(folder: Path, index: DatasetIndex, family: str, *overrides: str) -> Path:
    """The folder of a run whose every value has moved, and whose average is not its generator."""
    state = state_of(index, family, "ema.rampup=0", "run.seed=7", *overrides)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for name, network in state.networks.items():
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            state.optimizers[name].step()
        for buffer in state.generator.buffers():
            buffer.normal_(generator=generator)
        for value in state.objective.running.values():
            value.uniform_(generator=generator)
        state.ema.update(state.generator, state.nimg, 4)
        state.nimg += 4
    folder.mkdir()
    save_checkpoint(folder, state.nimg, state.tensors(), state.facts())
    return folder


def values(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{file}.{key}": value for file, tensors in state.tensors().items() for key, value in tensors.items()}


def saved(run: Path) -> dict[str, torch.Tensor]:
    (folder,) = (run / "checkpoints").glob("nimg-*")
    files = {file: load_file(folder / f"{file}.safetensors") for file in ("g", "d", "g_ema")}
    return {f"{file}.{key}": value for file, tensors in files.items() for key, value in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_of_networks_alike(family, tmp_path):
    before = saved(origin_of(tmp_path / "run", index_of(), family))
    state = state_of(index_of(), family, f"run.init_from={tmp_path / 'run'}")
    now = values(state)
    assert now.keys() == before.keys()  # no state of an optimizer
    assert all(torch.equal(before[key], now[key]) for key in before)
    assert any(not torch.equal(now[f"g.{key}"], now[f"g_ema.{key}"]) for key in state.tensors()["g"])
    facts = json.loads((tmp_path / "run/checkpoints/nimg-00000008/state.json").read_text())
    assert all(state.facts()[name] == facts[name] != 0 for name in state.objective.RUNNING)
    assert (state.nimg, state.ema.rampup, state.config.augment.kimg) == (0, 0, 100)
    assert {what for _, what, _ in state.origin.table} == {"loaded"}


@pytest.mark.parametrize(("before", "after", "anew"), [
    ({"resolution": 8}, {"resolution": 16}, {
        "stylegan2": ("g.synthesis.b16.", "g_ema.synthesis.b16.", "d.b16.", "d.fromrgb."),
        "r3gan": ("g.b16.", "g.torgb.", "g_ema.b16.", "g_ema.torgb.", "d.b16.", "d.fromrgb.")}),
    ({"resolution": 16}, {"resolution": 8}, {
        "stylegan2": ("d.fromrgb.",), "r3gan": ("g.torgb.", "g_ema.torgb.", "d.fromrgb.")}),
    ({"classes": 2}, {"classes": 3}, {
        "stylegan2": ("g.mapping.embed.", "g.mapping.layers.0.", "g_ema.mapping.embed.", "g_ema.mapping.layers.0.",
                      "d.mapping.embed."),
        "r3gan": ("g.embed.", "g.dense.", "g_ema.embed.", "g_ema.dense.", "d.embed.")}),
    ({"classes": 0}, {"classes": 2}, {
        "stylegan2": ("g.mapping.embed.", "g.mapping.layers.0.", "g_ema.mapping.embed.", "g_ema.mapping.layers.0.",
                      "d.mapping.", "d.out."),
        "r3gan": ("g.embed.", "g.dense.", "g_ema.embed.", "g_ema.dense.", "d.embed.", "d.dense.")}),
    ({"classes": 2}, {"classes": 0}, {
        "stylegan2": ("g.mapping.layers.0.", "g_ema.mapping.layers.0.", "d.out."),
        "r3gan": ("g.dense.", "g_ema.dense.", "d.dense.")}),
    ({"channels": 3}, {"channels": 1}, {
        "stylegan2": ("g.synthesis.b4.torgb.weight", "g.synthesis.b4.torgb.bias", "g.synthesis.b8.torgb.weight",
                      "g.synthesis.b8.torgb.bias", "g_ema.synthesis.b4.torgb.weight", "g_ema.synthesis.b4.torgb.bias",
                      "g_ema.synthesis.b8.torgb.weight", "g_ema.synthesis.b8.torgb.bias", "d.fromrgb."),
        "r3gan": ("g.torgb.", "g_ema.torgb.", "d.fromrgb.")}),
])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_resolution_classes_channels(family, before, after, anew, tmp_path):
    """What depends on them begins as in a run with random weights, also where its shape is the same; the rest is taken over."""
    there = saved(origin_of(tmp_path / "run", index_of(**before), family))
    state = state_of(index_of(**after), family, f"run.init_from={tmp_path / 'run'}", "run.seed=3")
    now, fresh = values(state), values(state_of(index_of(**after), family, "run.seed=3"))
    for key in now:
        if key.startswith(anew[family]):
            assert torch.equal(now[key], fresh[key]), key
        else:
            assert torch.equal(now[key], there[key]), key
    assert all(any(key.startswith(name) for key in now) for name in anew[family])
    told = {what for _, what, _ in state.origin.table}
    assert "loaded" in told
    assert ("left out" in told) == any(key not in now for key in there)
    assert ("new" in told) == any(key not in there for key in now)


def test_other_widths_are_refused_or_begin_anew(tmp_path):
    there = saved(origin_of(tmp_path / "run", index_of(), "stylegan2"))
    setting = (f"run.init_from={tmp_path / 'run'}", "discriminator.channel_max=4")
    with pytest.raises(InputError, match=r"its discriminator has .* of the shape .*, and \d+ more; it was trained with "
                                         r"discriminator\.channel_max=8; run\.init_strict=false"):
        state_of(index_of(), "stylegan2", *setting)
    state = state_of(index_of(), "stylegan2", *setting, "run.init_strict=false")
    now = values(state)
    assert all(torch.equal(now[key], there[key]) for key in now if not key.startswith("d."))
    assert ("discriminator", "begins anew") in {row[:2] for row in state.origin.table}
    with pytest.raises(InputError, match=r"its discriminator has b8\.skip\.weight, of which this run has none"):
        state_of(index_of(), "stylegan2", setting[0], "discriminator.architecture=orig")


def test_one_file_of_a_generator(tmp_path):
    run = origin_of(tmp_path / "run", index_of(), "stylegan2")
    there = saved(run)
    file = shutil.copy(run / "checkpoints/nimg-00000008/g_ema.safetensors", tmp_path / "my generator.safetensors")
    with pytest.raises(InputError, match=r"it has no discriminator; run\.init_strict=false"):
        state_of(index_of(), "stylegan2", f"run.init_from={file}")
    state = state_of(index_of(), "stylegan2", f"run.init_from={file}", "run.init_strict=false", "run.seed=3")
    now, fresh = values(state), values(state_of(index_of(), "stylegan2", "run.seed=3"))
    for key, value in now.items():
        name = key.removeprefix("g_ema.").removeprefix("g.")
        assert torch.equal(value, fresh[key] if key.startswith("d.") else there[f"g_ema.{name}"]), key
    assert (state.origin.nimg, state.facts()["path_mean"]) == (0, 0)


def test_a_checkpoint_with_the_average_alone(tmp_path):
    run = origin_of(tmp_path / "whole", index_of(), "stylegan2")
    there, state = saved(run), state_of(index_of(), "stylegan2")
    average = {key.removeprefix("g_ema."): value for key, value in there.items() if key.startswith("g_ema.")}
    tensors = {"g": {}, "d": state.tensors()["d"], "g_ema": average, "optimizer_g": {}, "optimizer_d": {}}
    for name, content in (("imported", tensors), ("generator", tensors | {"d": {}})):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name, 8, content, {**state.facts(), "nimg": 8})
    # What the configuration says of a discriminator that is not there is no reason.
    with pytest.raises(InputError, match=r"it has no discriminator; run\.init_strict=false"):
        state_of(index_of(), "stylegan2", f"run.init_from={tmp_path / 'generator'}", "discriminator.channel_max=4")
    now = values(state_of(index_of(), "stylegan2", f"run.init_from={tmp_path / 'imported'}"))
    assert all(torch.equal(value, there[f"g_ema.{key[2:]}"]) for key, value in now.items() if key.startswith("g."))


def test_which_checkpoint(tmp_path):
    run = origin_of(tmp_path / "run", index_of(), "stylegan2")
    state = state_of(index_of(), "stylegan2")
    for _ in range(3):
        step(state, 1)
    save_checkpoint(run, state.nimg, state.tensors(), state.facts())
    remember_best(run, "fid", 8, 1.0)
    first, last = (run / f"checkpoints/nimg-{nimg:08d}" for nimg in (8, 12))
    for text, folder in ((run, last), (f"{run}:newest", last), (f"{run}:8", first), (f"{run}:best", first), (first, first)):
        found = find_origin(str(text), tmp_path / "new")
        assert (found.path, found.nimg) == (str(folder), int(folder.name[5:]))
    with pytest.raises(InputError, match="no checkpoint at 9 images; there are: 8, 12"):
        find_origin(f"{run}:9", tmp_path / "new")


def test_a_start_without_a_checkpoint_begins_with_the_same(tmp_path):
    """The origin may have been trained further, or pruned, in the meantime."""
    run, new = origin_of(tmp_path / "run", index_of(), "stylegan2"), tmp_path / "new"
    new.mkdir()
    record_origin(new, find_origin(str(run), new))
    state = state_of(index_of(), "stylegan2")
    for _ in range(3):
        step(state, 1)
    save_checkpoint(run, state.nimg, state.tensors(), state.facts())
    assert find_origin(str(run), new).nimg == 8
    assert find_origin(f"{run}:newest", new).nimg == 12  # another wish
    shutil.rmtree(run / "checkpoints/nimg-00000008")
    state.nimg = 8
    save_checkpoint(run, 8, state.tensors(), state.facts())
    with pytest.raises(InputError, match=rf"has changed since .*new began with it.*{ORIGIN_NAME}"):
        find_origin(str(run), new)
    record_origin(new, None)
    assert find_origin(str(run), new).nimg == 12


def test_what_cannot_be_an_origin(tmp_path):
    run = origin_of(tmp_path / "run", index_of(), "stylegan2")
    folder = run / "checkpoints/nimg-00000008"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors")
    broken = load_file(folder / "g_ema.safetensors")
    broken["w_avg"][0] = torch.nan
    save_file(broken, tmp_path / "nan.safetensors")
    for text, words in ((tmp_path / "nowhere", "is not there"), (tmp_path / "empty", "no whole checkpoint"),
                        (tmp_path / "text.safetensors", "text.safetensors cannot be read"),
                        (tmp_path / "other.safetensors", "nothing in .*other.safetensors fits"),
                        (tmp_path / "nan.safetensors", "w_avg has values that are not finite")):
        with pytest.raises(InputError, match=words) as caught:
            state_of(index_of(), "stylegan2", f"run.init_from={text}", "run.init_strict=false")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"of the family stylegan2, not r3gan: set generator\.family=stylegan2"):
        state_of(index_of(), "r3gan", f"run.init_from={run}")
    os.truncate(folder / "d.safetensors", 100)
    for text in (run, folder):
        with pytest.raises(InputError, match=r"d\.safetensors is damaged"):
            state_of(index_of(), "stylegan2", f"run.init_from={text}")


@pytest.mark.parametrize(("now", "difference"), [
    (index_of(classes=3), "it has 2 classes, this run 3"), (index_of(16), "it has 8 pixels, this run 16"),
    (index_of(channels=1), "it has 3 channels, this run 1"),
])
@pytest.mark.parametrize("family", ["mlp", "dcgan"])
def test_a_family_that_carries_nothing_over(family, now, difference, tmp_path):
    run = origin_of(tmp_path / "run", index_of(), family)
    for strict in ("true", "false"):
        with pytest.raises(InputError, match=f"nothing in .* fits these networks; {difference}; choose another one"):
            state_of(now, family, f"run.init_from={run}", f"run.init_strict={strict}")


@pytest.mark.parametrize(("family", "width", "layers"), [
    ("stylegan2", (), ["fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0", "b8.conv1", "b8.skip"]),
    ("r3gan", ("generator.channel_base=64", "generator.group_width=4"),  # 4 feature maps at 16 px, 8 below
     ["fromrgb", "b16.blocks.0", "b16.width", "b8.blocks.0"]),
])
def test_frozen_layers_are_counted_from_the_image(family, width, layers, tmp_path):
    run = origin_of(tmp_path / "run", index_of(16), family, *width)
    for count in range(len(layers) + 1):
        state = state_of(index_of(16), family, *width, f"run.init_from={run}", f"discriminator.freeze_layers={count}")
        learning = {name for name, _ in state.discriminator.named_parameters()}
        frozen = state.tensors()["d"].keys() - learning
        assert frozen == {name for name in state.tensors()["d"] if name.startswith(tuple(f"{one}." for one in layers[:count]))}
    with pytest.raises(InputError, match=rf"freeze_layers={len(layers) + 1} is more .* from 0 to {len(layers)} "):
        state_of(index_of(16), family, *width, f"run.init_from={run}", f"discriminator.freeze_layers={len(layers) + 1}")
    with pytest.raises(InputError, match=r"freeze_layers=1 would freeze .*set run\.init_from"):
        state_of(index_of(16), family, *width, "discriminator.freeze_layers=1")
    with pytest.raises(InputError, match=r"freezes fromrgb\.weight, which begins anew"):
        state_of(index_of(32), family, *width, f"run.init_from={run}", "discriminator.freeze_layers=1")


def test_names_for_people():
    everything = ["a.x.w", "a.x.b", "a.y.w", "c.w", "d"]
    assert grouped(["a.x.w", "a.x.b", "d"], everything) == ["a.x", "d"]
    assert grouped(everything, everything) == ["a", "c", "d"]
