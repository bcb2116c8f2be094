"""The description of a run in words: the header of a start, and the output of --dry-run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from stylegan_dist import augment
from stylegan_dist.augment.pipe import DIFFAUGMENT
from stylegan_dist.config import Config, dump_config, schedules_of
from stylegan_dist.config.schedules import Schedule, Scheduled
from stylegan_dist.config.schema import AugmentConfig
from stylegan_dist.data.cache import default_folder
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import blobs
from stylegan_dist.data.working_set import working_set
from stylegan_dist.engine.choice import choose_engine
from stylegan_dist.engine.graphs import why_no_graphs
from stylegan_dist.errors import InputError
from stylegan_dist.families import family_of
from stylegan_dist.machine import supports_bf16, versions
from stylegan_dist.ops import native
from stylegan_dist.ranks import ALONE, World
from stylegan_dist.training.compiled import why_not_compiled
from stylegan_dist.training.memory import estimate_memory, planning_state
from stylegan_dist.training.rules import Resolved, resolve, steps_in
from stylegan_dist.training.saved import Origin
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.transfer import open_transfer


@dataclass(frozen=True)
class Execution:
    """How a run computes, in words."""

    engine: str
    network: str     # empty if there is one rank only
    compute: str     # empty if nothing was measured
    no_compile: str  # why networks are not compiled
    no_graphs: str   # why no graphs are recorded


def header_facts(resolved: Resolved, index: DatasetIndex, state: TrainState, execution: Execution) -> list[tuple[str, str]]:
    """(name, value) pairs that a person should see at the start."""
    c = resolved.config
    run, p = c.run, c.precision
    classes = f", {resolved.num_classes} classes" if resolved.conditional else ", unconditional"
    sizes = {name: sum(shape.numel() for shape in learner.shapes.values()) for name, learner in state.learners.items()}
    precision = p.dtype if p.dtype == "fp32" else f"{p.dtype} in the top {p.top_resolutions} resolutions, fp32 below"
    facts = [
        ("run", f"{run.dir}, seed {run.seed}" + (f", continued at {state.nimg / 1000:g} kimg" if state.nimg else "")),
        *(_origin(state.origin) if state.origin else []),
        ("engine", execution.engine),
        *([("network", execution.network)] if execution.network else []),
        *([("compute", execution.compute)] if execution.compute else []),
        ("data", f"{c.data.shards}: {index.num_samples:,} {index.kind.noun}, {index.resolution} px, "
                 f"{index.kind.layout(index.channels)}{classes}"),
        ("generator", f"{sizes['g']:,} parameters"),
        ("discriminator", f"{sizes['d']:,} parameters, {family_of(c).describe(c)}"),
        ("precision", precision),
        ("ops", resolved.ops),
        ("compile", f"off ({execution.no_compile})" if execution.no_compile else "on"),
        ("graphs", f"off ({execution.no_graphs})" if execution.no_graphs else "on"),
        ("batch", f"{run.batch} images per step, {run.batch_gpu} at once per rank"),
        ("length", f"{run.kimg:g} kimg = {steps_in(c):,} steps"),
        ("loss", f"{c.loss.adversarial}, R1 gamma {_shown(c.loss.r1_gamma)}" +
                 (f", R2 gamma {_shown(c.loss.r2_gamma)}" if c.loss.r2_gamma else "")),
        *([("augmentation", _augmentation(c.augment))] if c.augment.pipe != "none" else []),
        *([("held out", f"{c.augment.held_out}, judged every {augment.STEPS} steps")] if c.augment.held_out else []),
        ("phases", ", ".join(phase.name + (f" every {phase.interval}" if phase.interval > 1 else "")
                             for phase in state.phases)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions())),
    ]
    schedules: dict[Schedule, list[str]] = {}
    for key, schedule in schedules_of(c).items():
        schedules.setdefault(schedule, []).append(key)
    facts += [("schedule" if i == 0 else "", f"{', '.join(keys)}: {_shown(s)} in {s.until_kimg:,g} kimg ({s.form})")
              for i, (s, keys) in enumerate(schedules.items())]
    return facts + [("rule" if i == 0 else "", note) for i, note in enumerate(resolved.notes)]


def _shown(value: Scheduled) -> str:
    """A number for the header; when a schedule ends is on a line of its own."""
    return f"{value.first:g} to {value.last:g}" if isinstance(value, Schedule) else f"{value:g}"


def _origin(origin: Origin) -> list[tuple[str, str]]:
    """What the run has begun with, and the table of what was loaded."""
    widths = [max(len(row[column]) for row in origin.table) for column in (0, 1)] if origin.table else []
    rows = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[2]]) for row in origin.table]
    return [("transfer", origin.describe()), *(("", row) for row in rows)]


def _augmentation(settings: AugmentConfig) -> str:
    """In words, for the header."""
    if settings.pipe.startswith(DIFFAUGMENT):
        return settings.pipe
    if settings.p == "ada":
        return f"{settings.pipe}, p controlled: {settings.controller} to {settings.target:g}, 0 to 1 in {settings.kimg:g} kimg"
    return f"{settings.pipe}, p {_shown(settings.p)}"


@native.not_compiling()
def describe_plan(config: Config, world_size: int) -> str:
    """The resolved configuration and what a run with it would do, without starting anything."""
    index = load_index_of(config)
    load_held_out(config, index)
    device_type = "cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu"
    choice = choose_engine(os.environ)
    sharded = (zero := choice["g"]) is not None and zero.stage == 3
    resolved = resolve(config, index, World(world_size, device_type, supports_bf16(device_type), sharded))
    estimate = estimate_memory(resolved, index, world_size, device_type, choice)
    state = planning_state(resolved, index)
    transfer = open_transfer(resolved, index, ALONE)
    state.origin = transfer.origin if transfer else None
    no_graphs = why_no_graphs(config.run.cuda_graphs, device_type, bool(choice.zero), config.run.reduction)
    facts = header_facts(resolved, index, state, Execution(f"{world_size} x {device_type}, {choice.describe()}", "", "",
                                                           why_not_compiled(resolved.config, sharded), no_graphs))
    c, total = resolved.config, steps_in(resolved.config)
    uses = ", ".join(f"{phase.name} {-(-total // phase.interval):,} x" for phase in state.phases)
    facts += [
        ("images", f"{c.run.batch // world_size} per rank and step, in micro-batches of {c.run.batch_gpu}"),
        ("optimizer", f"steps: {uses}"),
        ("epochs", f"{total * c.run.batch / index.num_samples:,.1f} over the data"),
        *cache_facts(c, index, world_size),
        *(("memory" if i == 0 else "", line) for i, line in enumerate(estimate.lines())),
    ]
    width = max(len(name) for name, _ in facts)
    return dump_config(c) + "\n" + "\n".join(f"# {name:<{width}}  {value}" for name, value in facts)


def cache_facts(config: Config, index: DatasetIndex, world_size: int) -> list[tuple[str, str]]:
    """The remote shards that a node with all these processes holds at a time."""
    if not any(blobs(shard) for shard in index.shards):
        return []
    d, size = config.data, working_set_of(config, index, stream_plan(config, 0, world_size), range(world_size))
    folder = default_folder() if d.cache == "auto" else d.cache
    return [("cache", f"{folder}, up to {d.cache_gb:g} GB; a node with all processes needs {size / 1e9:.3g} GB at a time")]


def working_set_of(config: Config, index: DatasetIndex, plan: StreamPlan, ranks: Iterable[int]) -> int:
    """Bytes of remote shards that a node with these ranks must hold at once, in a run that continues where a plan begins."""
    return working_set(index, plan, ranks, steps=1 + config.data.workers * config.data.prefetch)


def stream_plan(config: Config, nimg: int = 0, world_size: int = 1, rank: int = 0) -> StreamPlan:
    """Which samples a rank reads in a run that continues at `nimg` images."""
    d = config.data
    return StreamPlan(config.run.seed, d.lanes, d.block, config.run.batch, rank, world_size, nimg, d.mirror)


def load_index_of(config: Config) -> DatasetIndex:
    """The index of the data that a configuration names."""
    if not config.data.shards:
        raise InputError("no data: set data.shards=FOLDER, a folder made by `stylegan-dist pack IMAGES FOLDER`")
    return load_index(config.data.shards)


def load_held_out(config: Config, index: DatasetIndex) -> DatasetIndex | None:
    """The index of the held-out images; None where there are none.

    Args:
        index: of the data.
    Raises:
        InputError: there is no such set, it is that of the data, or it does not fit it.
    """
    where = config.augment.held_out
    if not where:
        return None
    found = load_index(where)
    if found.fingerprint == index.fingerprint:
        raise InputError(f"augment.held_out={where} is the data that is trained on: name a set of other images")
    for name in ("kind", "resolution", "channels", "classes"):
        ours, others = getattr(index, name), getattr(found, name)
        if ours != others and (name != "classes" or config.data.conditional):
            detail = "of another kind or normalisation" if name == "kind" else f"{name} {others}, not {ours}"
            raise InputError(f"augment.held_out={where} does not fit {config.data.shards} ({detail}): pack both in the same "
                             "way")
    return found
