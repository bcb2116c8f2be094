"""Values of `auto`, and the checks that need the data set and the world.

The rules for resolution and batch follow the `auto` configuration of Karras et al. 2020b, appendix C,
with one change: the batch depends on the resolution alone, not on the number of GPUs, because a run
must not depend on where it runs.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass

import torch

from stylegan_dist.config.schema import Config, OptimizerConfig
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.redact import redact
from stylegan_dist.objective.adversarial import ADVERSARIAL
from stylegan_dist.ops import native
from stylegan_dist.randomness import SEED_LIMIT

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_CLAMP = 256.0
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


def resolve(config: Config, index: DatasetIndex, world_size: int, device_type: str, bf16_ok: bool,
            spread_generator: bool = False) -> Resolved:
    """Replace every `auto` and check what can be checked before anything is built.

    Args:
        world_size: number of processes; it decides `batch_gpu` and nothing that changes the result.
        device_type: "cuda" or "cpu".
        bf16_ok: whether the device computes in bfloat16 natively.
        spread_generator: whether no rank holds the whole generator.
    Raises:
        InputError: values that do not fit each other, the data or the world.
    """
    if world_size < 1:
        raise InputError(f"run.world_size={world_size} must be at least 1")
    config = copy.deepcopy(config)
    notes: list[str] = []

    def auto(section: object, prefix: str, key: str, value: object, rule: str) -> None:
        if getattr(section, key) == "auto":
            setattr(section, key, value)
            notes.append(f"{prefix}.{key} = {value} ({rule})")

    run, loss, resolution = config.run, config.loss, index.resolution
    auto(config.data, "data", "conditional", index.num_classes > 1, "the data has labels"
         if index.num_classes > 1 else "the data has no labels of different classes")
    if config.data.conditional and index.num_classes < 1:
        raise InputError(f"data.conditional is true but {config.data.shards} has no labels: pack it with --labels folders, "
                         "or set data.conditional=false")

    auto(run, "run", "batch", min(8 * min(4096 // resolution, 32), 64), "from the resolution")
    if run.batch <= 0:  # before the rules that divide by it
        raise InputError(f"run.batch={run.batch} must be greater than zero")
    auto(config.generator, "generator", "mapping_layers", 2, "the usual choice outside the paper's own presets")
    auto(config.generator, "generator", "channel_base", 32768 if resolution >= 512 else 16384, "from the resolution")
    auto(config.discriminator, "discriminator", "channel_base", config.generator.channel_base, "as the generator")
    group = next(n for n in (4, 3, 2, 1) if run.batch % n == 0)
    auto(config.discriminator, "discriminator", "mbstd_group", group, "a divisor of the batch, at most 4")
    auto(loss, "loss", "r1_gamma", 0.0002 * resolution**2 / run.batch, "0.0002 R^2 / batch")
    auto(config.ema, "ema", "half_life_kimg", run.batch * 10 / 32, "10 kimg at batch 32, in proportion")
    auto(config.ema, "ema", "placement", "sharded" if spread_generator else "device", "as the generator's parameters")
    if config.ema.placement == "device" and spread_generator:
        raise InputError("ema.placement=device needs the whole generator on every rank, which ZeRO-3 spreads: set "
                         "ema.placement=sharded, or ZeRO-2 for the generator")
    for name in ("g", "d"):
        optimizer = getattr(config.optim, name)
        _optimizer_class(optimizer, f"optim.{name}")
        if optimizer.lr == "auto" and not optimizer.name.startswith("Adam"):
            raise InputError(f"optim.{name}.lr has no rule for {optimizer.name}: set it, for example optim.{name}.lr=0.01")
        auto(optimizer, f"optim.{name}", "lr", 0.002 if resolution >= 1024 else 0.0025, "from the resolution")
        for key in OWN_DEFAULTS:
            if getattr(optimizer, key) == "auto":
                setattr(optimizer, key, _own_default(optimizer, f"optim.{name}", key))

    precision = config.precision
    on_gpu = device_type == "cuda"
    auto(precision, "precision", "dtype", "bf16" if on_gpu and bf16_ok else "fp32",
         "this GPU has bfloat16" if on_gpu and bf16_ok else "this device has no fast bfloat16")
    auto(precision, "precision", "clamp", FP16_CLAMP if precision.dtype == "fp16" else 0.0, "from the dtype")
    auto(precision, "precision", "channels_last", True, "faster convolutions on CPUs and on tensor cores")

    path = native.path(device_type, config.ops.path)
    if path.name != "fused" and (config.ops.require_fused or config.ops.path == "fused"):
        setting = "ops.require_fused=true" if config.ops.require_fused else "ops.path=fused"
        raise InputError(f"{setting}, but the operators are those of PyTorch: {path.reason}; `stylegan-dist doctor` says more")
    auto(config.ops, "ops", "path", path.name, path.reason)

    _check(config, resolution, world_size)
    unit = _micro_batch_unit(config)
    usual = [n for n in micro_batch_sizes(config, world_size) if n <= max(4096 // resolution, unit)]
    auto(run, "run", "batch_gpu", usual[-1] if usual else run.batch // world_size,
         "from the resolution and the number of processes")
    _check_micro_batch(config, world_size, unit)
    return Resolved(config, notes, index.num_classes if config.data.conditional else 0, str(path))


def steps_in(config: Config) -> int:
    """Steps of a whole run."""
    return max(1, math.ceil(round(config.run.kimg * 1000) / config.run.batch))


def optimizer_arguments(settings: OptimizerConfig, where: str) -> dict:
    """Keyword arguments for the optimizer's constructor.

    Raises:
        InputError: no such optimizer, a knob was changed that it does not have, or values that it refuses.
    """
    cls = _optimizer_class(settings, where)
    accepted = inspect.signature(cls).parameters
    arguments = {}
    for key in OPTIMIZER_KNOBS:
        value = getattr(settings, key)
        if value == "auto" and key in OWN_DEFAULTS:
            value = _own_default(settings, where, key)
        if key in accepted:
            arguments[key] = tuple(value) if key == "betas" else value
            if key == "betas" and len(value) != len(accepted[key].default):
                raise InputError(f"{where}.betas={value} must be {len(accepted[key].default)} numbers for {settings.name}")
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
        raise InputError(f"{where}.name={settings.name!r} is not in torch.optim; try Adam, SGD, RMSprop, Adagrad or Adadelta")
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


def _check(config: Config, resolution: int, world_size: int) -> None:
    """Everything that needs neither the micro-batch nor the networks."""
    run, loss = config.run, config.loss
    if not 0 <= run.seed < SEED_LIMIT:
        raise InputError(f"run.seed={run.seed} must be between 0 and {SEED_LIMIT - 1}")
    positive = {
        "run.kimg": run.kimg, "run.batch": run.batch, "data.lanes": config.data.lanes, "data.block": config.data.block,
        "loss.penalty_sigma": loss.penalty_sigma,
        "loss.penalty_interval": loss.penalty_interval, "loss.path_length_interval": loss.path_length_interval,
        "loss.path_length_shrink": loss.path_length_shrink, "monitor.tick_kimg": config.monitor.tick_kimg,
        "monitor.samples_kimg": config.monitor.samples_kimg, "monitor.grid_columns": config.monitor.grid_columns,
        "monitor.grid_rows": config.monitor.grid_rows, "checkpoint.every_kimg": config.checkpoint.every_kimg,
        "checkpoint.keep": config.checkpoint.keep, "checkpoint.file_mib": config.checkpoint.file_mib,
        "run.timeout": run.timeout, "data.prefetch": config.data.prefetch,
        "generator.z_dim": config.generator.z_dim, "generator.w_dim": config.generator.w_dim,
        "generator.mapping_layers": config.generator.mapping_layers,
        "generator.channel_max": config.generator.channel_max,
        "discriminator.channel_max": config.discriminator.channel_max,
        "discriminator.mapping_layers": config.discriminator.mapping_layers,
        "discriminator.mbstd_group": config.discriminator.mbstd_group,
    }
    for key, value in positive.items():
        if value <= 0:
            raise InputError(f"{key}={value} must be greater than zero")
    not_negative = {
        "run.recompute": run.recompute, "data.workers": config.data.workers,
        "loss.r1_gamma": loss.r1_gamma, "loss.r2_gamma": loss.r2_gamma,
        "loss.path_length_weight": loss.path_length_weight, "ema.half_life_kimg": config.ema.half_life_kimg,
        "ema.rampup": config.ema.rampup, "precision.clamp": config.precision.clamp,
        "precision.top_resolutions": config.precision.top_resolutions,
        "checkpoint.archive_kimg": config.checkpoint.archive_kimg, "optim.g.l1": config.optim.g.l1,
        "optim.d.l1": config.optim.d.l1,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise InputError(f"{key}={value} must not be negative")
    shares = {
        "loss.style_mixing": loss.style_mixing, "loss.path_length_decay": loss.path_length_decay,
        "generator.w_avg_decay": config.generator.w_avg_decay,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise InputError(f"{key}={value} must be between 0 and 1")
    for name in ("generator", "discriminator"):
        if (base := getattr(config, name).channel_base) < resolution:
            raise InputError(f"{name}.channel_base={base} leaves no feature maps at {resolution} px: it must be at least "
                             f"{resolution}, and 16384 is usual")
    if loss.adversarial not in ADVERSARIAL:
        raise InputError(f"loss.adversarial={loss.adversarial!r} is unknown; choose one of {', '.join(ADVERSARIAL)}")
    for name in ("g", "d"):
        optimizer_arguments(getattr(config.optim, name), f"optim.{name}")
    for name in ("wandb_project", "wandb_entity", "wandb_name"):  # in config.yaml and on a web page
        if redact(text := getattr(config.monitor, name)) != text:
            raise InputError(f"monitor.{name} holds a secret: a password, or the value of an environment variable that is "
                             "named like one; choose another name")
    if run.world_size not in ("auto", world_size):
        raise InputError(f"this run was promised {run.world_size} processes (run.world_size) and has {world_size}: "
                         "correct the launch command, or run.world_size")
    if run.batch % world_size:
        divisors = [n for n in range(1, run.batch + 1) if run.batch % n == 0]
        raise InputError(f"run.batch={run.batch} cannot be divided over {world_size} processes: use a number of processes "
                         f"out of {', '.join(map(str, divisors))}, or a batch that is a multiple of {world_size}")


def _micro_batch_unit(config: Config) -> int:
    """Every micro-batch is a multiple of this, so that no group of images is ever split."""
    group = config.discriminator.mbstd_group
    return math.lcm(group, config.loss.path_length_shrink if config.loss.path_length_weight else 1)


def micro_batch_sizes(config: Config, world_size: int) -> list[int]:
    """All values that run.batch_gpu may have, smallest first; none if the ranks' parts split a group of images."""
    per_rank, unit = config.run.batch // world_size, _micro_batch_unit(config)
    return [n for n in range(unit, per_rank + 1, unit) if per_rank % n == 0]


def _check_micro_batch(config: Config, world_size: int, unit: int) -> None:
    run = config.run
    per_rank = run.batch // world_size
    if run.batch_gpu <= 0 or per_rank % run.batch_gpu:
        raise InputError(f"run.batch_gpu={run.batch_gpu} does not divide the {per_rank} images of each rank "
                         f"(run.batch={run.batch} over {world_size} processes)")
    if run.batch_gpu % unit:
        if per_rank % unit == 0:
            remedy = f"use a multiple of {unit} that divides {per_rank}, or smaller groups"
        else:
            fitting = [n for n in range(1, run.batch // unit + 1) if run.batch % (n * unit) == 0]
            numbers = f"a number of processes out of {', '.join(map(str, fitting))}, " if fitting else ""
            remedy = f"use {numbers}a larger batch or smaller groups"
        raise InputError(
            f"run.batch_gpu={run.batch_gpu} (of {per_rank} images per rank) must be a multiple of {unit}, so that the groups "
            f"of discriminator.mbstd_group={config.discriminator.mbstd_group} and loss.path_length_shrink="
            f"{config.loss.path_length_shrink} are never split; {remedy}"
        )

