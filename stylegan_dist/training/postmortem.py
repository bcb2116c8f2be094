"""The post-mortem of a run that has diverged: RUN/postmortem.md, what a person needs to find the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_dist.config import dump_config
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.engine import Job
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.machine import versions
from stylegan_dist.monitor.monitor import METRICS_NAME
from stylegan_dist.records import parse_json
from stylegan_dist.redact import redact
from stylegan_dist.training.run_folder import SAMPLES_NAME
from stylegan_dist.training.saved import checkpoint_folder
from stylegan_dist.training.setup import Run
from stylegan_dist.training.step import micro_batches

NAME = "postmortem.md"
TICKS = 12      # last ones in the table
STEPS = 10      # last ones whose images are named
PICTURES = 5
METRICS = ("loss/g_main", "loss/d_main", "loss/r1", "loss/path_length", "logits/real", "logits/fake", "grad_norm/g",
           "grad_norm/d", "grad_nonfinite/g", "grad_nonfinite/d", "guard/broken_steps", "guard/skipped")

ADVICE = """\
Change one thing at a time. The same command, with the change, continues from the checkpoint named above.

- A lower learning rate: `optim.d.lr`, `optim.g.lr`; or `guard.lr_factor=0.5`, which lowers both each time the run goes back.
- A larger `loss.r1_gamma` (2 or 4 times), where the logits of real and generated images have drifted apart.
- `precision.dtype=bf16` or `fp32` instead of fp16, where the layers with values that are not finite compute in it.
- A larger `optim.*.eps`, where gradient norms are tiny before they explode.
- The data: look at the images named below, and run `stylegan-dist verify`.
- `guard.nonfinite=skip`, where single steps have values that are not finite and the rest are healthy.
- A larger `guard.rollbacks`, where other draws have helped for some time.
"""


def write_postmortem(run: Run, stream: BatchStream, reason: str, healthy: int) -> Path:
    """Write the post-mortem of a run at its end; returns its path. All ranks must call it.

    Args:
        stream: of which nothing more is needed.
        reason: why the run cannot go on.
        healthy: images seen at the last healthy checkpoint; 0 if there is none.
    """
    engine, path, weights = run.engine, run.dir / NAME, [*_weights(run)]
    last = engine.on_main(run.state.statistics.take)
    engine.on_main(lambda: _write(path, "\n".join(_text(run, reason, healthy, last or {}, weights))))
    try:
        layers = [*weights, *_gradients(run, stream)]
    except (RuntimeError, MemoryError):  # no memory for a second set of gradients; the reason must not be lost for that
        return path
    engine.on_main(lambda: _write(path, "\n".join(_text(run, reason, healthy, last or {}, layers))))
    return path


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, redact(text) + "\n")
    except OSError as error:  # the reason is more important
        raise InputError(f"{path} cannot be written ({error.strerror or error})\n{text}") from None


def _text(run: Run, reason: str, healthy: int, last: Mapping[str, float], layers: Sequence[str]) -> Iterator[str]:
    state, batch = run.state, run.config.run.batch
    yield f"# Post-mortem of {run.dir}\n"
    yield f"At {state.nimg / 1000:g} kimg ({state.nimg} images, seed {run.config.run.seed}): {reason}.\n"
    yield (f"The last healthy checkpoint is `{checkpoint_folder(run.dir, healthy)}`; the same command continues from there.\n"
           if healthy else "There is no healthy checkpoint.\n")
    for one in state.rollbacks:
        yield f"- went back from {one.at / 1000:g} to {one.to / 1000:g} kimg: {one.reason}"
    yield "\n## What to try\n"
    yield ADVICE
    yield "## The last ticks\n"
    ticks = [*_last_records(run.dir / METRICS_NAME), {"nimg": state.nimg, **last}]
    names = [name for name in METRICS if any(name in tick for tick in ticks)]
    yield from _table(["kimg", *names], [[tick["nimg"] / 1000, *(tick.get(name) for name in names)] for tick in ticks])
    yield "\nThe last row is what was measured since the last tick.\n\n## The last steps\n"
    broken = set(state.broken_steps.facts())
    for ago in range(min(STEPS, state.nimg // batch)):
        end = state.nimg - ago * batch
        yield f"- images {end - batch} to {end - 1}" + (": values that are not finite" if ago in broken else "")
    yield f"\nSteps with values that are not finite, of the last 100: {len(broken)}.\n"
    yield from layers
    pictures = sorted((run.dir / SAMPLES_NAME).glob("*.png"))[-PICTURES:]
    yield "\n## Pictures\n\n" + "\n".join(f"- `{SAMPLES_NAME}/{picture.name}`" for picture in pictures)
    yield "\n## Versions\n"
    yield from (f"- {name} {version}" for name, version in _versions(run))
    yield f"\n## Configuration\n\n```yaml\n{dump_config(run.config).strip()}\n```"


def _last_records(path: Path) -> list[Mapping[str, Any]]:
    """The last records of metrics.jsonl, as far as they can be read."""
    records = []
    try:
        lines = path.read_bytes().splitlines()[-TICKS:]
    except OSError:
        return []
    for line in lines:
        try:
            records.append(parse_json(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("nimg"), int)]


def _weights(run: Run) -> Iterator[str]:
    """The parameters of both networks by layer."""
    for name, learner in run.state.learners.items():
        sums = [(part.double().square().sum(), (~part.isfinite()).sum().double()) for _, part, _ in learner.local()]
        squares, counts = run.engine.sum(torch.stack([torch.stack(one) for one in sums])).T
        norms, counts = _by_layer(learner.shapes, squares).sqrt().tolist(), _by_layer(learner.shapes, counts).tolist()
        yield f"\n## Weights of {name}\n"
        yield from _table(["layer", "norm", "not finite"], zip(_layers(learner.shapes), norms, counts, strict=True))


def _gradients(run: Run, stream: BatchStream) -> Iterator[str]:
    """The gradients of all phases by layer: of the images of the last step, and the weights after it. Nothing is replaced."""
    state, config = run.state, run.config
    begin = max(0, state.nimg - config.run.batch)
    try:
        batch = run.engine.together(lambda: _batch_at(stream, begin))
    except InputError as error:  # the reason for the end is more important
        yield f"\nNo gradients: {error}."
        return
    parts = micro_batches(batch, config.run.batch_gpu, run.resolved.conditional, run.engine.device, run.index.kind)
    for network, learner in state.learners.items():
        columns: dict[str, list[float]] = {}
        for phase in (phase for phase in state.phases if phase.network == network):
            for name, module in state.networks.items():
                module.requires_grad_(name == network)
            found = learner.gradients([Job(loss, part) for part in parts for loss in phase.losses])
            if found:
                squares = torch.stack([gradient.double().square().sum() for gradient in found.values()])
                columns[phase.name] = _by_layer(learner.shapes, squares).sqrt().tolist()
        yield f"\n## Gradient norms of {network}, images {begin} to {state.nimg - 1}\n"
        if columns:
            yield from _table(["layer", *columns], zip(_layers(learner.shapes), *columns.values(), strict=True))
        else:
            yield "DeepSpeed keeps no gradients by parameter."


def _batch_at(stream: BatchStream, nimg: int) -> Batch:
    stream.go_to(nimg)
    return next(stream)


def _layers(parameters: Iterable[str]) -> list[str]:
    """The modules of some parameters, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))


def _by_layer(parameters: Iterable[str], values: Tensor) -> Tensor:
    """The sums of values [parameters] over each of `_layers`."""
    layers = {layer: number for number, layer in enumerate(_layers(parameters))}
    index = torch.tensor([layers[name.rpartition(".")[0] or name] for name in parameters], device=values.device)
    return torch.zeros(len(layers), dtype=values.dtype, device=values.device).index_add(0, index, values)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """With texts, and with numbers of four digits or as JSON has those that are not finite; None leaves a field empty."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        fields = (field if isinstance(field, str) else "" if field is None else f"{field:.4g}" for field in row)
        yield f"| {' | '.join(fields)} |"


def _versions(run: Run) -> Iterator[tuple[str, str]]:
    yield from versions()
    yield "engine:", run.engine.describe()
    yield "operators:", run.resolved.ops
