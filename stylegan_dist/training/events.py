"""Events between two steps of the loop: ticks, checkpoints, pictures."""

from __future__ import annotations

import abc
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import InputError
from stylegan_dist.machine import peak_memory
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.training.checkpoint import Diverged, prune_checkpoints, save_checkpoint
from stylegan_dist.training.plan import stream_plan
from stylegan_dist.training.run_folder import SAMPLES_NAME
from stylegan_dist.training.setup import Run

SHOWN_REPLACED = 20  # corrupt images named in log.txt at once
WAIT_ALLOWED = 0.02  # share of a tick that may go by waiting for data without a warning
LEAST_WAIT = 1.0     # seconds; of less, such as the start of the readers in a short tick, nothing follows


class Event(abc.ABC):
    """Something that all ranks do every `every_kimg`.

    Attributes:
        before_stop: whether it is due when the run is asked to stop. There may be only seconds left then.
    """

    every_kimg: float
    before_stop: Literal["as usual", "always", "never"] = "as usual"

    @abc.abstractmethod
    def happen(self) -> None: ...


def is_due(event: Event, before: int, nimg: int, last: bool, stopping: bool) -> bool:
    """Whether an event is due after a step from `before` to `nimg` images, which may be the last step or that before a stop."""
    if last:
        return True
    if stopping and event.before_stop != "as usual":
        return event.before_stop == "always"
    every = event.every_kimg * 1000
    return nimg // every > before // every


class Tick(Event):
    """Report what has happened since the last tick. The only place that waits for the device."""

    def __init__(self, run: Run, stream: BatchStream):
        self.run, self.stream = run, stream
        self.every_kimg = run.config.monitor.tick_kimg
        self.began, self.nimg = time.perf_counter(), run.state.nimg
        self.alerted = False  # of non-finite gradients; the status lines go on to show them
        self.advised = False  # about waiting for data

    def happen(self) -> None:
        run, stream, state = self.run, self.stream, self.run.state
        metrics = state.statistics.take()
        metrics |= {name: value.item() for name, value in state.objective.reported().items()}
        phase_times = run.timer.take()
        seconds = time.perf_counter() - self.began
        images = state.nimg - self.nimg
        batch = run.config.run.batch
        metrics |= {
            "time/img_per_sec": images / seconds,
            "time/sec_per_kimg": seconds / images * 1000,
            "data/replaced": state.replaced,
            "time/data_wait": stream.seconds_waited / seconds,
            **{f"time/phase/{name}": mean for name, mean in phase_times.items()},
            "memory/peak_gib": peak_memory(run.engine.device) / 2**30,
            "ema/decay": state.ema.decay(state.nimg - batch, batch),
        }
        run.monitor.tick(metrics, state.nimg)
        broken = {name: count for name, count in metrics.items() if name.startswith("grad_nonfinite/") and count}
        if broken and not self.alerted:
            self.alerted = True
            text = ", ".join(f"{count:.0f} values in {name[-1]}" for name, count in broken.items())
            run.monitor.alert("non-finite gradients", text)
        if not self.advised and (advice := self._advise(seconds)):
            self.advised = True
            run.monitor.warn(advice)
        stream.seconds_waited = stream.seconds_read = stream.seconds_decode = 0.0
        self.began, self.nimg = time.perf_counter(), state.nimg

    def _advise(self, seconds: float) -> str:
        """What to do where any rank has spent too much of a tick of so many seconds waiting for data; empty if none has."""
        stream, readers = self.stream, max(self.run.config.data.workers, 1)
        here = [stream.seconds_waited / seconds, stream.seconds_waited, stream.seconds_read, stream.seconds_decode]
        everywhere = self.run.engine.gather(here)
        share, waited, read, decode = worst = max(everywhere)
        if share <= WAIT_ALLOWED or waited < LEAST_WAIT:
            return ""
        if read <= decode:
            cause, remedy = "decode", "more reader processes (data.workers), or a data set packed as jpg"
        elif self.run.cache is None:
            cause, remedy = "disk", "a local disk, or more reader processes (data.workers)"
        else:
            cause, remedy = "network", "a larger cache on a local disk, or more reader processes (data.workers)"
        return (f"waiting for data took {share:.0%} of the time on rank {everywhere.index(worst)}; the cause is {cause} "
                f"(reading {read:.1f} s, decoding {decode:.1f} s in {readers} readers): try {remedy}; stylegan-dist bench-data "
                "measures what is possible")


class Checkpoint(Event):
    """All ranks write the state, after making sure that they still train the same networks.

    Attributes:
        nimg: images seen at the last one.
        failed: whether the last attempt failed.
    """

    before_stop = "always"

    def __init__(self, run: Run):
        self.run, self.every_kimg = run, run.config.checkpoint.every_kimg
        self.nimg, self.failed = run.state.nimg, False

    def happen(self) -> None:
        run, state, c = self.run, self.run.state, self.run.config.checkpoint
        if not run.engine.agree(state.checksums()):
            raise RuntimeError(f"the ranks hold different networks at {state.nimg} images: a fault of the hardware or of this "
                               "program; the last checkpoint is good")
        self.failed = True
        run.engine.enter("saving a checkpoint", state.nimg)
        try:
            save_checkpoint(run.dir, state.nimg, state.tensors(), state.facts(), run.engine, int(c.file_mib * 2**20))
        except Diverged as error:  # going on would only move away from the last checkpoint
            raise InputError(f"training has diverged: at {state.nimg / 1000:g} kimg {error}. This state is not saved; the same "
                             "command continues from the last checkpoint: lower the learning rates (optim.*.lr), raise "
                             "loss.r1_gamma, or compute in fp32 (precision.*)") from None
        except InputError as error:  # the same on all ranks
            run.monitor.alert("checkpoint not saved", f"{error}; training goes on and tries again at the next one")
            return
        self.nimg, self.failed = state.nimg, False
        try:
            damage = run.engine.on_main(lambda: prune_checkpoints(run.dir, c.keep, int(c.archive_kimg * 1000)))
            for problem in damage or ():
                run.monitor.warn(f"a damaged checkpoint, which does not count among checkpoint.keep={c.keep}: {problem}")
        except InputError as error:
            run.monitor.warn(f"an old checkpoint cannot be removed: {error}")


class Samples(Event):
    """A picture of the averaged generator at fixed latents; one class per column if conditional."""

    before_stop = "never"

    def __init__(self, run: Run):
        self.run, self.every_kimg = run, run.config.monitor.samples_kimg

    @property
    def path(self) -> Path:
        return self.run.dir / SAMPLES_NAME / f"nimg-{self.run.state.nimg:08d}.png"

    def happen(self) -> None:
        self.run.engine.enter("drawing samples", self.run.state.nimg)
        network = self.run.state.ema.whole()
        self.run.engine.on_main(lambda: self._draw(network))

    def _draw(self, network: Generator | None) -> None:
        assert network is not None  # runs on rank 0
        run, m = self.run, self.run.config.monitor
        index = torch.arange(m.grid_columns * m.grid_rows, device=run.engine.device)
        labels = index % m.grid_columns % run.resolved.num_classes if run.resolved.conditional else None
        images = draw_samples(network, run.config.run.seed, "samples", index, labels, Sampling(batch=run.config.run.batch_gpu))
        _save_picture(run, "samples", self.path, run.index.kind.as_pictures(images))


def save_reals(run: Run) -> None:
    """A picture of the first images of the run. For rank 0."""
    m, kind = run.config.monitor, run.index.kind
    plan = replace(stream_plan(run.config), batch=m.grid_columns * m.grid_rows, mirror=False)
    stream = BatchStream(run.index, plan, cache=run.cache)
    try:
        images = kind.as_pictures(kind.to_network(next(stream)["sample"]))
    finally:
        stream.close()
    _save_picture(run, "reals", run.dir / SAMPLES_NAME / "reals.png", images)


def _save_picture(run: Run, name: str, path: Path, images: torch.Tensor) -> None:
    try:
        save_grid(path, images, run.config.monitor.grid_columns)
    except OSError as error:
        run.monitor.warn(f"cannot write {path}: {error.strerror or error}; training goes on")
    else:
        run.monitor.image(name, path, run.state.nimg)


def count_replaced(run: Run, stream: BatchStream) -> None:
    """Count and name the corrupt images that any rank has met since the last call.

    Raises:
        InputError: they are too many.
    """
    replaced = stream.take_replaced()
    found = run.engine.gather([len(replaced), [str(one) for one in replaced[:SHOWN_REPLACED]]])
    count = sum(number for number, _ in found)
    if not count:
        return
    run.state.replaced += count
    names = [name for _, names in found for name in names]
    for name in names[:SHOWN_REPLACED]:
        run.monitor.warn(f"corrupt image replaced: {name}")
    if count > SHOWN_REPLACED:
        run.monitor.warn(f"corrupt images replaced: {count - SHOWN_REPLACED} more")
    allowed = run.config.data.max_bad_fraction
    seen = max(run.state.nimg, run.index.num_samples)
    if run.state.replaced > allowed * seen:
        raise InputError(
            f"{run.state.replaced} corrupt images are more than data.max_bad_fraction={allowed:g} of {seen}, such as "
            f"{names[0]}. stylegan-dist verify lists all: restore the shards or pack the data again; or set a larger "
            "data.max_bad_fraction and run the same command again"
        )
