"""Events between two steps of the loop: ticks, checkpoints, pictures."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from stylegan_dist import augment
from stylegan_dist.config import schedules_of
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import Diverged, InputError
from stylegan_dist.files import write_whole
from stylegan_dist.kinds.film import frame_ms
from stylegan_dist.machine import peak_memory
from stylegan_dist.monitor.history import MOVING, MOVING_SUFFIX, SOUND_SUFFIX, SOUNDS, picture_name
from stylegan_dist.monitor.images import save_clip, save_grid
from stylegan_dist.monitor.sounds import save_sounds
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.training import pictures
from stylegan_dist.training.checkpoint import passes
from stylegan_dist.training.nodes import node_metrics, usage
from stylegan_dist.training.plan import stream_plan
from stylegan_dist.training.run_folder import PICTURES_NAME, SAMPLES_NAME
from stylegan_dist.training.saved import checkpoint_folder
from stylegan_dist.training.saver import Outcome
from stylegan_dist.training.setup import Run
from stylegan_dist.training.timing import SlowRanks

SHOWN_REPLACED = 20  # corrupt images named in log.txt at once
WAIT_ALLOWED = 0.02  # share of a tick that may go by waiting for data without a warning
LEAST_WAIT = 1.0     # seconds; of less, such as the start of the readers in a short tick, nothing follows
PICTURES_SHARE = 0.25  # of run.timeout, in which the other ranks wait for pictures


class Event(abc.ABC):
    """Something that all ranks do every `every_kimg`.

    Attributes:
        before_stop: whether it is due when the run is asked to stop. There may be only seconds left then.
    """

    every_kimg: float
    before_stop: Literal["as usual", "always", "never"] = "as usual"

    @abc.abstractmethod
    def happen(self) -> None: ...

    def gone_back(self) -> None:  # noqa: B027 - most have nothing to do
        """The state is that of an earlier checkpoint now."""


def is_due(event: Event, before: int, nimg: int, last: bool, stopping: bool) -> bool:
    """Whether an event is due after a step from `before` to `nimg` images, which may be the last step or that before a stop."""
    if last:
        return True
    if stopping and event.before_stop != "as usual":
        return event.before_stop == "always"
    return passes(event.every_kimg, before, nimg)


class Tick(Event):
    """Report what has happened since the last tick. The only place that waits for the device."""

    def __init__(self, run: Run, stream: BatchStream):
        self.run, self.stream = run, stream
        self.every_kimg = run.config.monitor.tick_kimg
        self._begin()
        self.alerted = False  # of non-finite gradients; the status lines go on to show them
        self.advised = False  # about waiting for data
        self.slow_ranks = SlowRanks(run.engine.hosts, run.engine.device.type)
        self.several_nodes = len(set(run.engine.hosts)) > 1
        self.schedules = schedules_of(run.config)

    def gone_back(self) -> None:
        self._begin()

    def _begin(self) -> None:
        stream = self.stream
        stream.seconds_waited = stream.seconds_read = stream.seconds_decode = 0.0
        self.began, self.nimg = time.perf_counter(), self.run.state.nimg

    def happen(self) -> None:
        run, stream, state = self.run, self.stream, self.run.state
        metrics = state.statistics.take()
        metrics |= {name: value.item() for name, value in state.objective.now().items()}
        metrics |= augment.measured(metrics, state.objective.controller is not None)
        phase_times = run.timer.take()
        seconds = time.perf_counter() - self.began
        images = state.nimg - self.nimg
        batch = run.config.run.batch
        own = None if run.timer.own_seconds is None else run.timer.own_seconds * batch / images
        everyone = run.engine.gather([own, [stream.seconds_waited / seconds, stream.seconds_waited, stream.seconds_read,
                                            stream.seconds_decode],
                                      usage(run.engine.device) if self.several_nodes else None])
        rank_times, slow_ranks = self.slow_ranks.look([own for own, _, _ in everyone])
        metrics |= {
            "time/img_per_sec": images / seconds,
            "time/sec_per_kimg": seconds / images * 1000,
            "data/replaced": state.replaced,
            "guard/broken_steps": state.broken_steps.count().item(),
            "guard/rollbacks": len(state.rollbacks),
            "time/data_wait": stream.seconds_waited / seconds,
            **{f"time/phase/{name}": mean for name, mean in phase_times.items()},
            **rank_times,
            **{f"lr/{name}": float(optimizer.param_groups[0]["lr"]) for name, optimizer in state.optimizers.items()},
            **(node_metrics(run.engine.hosts, [used for _, _, used in everyone]) if self.several_nodes else {}),
            "memory/peak_gib": peak_memory(run.engine.device) / 2**30,
            "ema/decay": state.ema.decay(state.nimg - batch, batch),
            **{f"schedule/{name}": schedule.at(state.nimg - batch) for name, schedule in self.schedules.items()},
        }
        if run.folder is not None:
            run.folder.lease.check()  # once more: waiting for the device may have taken long
        run.monitor.tick(metrics, state.nimg)
        run.report(nimg=state.nimg, images_per_second=images / seconds)
        broken = {name: count for name, count in metrics.items() if name.startswith("grad_nonfinite/") and count}
        if broken and not self.alerted:
            self.alerted = True
            text = ", ".join(f"{count:.0f} values in {name[-1]}" for name, count in broken.items())
            run.monitor.alert("non-finite gradients", text)
        for title, text in run.signs.of_tick(metrics):
            run.monitor.alert(title, text)
        if not self.advised and (advice := self._advise([waits for _, waits, _ in everyone])):
            self.advised = True
            run.monitor.warn(advice)
        if slow_ranks:
            run.monitor.warn(slow_ranks)
        self._begin()

    def _advise(self, everywhere: Sequence[list[float]]) -> str:
        """What to do where any rank has spent too much of a tick waiting for data; empty if none has.

        Args:
            everywhere: of each rank, the share of the tick that it has waited, the seconds that it has waited, and those in
                which its data was read and decoded.
        """
        readers = max(self.run.config.data.workers, 1)
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
    """All ranks save the state, after making sure that they still train the same networks.

    It is written while training goes on (`saver.py`). What came of it shows at the next event or save, or in `wait`.

    Attributes:
        nimg: images seen at the last one that was saved.
        failed: whether the last attempt failed.
    """

    before_stop = "always"

    def __init__(self, run: Run):
        self.run, self.every_kimg = run, run.config.checkpoint.every_kimg
        self._stall = 0.0  # seconds that the last one has kept training from going on
        self.gone_back()

    def gone_back(self) -> None:
        self.nimg, self.failed = self.run.state.nimg, False

    def happen(self) -> None:
        run, state, began = self.run, self.run.state, time.perf_counter()
        self.wait()
        if run.engine.world_size > 1 and not run.engine.agree(state.checksums()):
            raise RuntimeError(f"the ranks hold different networks at {state.nimg} images: a fault of the hardware or of this "
                               "program; the last checkpoint is good")
        run.engine.enter("saving a checkpoint", state.nimg)
        try:
            run.saver.begin(state.nimg, state.tensors(), state.facts())
        except InputError as error:  # the same on all ranks
            self._take(Outcome(state.nimg, failure=str(error)))
        self._stall = time.perf_counter() - began

    def look(self) -> None:
        """Take notice of the one in flight, if it has ended. All ranks must call it.

        Raises:
            Diverged: the state was not finite.
            InputError: another process has taken over the run.
        """
        self._take(self.run.saver.look())

    def wait(self) -> None:
        """Wait for the one in flight, as `look`."""
        self.run.engine.enter("waiting for a checkpoint", self.run.state.nimg)
        self._take(self.run.saver.wait())

    def _take(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        monitor, kimg = self.run.monitor, outcome.nimg / 1000
        self.failed = True
        if outcome.diverged:
            raise Diverged(f"the state at {kimg:g} kimg is not saved: {outcome.diverged}")
        if outcome.taken:
            raise InputError(outcome.taken)
        if outcome.failure:
            monitor.alert("checkpoint not saved", f"{outcome.failure}; training goes on and tries again at the next one")
            return
        self.nimg, self.failed = outcome.nimg, False
        self.run.report(checkpoint=outcome.nimg)
        monitor.checkpoint(checkpoint_folder(self.run.dir, outcome.nimg), outcome.nimg)
        monitor.note(f"checkpoint at {kimg:g} kimg: training stood still for {self._stall:.2f} s, then it was written in "
                     f"{outcome.seconds:.2f} s")
        for text in outcome.warnings:
            monitor.warn(text)


class Samples(Event):
    """A picture of the averaged generator at fixed latents; one class per column if conditional.

    Where samples are sounds, those of the first row follow one another in a WAV file beside it.
    """

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
        _save_samples(run, "samples", self.path, images)
        if run.batch is not None:
            reals = run.index.kind.to_network(run.batch["sample"])
            for title, text in run.signs.of_samples(images, reals, run.state.nimg):
                run.monitor.alert(title, text)
            real_labels = run.batch["label"] if run.resolved.conditional else None
            logits = {"real": self._judge("real", reals, real_labels), "fake": self._judge("fake", images, labels)}
            run.monitor.histograms({f"histogram/logits_{name}": each for name, each in logits.items()}, run.state.nimg)

    @torch.no_grad()
    def _judge(self, side: str, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """What the discriminator says of images, augmented and in micro-batches as in training: float [n].

        The images that are left over are not judged, as groups are never split. Nothing is where this rank has not the whole
        discriminator.
        """
        run, size = self.run, self.run.config.run.batch_gpu
        device, logits = run.engine.device, [torch.empty(0, device=run.engine.device)]
        for start in range(0, 0 if run.engine.shards("d") else len(images) - size + 1, size):
            part = slice(start, start + size)
            of = None if labels is None else labels[part].to(device)
            number = torch.arange(start, start + size, device=device)
            # `twice` is for the plain network: a compiled one is made for training.
            logits.append(run.state.objective.judge("samples", side, images[part].to(device), of, number, twice=True))
        return torch.cat(logits)


class Pictures(Event):
    """What the averaged generator has learned: truncation, classes and interpolation, in RUN/evaluation/."""

    before_stop = "never"

    def __init__(self, run: Run):
        self.run, self.every_kimg = run, run.config.monitor.pictures_kimg

    def happen(self) -> None:
        self.run.engine.enter("drawing pictures", self.run.state.nimg)
        network = self.run.state.ema.whole()
        self.run.engine.on_main(lambda: self._draw(network))

    def _draw(self, network: Generator | None) -> None:
        """The small pictures first: they tell how long a larger one would take."""
        assert network is not None  # runs on rank 0
        run, began, drawn = self.run, time.perf_counter(), 0
        arguments = network, run.index.kind, run.config.run.seed, run.config.run.batch_gpu
        folder = run.dir / PICTURES_NAME

        def show(name: str, sheet: pictures.Sheet) -> None:
            path, about = folder / f"{name}.png", f"At {run.state.nimg / 1000:g} kimg."
            if _saved(run, path, lambda: save_grid(path, *sheet, about)):
                run.monitor.image(picture_name(path), path, run.state.nimg)

        def has_time(name: str, count: int) -> bool:
            nonlocal drawn
            seconds = (time.perf_counter() - began) * count / drawn
            if seconds > PICTURES_SHARE * run.config.run.timeout:
                run.monitor.warn(f"no picture of the {name}: it would take {seconds:.0f} s, more than {PICTURES_SHARE:.0%} of "
                                 "run.timeout; monitor.pictures_kimg=0 draws none")
                return False
            drawn += count
            return True

        if network.truncates:
            sheet = pictures.truncation(*arguments)
            drawn = len(sheet.images)
            show("truncation", sheet)
        else:
            drawn = pictures.trial(*arguments)
        count = pictures.class_rows(network) * pictures.CLASS_COLUMNS
        if count and has_time("classes", count):
            show("classes", pictures.classes(*arguments, run.index.classes or ()))
        if has_time("interpolation", pictures.LOOP_IMAGES):
            frames = pictures.interpolation(*arguments)
            show("interpolation", pictures.strip(frames))
            path = folder / "interpolation.gif"
            if _saved(run, path, lambda: save_clip(path, frames, pictures.CLIP_COLUMNS)):
                run.monitor.image(picture_name(path), path, run.state.nimg)


def save_reals(run: Run) -> None:
    """A picture of the first images of the run. For rank 0."""
    m, kind = run.config.monitor, run.index.kind
    plan = replace(stream_plan(run.config), batch=m.grid_columns * m.grid_rows, mirror=False)
    stream = BatchStream(run.index, plan, cache=run.cache)
    try:
        images = kind.to_network(next(stream)["sample"])
    finally:
        stream.close()
    _save_samples(run, "reals", run.dir / SAMPLES_NAME / "reals.png", images)


def _save_samples(run: Run, name: str, path: Path, images: torch.Tensor) -> None:
    """What a network has made, or would be shown: a picture, the first row of sounds, what moves, lines of text."""
    kind, columns = run.index.kind, run.config.monitor.grid_columns
    sounds, moving, text = (path.with_suffix(ending) for ending in (SOUND_SUFFIX, MOVING_SUFFIX, ".txt"))
    if _saved(run, path, lambda: save_grid(path, kind.as_pictures(images), columns)):
        run.monitor.image(name, path, run.state.nimg)
    if _saved(run, sounds, lambda: save_sounds(sounds, kind, images[:columns])):
        run.monitor.image(name + SOUNDS, sounds, run.state.nimg)
    if (film := kind.as_film(images)) and _saved(
            run, moving, lambda: save_clip(moving, film.frames.transpose(0, 1), columns, frame_ms(film.fps))):
        run.monitor.image(name + MOVING, moving, run.state.nimg)
    if (lines := kind.lines(images)) is not None:
        _saved(run, text, lambda: write_whole(text, "".join(f"{line}\n" for line in lines)))


def _saved(run: Run, path: Path, write: Callable[[], bool | None]) -> bool:
    """Whether a file could be written, in a folder that may be new. `write` may find, and return False, that there is none."""
    try:
        path.parent.mkdir(exist_ok=True)
        return write() is not False
    except OSError as error:
        run.monitor.warn(f"cannot write {path}: {error.strerror or error}; training goes on")
        return False


def count_replaced(run: Run, stream: BatchStream) -> None:
    """Count and name the corrupt images that any rank has met since the last call.

    Raises:
        InputError: they are too many.
    """
    replaced = stream.take_replaced() + (run.held_out.stream.take_replaced() if run.held_out else [])
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
