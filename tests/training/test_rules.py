"""The rules behind `auto`, and every complaint about a configuration that cannot work."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylegan_dist.config import Config, load_config, to_dict
from stylegan_dist.config.schema import OptimizerConfig
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Clip, Text
from stylegan_dist.kinds.array import TextForm
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.objective.phases import Phase, main_share
from stylegan_dist.ranks import World
from stylegan_dist.training.build import build_optimizer
from stylegan_dist.training.rules import optimizer_arguments, resolve, steps_in

PRESETS = sorted((Path(__file__).parents[2] / "launch" / "presets").glob("*.yaml"))


def index_of(resolution: int = 64, classes: int = 0) -> DatasetIndex:
    names = [f"class{i}" for i in range(classes)] or None
    return DatasetIndex(resolution, 3, "png", names, [10] * classes or None, [Shard("a.tar", 100, 1, "", "a.npy", "")])


def resolve_with(*overrides: str, resolution: int = 64, classes: int = 0, world: int = 1, device: str = "cpu",
                 bf16: bool = False):
    config = load_config(None, ["data.shards=somewhere", *overrides])
    return resolve(config, index_of(resolution, classes), World(world, device, bf16))


def values(node, prefix: str = "") -> dict:
    """Dotted key -> value."""
    result = {}
    for key, value in node.items():
        result |= values(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def test_tensorboard_must_be_installed_where_it_is_wanted(monkeypatch):
    assert resolve_with("monitor.tensorboard=true").config.monitor.tensorboard
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"monitor.tensorboard=true needs TensorBoard.*pip install"):
        resolve_with("monitor.tensorboard=true")
    resolve_with()


@pytest.mark.parametrize(("resolution", "expected"), [
    # batch, r1_gamma, EMA half-life, learning rate, channel_base, images at once on one process
    (8, (64, 0.0002, 20, 0.0025, 16384, 64)),
    (32, (64, 0.0032, 20, 0.0025, 16384, 64)),
    (128, (64, 0.0512, 20, 0.0025, 16384, 32)),
    (256, (64, 0.2048, 20, 0.0025, 16384, 16)),
    (512, (64, 0.8192, 20, 0.0025, 32768, 8)),
    (1024, (32, 6.5536, 10, 0.002, 32768, 4)),
])
def test_rules_by_resolution(resolution, expected):
    c = resolve_with(resolution=resolution).config
    assert c.loss.r1_gamma == pytest.approx(expected[1], rel=1e-9)
    assert (c.run.batch, c.ema.half_life_kimg, c.optim.g.lr, c.generator.channel_base, c.run.batch_gpu) == (
        expected[0], *expected[2:])
    assert c.optim.d.lr == c.optim.g.lr
    assert c.discriminator.channel_base == c.generator.channel_base
    assert c.discriminator.mbstd_group == 4
    assert c.generator.mapping_layers == 2
    assert c.data.conditional is False


def test_no_auto_remains_and_each_is_explained():
    before = load_config(None, ["data.shards=somewhere"])
    untouched = to_dict(before)
    resolved = resolve(before, index_of())
    assert to_dict(before) == untouched, "the configuration given is left alone"
    explained = [note.split(" = ")[0] for note in resolved.notes]
    # Settled by launcher, machine and account.
    free = {"run.world_size", "run.device", "run.threads", "run.reduction", "run.compile", "run.cuda_graphs", "monitor.wandb",
            "data.cache"}
    free |= {f"optim.{name}.{key}" for name in "gd" for key in ("eps", "alpha", "rho")}  # settled by the optimizer
    after = values(to_dict(resolved.config))
    assert {key for key, value in after.items() if value == "auto"} <= free
    assert {key for key, value in values(untouched).items() if value == "auto"} - free == set(explained)
    assert len(explained) == len(set(explained))
    for note in resolved.notes:
        key, value = note.split(" (")[0].split(" = ")
        assert str(after[key]) == value


def test_resolving_twice_changes_nothing():
    once = resolve_with(classes=3).config
    again = resolve(once, index_of(classes=3))
    assert again.config == once
    assert again.notes == []


def test_values_that_are_set_stay():
    resolved = resolve_with("run.batch=16", "loss.r1_gamma=3", "discriminator.mbstd_group=8", "generator.channel_base=8192",
                            "optim.d.lr=0.1", "precision.clamp=5", "ema.half_life_kimg=7", "run.batch_gpu=8")
    c = resolved.config
    assert (c.run.batch, c.loss.r1_gamma, c.discriminator.mbstd_group, c.discriminator.channel_base) == (16, 3, 8, 8192)
    assert (c.optim.d.lr, c.precision.clamp, c.ema.half_life_kimg, c.run.batch_gpu) == (0.1, 5, 7, 8)


@pytest.mark.parametrize(("device", "bf16", "overrides", "expected"), [
    ("cpu", False, (), ("fp32", 0.0, True)), ("cuda", True, (), ("bf16", 0.0, True)),
    ("cuda", False, (), ("fp32", 0.0, True)), ("cuda", True, ("precision.dtype=fp16",), ("fp16", 256.0, True)),
    ("cpu", False, ("precision.dtype=bf16",), ("bf16", 0.0, True)),
])
def test_precision(device, bf16, overrides, expected):
    p = resolve_with(*overrides, device=device, bf16=bf16).config.precision
    assert (p.dtype, p.clamp, p.channels_last) == expected


def test_labels():
    assert resolve_with(classes=3).num_classes == 3
    assert resolve_with(classes=3).conditional
    assert resolve_with(classes=1).num_classes == 0, "one class is no condition, unless asked for"
    assert resolve_with("data.conditional=true", classes=1).num_classes == 1
    assert resolve_with("data.conditional=false", classes=3).num_classes == 0
    assert not resolve_with().conditional


def test_nothing_but_the_micro_batch_depends_on_the_world():
    reference = values(to_dict(resolve_with(classes=2).config))
    seen = set()
    for world in (2, 4, 8, 16):
        now = values(to_dict(resolve_with(classes=2, world=world).config))
        seen |= {key for key in now if now[key] != reference[key]}
    assert seen == {"run.batch_gpu"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_resolve(preset):
    for resolution in (16, 256):
        config, index = load_config(preset, ["data.shards=somewhere"]), index_of(resolution)
        if config.generator.family == "stylegan_v":
            index = replace(index, channels=48, kind=Clip("uint8", (127.5,), (127.5,), film=FilmForm(16, 3, 25.0)))
        elif config.generator.family == "text":
            with pytest.raises(InputError, match="the data has images: pack a text"):
                resolve(config, index)
            index = replace(index, channels=1, kind=Text("uint8", (0.0,), (1.0,), text=TextForm(" ab", resolution)))
        assert resolve(config, index, World(2, "cuda", bf16=True)).config.run.batch_gpu > 0


PUBLISHED = {  # Karras et al. 2020b, appendix C, and the configurations that came with it
    # kimg, batch, group, channel_base, gamma, EMA half-life, ramp-up, layers, path length, mixing, architecture; learning rate
    "cifar10": ((100000, 64, 32, 32768, 0.01, 500, 0.05, 2, 0, 0, "orig"), 0.0025),
    "ffhq256": ((25000, 64, 8, 16384, 1, 20, 0, 8, 2, 0.9, "resnet"), 0.0025),
    "ffhq512": ((25000, 64, 8, 32768, 0.5, 20, 0, 8, 2, 0.9, "resnet"), 0.0025),
    "ffhq1024": ((25000, 32, 4, 32768, 2, 10, 0, 8, 2, 0.9, "resnet"), 0.002),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_recipes(preset):
    resolution = int(preset.removeprefix("ffhq")) if preset.startswith("ffhq") else 32
    path = PRESETS[0].with_name(f"{preset}.yaml")
    c = resolve(load_config(path, ["data.shards=somewhere"]), index_of(resolution), World(2, "cuda", bf16=True)).config
    g, d, loss = c.generator, c.discriminator, c.loss
    expected, lr = PUBLISHED[preset]
    assert (c.run.kimg, c.run.batch, d.mbstd_group, g.channel_base, loss.r1_gamma, c.ema.half_life_kimg, c.ema.rampup,
            g.mapping_layers, loss.path_length_weight, loss.style_mixing, d.architecture) == expected
    assert (d.channel_base, d.mapping_layers, g.z_dim, g.w_dim, g.channel_max, d.channel_max) == (
        g.channel_base, 8, 512, 512, 512, 512)
    assert (g.w_avg_decay, loss.path_length_decay, loss.path_length_shrink, loss.penalty) == (0.995, 0.01, 2, "exact")
    assert (c.precision.top_resolutions, loss.adversarial, loss.r2_gamma) == (4, "nonsaturating", 0)
    # Adam as it trains: G is corrected for an interval of 4 in all of them.
    lazy = {"g": (lr * 4 / 5, 0.99 ** (4 / 5)), "d": (lr * 16 / 17, 0.99 ** (16 / 17))}
    phases = [Phase("", "g", 1, (), False), Phase("", "d", 1, (), False), Phase("", "d", loss.penalty_interval, (), True, True)]
    if loss.path_length_weight:
        phases.append(Phase("", "g", loss.path_length_interval, (), True, True))
    for name, expected_adam in lazy.items():
        optimizer = build_optimizer(torch.nn.Linear(2, 2), getattr(c.optim, name), "", main_share(phases, name))
        group, = optimizer.param_groups
        assert (group["lr"], group["betas"][1]) == pytest.approx(expected_adam, rel=1e-12)
        assert (group["betas"][0], group["eps"]) == (0, 1e-8)


# The micro-batch

@given(
    batch=st.integers(1, 300), world=st.integers(1, 16), group=st.integers(1, 12), shrink=st.integers(1, 6),
    weight=st.sampled_from([0, 2]), resolution=st.sampled_from([16, 128, 512, 1024]),
)
def test_the_micro_batch_is_valid_or_the_launch_is_refused(batch, world, group, shrink, weight, resolution):
    """Never splits a group; refused exactly if there is no micro-batch at all that would do."""
    def valid(size: int) -> bool:
        return size > 0 and (batch // world) % size == 0 and size % group == 0 and (not weight or size % shrink == 0)

    possible = [size for size in range(1, batch // world + 1) if valid(size)] if batch % world == 0 else []
    config = Config()
    config.run.batch, config.discriminator.mbstd_group = batch, group
    config.loss.path_length_shrink, config.loss.path_length_weight = shrink, weight
    try:
        size = resolve(config, index_of(resolution), World(world, "cpu")).config.run.batch_gpu
    except InputError:
        assert not possible
        return
    assert valid(size)
    limit = max(4096 // resolution, min(possible))
    assert size == max(n for n in possible if n <= limit), "the largest within the limit"


@given(st.integers(1, 64), st.integers(1, 8))
def test_steps(batch, world):
    config = Config()
    for kimg in (0.001, 0.1, 1, 16.1, 25000):
        config.run.kimg, config.run.batch = kimg, batch
        steps = steps_in(config)
        assert steps * batch >= round(kimg * 1000)
        assert (steps - 1) * batch < round(kimg * 1000)


def test_steps_are_not_fooled_by_floats():
    config = load_config(None, ["run.kimg=16.1", "run.batch=100"])
    assert 16.1 * 1000 > 16100, "the trap"
    assert steps_in(config) == 161


# Complaints

COMPLAINTS = [
    (("data.conditional=true",), {}, ["data.conditional", "somewhere has no labels", "--labels folders"]),
    (("optim.g.name=SGD",), {}, ["optim.g.lr has no rule for SGD", "optim.g.lr=0.01"]),
    (("optim.d.name=Adadelta",), {}, ["optim.d.lr has no rule for Adadelta"]),
    (("generator.channel_base=32",), {}, ["generator.channel_base=32 leaves no feature maps at 64 px", "at least 64"]),
    (("discriminator.channel_base=63",), {}, ["discriminator.channel_base=63 leaves no feature maps"]),
    (("loss.adversarial=hing",), {}, ["loss.adversarial='hing'", "nonsaturating", "hinge", "relativistic"]),
    (("run.world_size=2",), {}, ["promised 2 processes (run.world_size) and has 1", "correct the launch command"]),
    (("run.batch=10",), {"world": 4}, ["run.batch=10", "over 4 processes", "out of 1, 5, or", "a multiple of 16"]),
    (("run.batch_gpu=5",), {}, ["run.batch_gpu=5 does not divide the 64 images of each rank", "run.batch=64 over 1 process"]),
    (("run.batch_gpu=2",), {}, ["run.batch_gpu=2 (of 64 images per rank) must be a multiple of 4", "mbstd_group=4",
                               "path_length_shrink=2", "use run.batch_gpu=4, 8, 16, 32, 64"]),
    ((), {"world": 32}, ["run.batch_gpu=2", "must be a multiple of 4", "out of 1, 2, 4, 8, 16"]),
    (("monitor.grid_columns=1024", "monitor.grid_rows=1024"), {}, ["monitor.grid_columns=1024", "monitor.grid_rows=1024"]),
    (("optim.g.name=Adamm",), {}, ["optim.g.name='Adamm' is not in torch.optim", "try Adam, SGD"]),
    (("optim.g.name=Optimizer", "optim.g.lr=1"), {}, ["optim.g.name='Optimizer' is not in torch.optim"]),
    (("optim.g.name=lr_scheduler", "optim.g.lr=1"), {}, ["is not in torch.optim"]),
    (("optim.g.momentum=0.9",), {}, ["optim.g.momentum=0.9 has no meaning for Adam: remove it"]),
    (("optim.d.name=SGD", "optim.d.lr=1", "optim.d.betas=[0, 0.9]"), {}, ["optim.d.betas=[0.0, 0.9] has no meaning for SGD"]),
    (("optim.g.betas=[0.9]",), {}, ["optim.g.betas=[0.9] must be 2 numbers for Adam"]),
    (("optim.g.betas=[]",), {}, ["optim.g.betas=[] must be 2 numbers"]),
    (("optim.g.betas=[0, 1]",), {}, ["optim.g: torch.optim.Adam cannot train with these settings", "1"]),
    (("optim.d.name=SGD", "optim.d.lr=1", "optim.d.nesterov=true"), {}, ["optim.d: torch.optim.SGD cannot train", "momentum"]),
    (("optim.d.name=LBFGS", "optim.d.lr=1"), {}, ["optim.d: torch.optim.LBFGS cannot train", "choose another optimizer"]),
    (("optim.d.name=SparseAdam", "optim.d.lr=1"), {}, ["optim.d: torch.optim.SparseAdam cannot train", "choose another"]),
]

@pytest.mark.parametrize(("overrides", "options", "parts"), COMPLAINTS, ids=[" ".join(c[0]) or "auto" for c in COMPLAINTS])
def test_complaints_are_one_line_with_key_and_remedy(overrides, options, parts):
    with pytest.raises(InputError) as caught:
        resolve_with(*overrides, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["monitor.wandb_name", "monitor.wandb_project", "monitor.wandb_entity", "run.dir",
                                  "data.shards", "data.cache"])
def test_a_name_with_a_secret_is_refused_and_not_repeated(name, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a-long-secret")
    for value in ("run-a-long-secret", "me:pw-of-me@host:/x"):
        with pytest.raises(InputError, match=f"{name} holds a secret") as caught:
            resolve_with(f"{name}={value}")
        assert "a-long" not in str(caught.value)
        assert "pw-of-me" not in str(caught.value)


def test_limits_themselves_are_allowed():
    resolve_with("run.seed=0", "loss.style_mixing=1", "generator.w_avg_decay=0", "loss.path_length_decay=1")
    resolve_with("run.seed=4294967295", "loss.style_mixing=0", "data.workers=0", "precision.top_resolutions=0")
    resolve_with("generator.channel_base=64", "loss.path_length_weight=0", "run.batch=3")
    resolve_with("run.world_size=2", world=2)


# Numbers of processes that messages advise

@pytest.mark.parametrize("overrides", [
    ("run.batch=8",), ("run.batch=10",), ("run.batch=12", "discriminator.mbstd_group=3"), ("run.batch=96", "run.batch_gpu=8"),
    ("run.batch=64", "discriminator.mbstd_group=32"), ("run.batch=48", "loss.path_length_shrink=3"), ("run.batch=7",),
    ("run.batch=48", "loss.path_length_shrink=5", "loss.path_length_weight=0"), ("run.batch=60", "run.batch_gpu=20"),
    ("run.batch=8", "discriminator.mbstd_group=3"), ("run.batch=40", "run.batch_gpu=3"),
], ids=" ".join)
def test_exactly_the_advised_processes_are_accepted(overrides, monkeypatch):
    """By the message for any other number; a batch or a micro-batch that it names is accepted, too."""
    monkeypatch.setattr("stylegan_dist.training.rules.optimizer_arguments", lambda *_: {})  # slow, and no part of this
    accepted, advised = [], {}
    for world in range(1, 26):
        try:
            resolve_with(*overrides, world=world)
            accepted.append(world)
        except InputError as error:
            advised[world] = str(error)
    for world, message in advised.items():
        also = ["run.batch_gpu=auto"] if "run.batch_gpu=auto" in message else []
        if found := re.search(r"processes out of ([0-9]+(?:, [0-9]+)*)", message):
            named = [int(number) for number in found[1].split(", ")]
            assert named == (accepted or named)
            for number in named:
                resolve_with(*overrides, *also, world=number)
        if found := re.search(r"a batch that is a multiple of (\d+)", message):
            resolve_with(*overrides, f"run.batch={found[1]}", world=world)
        if found := re.search(r"use run.batch_gpu=([0-9]+(?:, [0-9]+)*)", message):
            for number in found[1].split(", "):
                resolve_with(*overrides, f"run.batch_gpu={number}", world=world)
        assert re.search("out of|a multiple of \\d+$|use run.batch_gpu|smaller groups", message)


def test_a_very_large_batch_is_refused_or_resolved_at_once():
    for batch in (1048576, 720720, 999983):
        resolve_with(f"run.batch={batch}", "discriminator.mbstd_group=1", "loss.path_length_weight=0")
    with pytest.raises(InputError, match=r"run\.batch=10000000 .* must be from 1 to"):
        resolve_with("run.batch=10000000")
    with pytest.raises(InputError, match="cannot be divided") as caught:
        resolve_with("run.batch=720720", world=17)
    assert len(str(caught.value)) < 400


# Optimizers

@pytest.mark.parametrize(("name", "knobs", "expected"), [
    ("Adam", {}, {"lr", "betas", "eps", "weight_decay"}),
    ("AdamW", {"weight_decay": 0.01}, {"lr", "betas", "eps", "weight_decay"}),
    ("NAdam", {}, {"lr", "betas", "eps", "weight_decay"}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, {"lr", "momentum", "nesterov", "weight_decay"}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.1}, {"lr", "eps", "momentum", "alpha", "weight_decay"}),
    ("Adagrad", {}, {"lr", "eps", "weight_decay"}),
    ("Adadelta", {"rho": 0.5}, {"lr", "eps", "rho", "weight_decay"}),
])
def test_optimizer_arguments(name, knobs, expected):
    settings = OptimizerConfig(name=name, lr=0.5, **knobs)
    arguments = optimizer_arguments(settings, "optim.g")
    assert set(arguments) == expected
    own = inspect.signature(getattr(torch.optim, name)).parameters
    for key, value in arguments.items():
        wanted = tuple(settings.betas) if key == "betas" else getattr(settings, key)
        assert value == (own[key].default if wanted == "auto" else wanted)
    getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(2))], **arguments)


def test_the_unit_of_micro_batches_is_the_least_common_multiple():
    for group, shrink in ((4, 2), (4, 3), (6, 4), (1, 5), (8, 8)):
        config = load_config(None, [f"discriminator.mbstd_group={group}", f"loss.path_length_shrink={shrink}",
                                    f"run.batch={math.lcm(group, shrink) * 7}"])
        assert resolve(config, index_of(1024), World(7, "cpu")).config.run.batch_gpu == math.lcm(group, shrink)
