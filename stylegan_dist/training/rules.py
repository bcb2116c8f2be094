"""Values of `auto`, and the checks that need the data set and the number of ranks.

The rules for resolution and batch follow the `auto` configuration of Karras et al. 2020b, appendix C, with one change.
The batch depends on the resolution alone, not on the number of GPUs, because a run must not depend on where it runs.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch

from stylegan_dist import augment
from stylegan_dist.config.knobs import MOST_IMAGES
from stylegan_dist.config.loading import check_ranges
from stylegan_dist.config.schedules import value_at
from stylegan_dist.config.schema import DEFAULT_METRICS, Config, OptimizerConfig
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.families import family_of
from stylegan_dist.kinds import Image
from stylegan_dist.monitor.images import MOST_PIXELS, grid_pixels
from stylegan_dist.monitor.tensorboard_tracker import check_tensorboard
from stylegan_dist.objective.adversarial import ADVERSARIAL
from stylegan_dist.ops import native
from stylegan_dist.ranks import World
from stylegan_dist.records import shorten
from stylegan_dist.redact import redact

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_CLAMP = 256.0
SHOWN_NUMBERS = 24          # in a message
END = 10**18                # images; every schedule has ended by then
# Which knobs an optimizer takes is read from its constructor; these are passed on if it has them.
OWN_DEFAULTS = ("eps", "alpha", "rho")
OPTIMIZER_KNOBS = ("lr", "betas", "eps", "momentum", "nesterov", "alpha", "rho", "weight_decay")


@dataclass(frozen=True)
class Resolved:
    """A configuration without `auto`, and what else follows from the data set."""

    config: Config
    notes: list[str]  # one line for each value that a rule chose
    num_classes: int  # 0: unconditional
    ops: str          # which operators, and why, for people

    @property
    def conditional(self) -> bool:
        return self.num_classes > 0


def resolve(config: Config, index: DatasetIndex, world: World = World()) -> Resolved:  # noqa: B008 - frozen
    """Replace every `auto` and check what can be checked before anything is built.

    Args:
        world: its size decides `batch_gpu` and nothing that changes the result.
    Raises:
        InputError: values that do not fit each other, the data or the world.
    """
    world_size, bf16 = world.size, world.device_type == "cuda" and world.bf16
    if not 1 <= world_size <= MOST_IMAGES:
        raise InputError(f"run.world_size={world_size} must be from 1 to {MOST_IMAGES}")
    config = copy.deepcopy(config)
    check_ranges(config)  # what a caller may have set
    notes: list[str] = []

    def auto(section: object, prefix: str, key: str, value: object, rule: str) -> None:
        if getattr(section, key) == "auto":
            setattr(section, key, value)
            notes.append(f"{prefix}.{key} = {value} ({rule})")

    run, resolution, family = config.run, index.resolution, family_of(config)
    auto(config.data, "data", "conditional", index.num_classes > 1, "the data has labels"
         if index.num_classes > 1 else "the data has no labels of different classes")
    if config.data.conditional and index.num_classes < 1:
        raise InputError(f"data.conditional is true but {config.data.shards} has no labels: pack it with --labels folders, "
                         "or set data.conditional=false")

    auto(run, "run", "batch", min(8 * min(4096 // resolution, 32), 64), "from the resolution")
    for prefix in ("generator", "discriminator"):
        for name, value in index.kind.settings().items():
            if hasattr(section := getattr(config, prefix), name):
                auto(section, prefix, name, value, "from the data")
    family.check_kind(config, index.kind)
    family.resolve(config, resolution, auto)
    auto(config.ema, "ema", "half_life_kimg", run.batch * 10 / 32, "10 kimg at batch 32, in proportion")
    why = "the average goes on from that of run.init_from" if run.init_from else "the average begins at random weights"
    auto(config.ema, "ema", "rampup", 0.0 if run.init_from else 0.05, why)
    why = "with run.init_from" if run.init_from else "without run.init_from"
    auto(config.augment, "augment", "kimg", 100.0 if run.init_from else 500.0, why)
    controller, why = ("r_v", "with held-out images") if config.augment.held_out else ("r_t", "without held-out images")
    auto(config.augment, "augment", "controller", controller, why)
    auto(config.augment, "augment", "target", augment.TARGETS[config.augment.controller], "from the controller")
    auto(config.ema, "ema", "placement", "sharded" if world.sharded_generator else "device", "as the generator's parameters")
    if config.ema.placement == "device" and world.sharded_generator:
        raise InputError("ema.placement=device needs the whole generator on every rank, which ZeRO-3 spreads: set "
                         "ema.placement=sharded, or ZeRO-2 for the generator")
    for name in ("g", "d"):
        optimizer = getattr(config.optim, name)
        _optimizer_class(optimizer, f"optim.{name}")
        if optimizer.lr == "auto" and not optimizer.name.startswith("Adam"):
            raise InputError(f"optim.{name}.lr has no rule for {optimizer.name}: set it, for example optim.{name}.lr=0.01")
        auto(optimizer, f"optim.{name}", "lr", family.learning_rate(resolution), "from the resolution")
        for key in OWN_DEFAULTS:
            if getattr(optimizer, key) == "auto":
                setattr(optimizer, key, _own_default(optimizer, f"optim.{name}", key))

    own = ",".join(index.kind.metrics())
    auto(config.evaluate, "evaluate", "metrics", own or DEFAULT_METRICS, "those of the data" if own else "of pictures")
    precision = config.precision
    auto(precision, "precision", "dtype", "bf16" if bf16 else "fp32",
         "this GPU has bfloat16" if bf16 else "this device has no fast bfloat16")
    auto(precision, "precision", "clamp", FP16_CLAMP if precision.dtype == "fp16" else 0.0, "from the dtype")
    auto(precision, "precision", "channels_last", True, "faster convolutions on CPUs and on tensor cores")


    path = native.path(world.device_type, config.ops.path)
    if path.name != "fused" and (config.ops.require_fused or config.ops.path == "fused"):
        setting = "ops.require_fused=true" if config.ops.require_fused else "ops.path=fused"
        raise InputError(f"{setting}, but the operators are those of PyTorch: {path.reason}; `stylegan-dist doctor` says more")
    auto(config.ops, "ops", "path", path.name, path.reason)

    advice = _advice(config, world_size)  # before batch_gpu is a number
    _check(config, index, world_size, advice)
    if config.data.mirror and (reason := index.kind.why_not_mirrored):
        raise InputError(f"data.mirror=true: {reason}")
    augment.check(config.augment, index.channels, isinstance(index.kind, Image), ADVERSARIAL[config.loss.adversarial].anchored,
                  config.loss.adversarial)
    sizes, unit = micro_batch_sizes(config, world_size), _group(config)
    usual = [n for n in sizes if n <= max(4096 // resolution, unit)]
    auto(run, "run", "batch_gpu", usual[-1] if usual else run.batch // world_size,
         "from the resolution and the number of processes")
    if run.batch_gpu not in sizes:
        raise _wrong_micro_batch(config, world_size, f"use run.batch_gpu={_some(sizes, run.batch_gpu)}" if sizes else advice)
    return Resolved(config, notes, index.num_classes if config.data.conditional else 0, str(path))


def steps_in(config: Config) -> int:
    """Steps of a whole run."""
    return max(1, math.ceil(round(config.run.kimg * 1000) / config.run.batch))


def optimizer_arguments(settings: OptimizerConfig, where: str, nimg: int = 0) -> dict:
    """Keyword arguments for the optimizer's constructor, after `nimg` images.

    Raises:
        InputError: no such optimizer, a knob was changed that it does not have, or values that it refuses.
    """
    cls = _optimizer_class(settings, where)
    accepted = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    for key in OPTIMIZER_KNOBS:
        value = getattr(settings, key)
        if value == "auto" and key in OWN_DEFAULTS:
            value = _own_default(settings, where, key)
        if key in accepted:
            numbers = tuple(value_at(beta, nimg) for beta in value) if key == "betas" else value_at(value, nimg)
            arguments[key] = numbers
            if key == "betas" and len(value) != len(accepted[key].default):
                raise InputError(f"{where}.betas={value[:4]} must be {len(accepted[key].default)} numbers for {settings.name}")
        elif value != getattr(OptimizerConfig(), key):
            raise InputError(f"{where}.{key}={value} has no meaning for {settings.name}: remove it")
    try:
        _try_out(cls, arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}: torch.optim.{settings.name} cannot train with these settings "
                         f"({str(error).splitlines()[0]}): correct them, or choose another optimizer") from None
    return arguments


def _optimizer_class(settings: OptimizerConfig, where: str) -> type[torch.optim.Optimizer]:
    cls = getattr(torch.optim, settings.name, None)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer):
        raise InputError(f"{where}.name={shorten(settings.name)} is not in torch.optim; try Adam, SGD, RMSprop, Adagrad or "
                         "Adadelta")
    return cls


def _own_default(settings: OptimizerConfig, where: str, key: str) -> float | str:
    """What the optimizer itself takes for a knob; "auto" if it does not have it."""
    knob = inspect.signature(_optimizer_class(settings, where)).parameters.get(key)
    return knob.default if knob is not None and isinstance(knob.default, float) else "auto"


def _try_out(cls: type[torch.optim.Optimizer], arguments: dict) -> None:
    """One step of a small convolution: finds values out of range, and optimizers that want something special."""
    weight = torch.nn.Parameter(torch.zeros(1, 1, 3, 3))
    weight.grad = torch.zeros_like(weight)
    cls([weight], **arguments).step()


def _check(config: Config, index: DatasetIndex, world_size: int, advice: str) -> None:
    """Everything that needs neither the micro-batch nor the networks.

    Args:
        advice: what to do where the batch does not fit the number of processes.
    """
    run, loss = config.run, config.loss
    check_ranges(config)  # what the rules have chosen, too
    columns, rows = config.monitor.grid_columns, config.monitor.grid_rows
    if (pixels := grid_pixels(columns * rows, index.kind.shown_side(index.resolution))) > MOST_PIXELS:
        raise InputError(f"monitor.grid_columns={columns} x monitor.grid_rows={rows} images make a picture of {pixels} pixels, "
                         f"more than {MOST_PIXELS}: set fewer")
    if config.monitor.tensorboard:
        check_tensorboard()
    family_of(config).check(config, index.resolution)
    if loss.adversarial not in ADVERSARIAL:
        raise InputError(f"loss.adversarial={shorten(loss.adversarial)} is unknown; choose one of {', '.join(ADVERSARIAL)}")
    for name in ("g", "d"):
        for nimg in (0, END):  # of schedules
            optimizer_arguments(getattr(config.optim, name), f"optim.{name}", nimg)
    named = {"run.dir": run.dir, "run.init_from": run.init_from, "data.shards": config.data.shards,
             "data.cache": config.data.cache, "augment.held_out": config.augment.held_out,
             **{f"monitor.{name}": getattr(config.monitor, name) for name in ("wandb_project", "wandb_entity", "wandb_name")}}
    for name, text in named.items():  # in config.yaml, on the terminal and on a web page
        if redact(text) != text:
            raise InputError(f"{name} holds a secret: a password, or the value of an environment variable that is named like "
                             "one; choose another name")
    if run.world_size not in ("auto", world_size):
        raise InputError(f"this run was promised {run.world_size} processes (run.world_size) and has {world_size}: "
                         "correct the launch command, or run.world_size")
    if run.batch % world_size:
        raise InputError(f"run.batch={run.batch} cannot be divided over {world_size} processes: {advice}")


def _group(config: Config) -> int:
    """Every micro-batch is a multiple of this, so that no group of images is ever split."""
    return family_of(config).group(config)[0]


def micro_batch_sizes(config: Config, world_size: int) -> list[int]:
    """All values that run.batch_gpu may have, smallest first; none if the ranks' parts split a group of images."""
    per_rank, unit = config.run.batch // world_size, _group(config)
    return [n * unit for n in _divisors(per_rank // unit)] if per_rank % unit == 0 else []


def world_sizes(config: Config, batch_gpu: int | str) -> list[int]:
    """All numbers of processes that a run with this batch can have, smallest first; none if batch and groups do not fit.

    Args:
        config: with `run.batch` and `discriminator.mbstd_group` known.
        batch_gpu: the micro-batch, or "auto" for any that fits.
    """
    unit = _group(config)
    if isinstance(batch_gpu, int):
        if batch_gpu % unit:
            return []
        unit = batch_gpu
    return _divisors(config.run.batch // unit) if config.run.batch % unit == 0 else []


def _divisors(number: int) -> list[int]:
    """Of a number, smallest first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _advice(config: Config, world_size: int) -> str:
    """What to do where a batch cannot be divided over the processes; all that it names fits."""
    run, unit = config.run, _group(config)
    processes = world_sizes(config, run.batch_gpu)
    setting = ""
    if not processes and run.batch_gpu != "auto":
        processes, setting = world_sizes(config, "auto"), " and run.batch_gpu=auto"
    ways = [f"a number of processes out of {_some(processes, world_size)}{setting}"] if processes else []
    multiple = world_size * math.lcm(4, unit)  # 4: the groups of other batches, where these are a rule
    if run.batch_gpu == "auto" and multiple <= MOST_IMAGES:
        ways.append(f"a batch that is a multiple of {multiple}")
    return f"use {', or '.join([*ways, 'smaller groups of images'] if len(ways) < 2 else ways)}"


def _some(numbers: list[int], near: int) -> str:
    """The numbers for a message: of many those near another one."""
    shown = sorted(sorted(numbers, key=lambda n: abs(n - near))[:SHOWN_NUMBERS])
    return ", ".join(map(str, shown)) + ", ..." * (len(shown) < len(numbers))


def _wrong_micro_batch(config: Config, world_size: int, remedy: str) -> InputError:
    run = config.run
    per_rank = run.batch // world_size
    if per_rank % run.batch_gpu:
        return InputError(f"run.batch_gpu={run.batch_gpu} does not divide the {per_rank} images of each rank "
                          f"(run.batch={run.batch} over {world_size} processes): {remedy}")
    unit, settings = family_of(config).group(config)
    return InputError(f"run.batch_gpu={run.batch_gpu} (of {per_rank} images per rank) must be a multiple of {unit}, so that "
                      f"the groups of {settings} are never split: {remedy}")
