"""The training loop, in the order of the papers: draw, phases, reduce, step, average, tick."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stylegan_dist.config import Config, to_dict
from stylegan_dist.data.arrays import as_pictures
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.demand import node_demand, open_cache
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import InputError, Interrupted, LocalInputError, LocalInterrupted, RankLost
from stylegan_dist.machine import available_memory, peak_memory
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.monitor.monitor import Monitor, NullMonitor
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.ops import native
from stylegan_dist.redact import redact
from stylegan_dist.training.checkpoint import Diverged, checkpoint_folder, prune_checkpoints, save_checkpoint
from stylegan_dist.training.compiled import compile_networks, networks_to_compile, why_not_compiled
from stylegan_dist.training.engine import Engine
from stylegan_dist.training.engine.preflight import check_agreement
from stylegan_dist.training.engine.ranks import host_name
from stylegan_dist.training.interruption import StopRequest, end_with_launcher, why_nohup_fails
from stylegan_dist.training.memory import is_out_of_memory, propose_batch_gpu
from stylegan_dist.training.plan import header_facts, load_index_of
from stylegan_dist.training.rules import resolve, steps_in
from stylegan_dist.training.run_folder import SAMPLES_NAME, RunFolder
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches, run_step
from stylegan_dist.training.timing import PhaseTimer
from stylegan_dist.training.waiting import wait_for_data, what_waiting_means

DATA_SHARE = 0.9      # of run.timeout, for a rank to say that it has no data before the others give up waiting for it
SHOWN_REPLACED = 20  # corrupt images named in log.txt at once


def train(config: Config) -> None:
    """Train, or continue, the run that `config` describes, until it has seen `run.kimg`.

    Raises:
        InputError: configuration, data or launch are wrong.
        Interrupted: the run was asked to stop and has saved its state.
    """
    end_with_launcher()
    run = config.run
    engine = Engine(run.device, run.world_size, run.threads, run.timeout, run.reduction, run.cuda_graphs)
    failure, free = None, available_memory(engine.device, engine.local_world_size)
    try:
        with engine.late_ranks_named():
            trainer = Trainer(config, engine)
        trainer.run()
        engine.say_end()
    except RankLost:  # the others have been told
        raise
    except (RuntimeError, MemoryError) as error:
        engine.say_end(error)
        if not is_out_of_memory(error):
            raise
        failure = str(error).strip().partition("\n")[0] or type(error).__name__
    except BaseException as error:
        engine.say_end(error)
        if isinstance(error, (InputError, Interrupted)) and not isinstance(error, (LocalInputError, LocalInterrupted)):
            engine.close()
        raise
    if failure is not None:  # not inside the handler, where the failed tensors are still alive
        index = load_index_of(config)
        resolved = resolve(config, index, engine.world_size, engine.device.type, engine.supports_bf16, engine.spreads("g"))
        proposal = propose_batch_gpu(resolved, index, engine.world_size, engine.device.type, free, engine.choice)
        raise LocalInputError(f"out of memory ({failure}); {proposal}")
    # Where one rank fails alone, leaving the process group would wait for the others, which wait for this rank.
    engine.close()


class Trainer:
    """One start of a run, on one rank."""

    def __init__(self, config: Config, engine: Engine):
        self.engine = engine
        self.index = engine.together(lambda: load_index_of(config))
        self.resolved = engine.together(
            lambda: resolve(config, self.index, engine.world_size, engine.device.type, engine.supports_bf16,
                            spread_generator=engine.spreads("g"))
        )
        self.config = self.resolved.config
        self.run_dir = Path(self.config.run.dir)
        check_agreement(engine, engine.hosts, self.config, self.index.fingerprint)
        set_arithmetic(self.config)

        self.folder = engine.on_main(lambda: RunFolder(self.run_dir))
        start, self.notices = engine.broadcast(engine.on_main(self._starting_point))
        self.cache = engine.together(lambda: self._open_cache(start))
        self.state = TrainState(self.resolved, self.index, engine.device, engine)
        if start:
            engine.together(lambda: self._restore(start))
        self.batch = self.config.run.batch
        self.total = steps_in(self.config) * self.batch
        self.timer = PhaseTimer(engine.device)
        self.saved = start    # images seen at the last checkpoint
        self.unsaved = False  # the last attempt to save a checkpoint failed
        self.no_compile = why_not_compiled(self.config, any(engine.spreads(name) for name in self.state.networks))
        self.to_compile = () if self.no_compile else networks_to_compile(self.engine.device.type)
        self.alerted = False  # about non-finite gradients
        self.told_waiting = False
        self.monitor: Monitor | NullMonitor = NullMonitor()
        self.tick_began, self.tick_nimg = time.perf_counter(), self.state.nimg

    def run(self) -> None:
        """From the starting point to the end."""
        exit_code = 1
        try:
            with self.engine.late_ranks_named():  # while there is a log.txt to name them in
                self._run()
            exit_code = 0
        except Interrupted:
            exit_code = 75
            raise
        except Exception as error:  # the terminal may be gone when somebody asks why the run has ended
            first = str(error).strip().partition("\n")[0]
            self.monitor.note(redact(f"error: {first or type(error).__name__}"))
            raise
        finally:
            self.monitor.close(exit_code)
            if self.folder is not None:
                self.folder.close()
            if self.cache is not None:
                self.cache.release()

    def _run(self) -> None:
        if self.state.nimg >= self.total:
            self.monitor = self.engine.on_main(self._open_monitor) or self.monitor
            self.monitor.line(f"finished before, at {self.state.nimg / 1000:g} kimg; set run.kimg higher to go on")
            return
        stream = self._open_stream()  # before the monitor: it forks processes, the monitor starts a thread
        try:
            self.monitor = self.engine.on_main(self._open_monitor) or self.monitor
            self._train(stream)
        finally:
            stream.close()

    def _train(self, stream: BatchStream) -> None:
        state, c = self.state, self.config
        stop = StopRequest()
        if state.nimg == 0:
            self.engine.on_main(self._save_reals)
            self._save_samples()
        stream.tell = self._tell_late
        asked = None  # whether any rank had been asked to stop in the step before
        self.tick_began = time.perf_counter()
        try:
            while state.nimg < self.total:
                before = state.nimg
                self.engine.enter("waiting for data", before)
                if not wait_for_data(stream, stop, self.engine.world_size > 1):
                    self._stop_without_data(stream)
                batch = next(stream)
                self.engine.enter("training", before)
                stopping = self._step(batch, stop.requested)
                self.monitor.progress(state.nimg)
                interrupted, asked = asked is not None and asked() > 0, stopping
                last = state.nimg >= self.total

                tick = last or crossed(before, state.nimg, c.monitor.tick_kimg)
                save = last or interrupted or crossed(before, state.nimg, c.checkpoint.every_kimg)
                if tick or save:
                    self.engine.on_main(self._check_folder)
                    self._count_replaced(stream)
                if tick:
                    self._tick(stream)
                if save:
                    self._save_checkpoint()
                if interrupted and not last:
                    self._stop()
                if last or crossed(before, state.nimg, c.monitor.samples_kimg):
                    self._save_samples()
        except RankLost:
            stop.last_words()
            raise
        finally:
            stop.close()
        if self.unsaved:
            raise InputError("the run ended, but its last checkpoint could not be saved (see the warning above): make "
                             "room and run the same command again")
        self.monitor.line(f"finished at {state.nimg / 1000:g} kimg; samples: {self.samples_path}")

    def _stop_without_data(self, stream: BatchStream) -> None:
        """End on request before there is another batch."""
        if self.engine.world_size > 1:  # the others are in the middle of a step
            text = (f"rank {self.engine.rank} ({host_name()}) stopped on request without saving the state, as it has no data: "
                    f"{stream.describe_wait()}; the same command continues from the last checkpoint")
            self.monitor.line(text)
            raise LocalInterrupted(text, shown=self.engine.is_main)
        if self.state.nimg > self.saved:  # this is the state after a whole step
            self._count_replaced(stream)
            self._save_checkpoint()
        self._stop()

    def _tell_late(self, text: str) -> None:
        """That data is late, by the rank that waits for it; the others learn it from there."""
        self.engine.describe_stage(text)
        if self.engine.is_main:
            self.monitor.warn(text)
        else:
            print(f"WARNING: rank {self.engine.rank} ({host_name()}): {text}", file=sys.stderr, flush=True)

    def _stop(self) -> None:
        """End on request; there may be only seconds left."""
        if self.unsaved:
            raise InputError("stopped on request, but the state could not be saved (see the warning above); the run will "
                             "continue from its last whole checkpoint")
        text = f"stopped on request at {self.state.nimg / 1000:g} kimg; the same command continues"
        self.monitor.line(text)
        raise Interrupted(text, shown=True)

    def _step(self, batch: Batch, stop_requested: bool) -> Callable[[], float]:
        """Train both networks on one global batch; returns a function that tells if any rank wants to stop."""
        state = self.state
        parts = micro_batches(batch, self.config.run.batch_gpu, self.resolved.conditional, self.engine.device, self.index.array)
        if self.to_compile:
            self.monitor.line(compile_networks(state, self.engine, self.to_compile, parts[0]))
            self.to_compile = ()
        stop = torch.full((), float(stop_requested), device=self.engine.device)
        result = run_step(state, parts, stop, self.timer)
        for notice in result.notices:
            self.monitor.warn(notice)
        return self.engine.read_later(result.stopping)

    # Records

    def _tick(self, stream: BatchStream) -> None:
        """Report what has happened since the last tick. The only place that waits for the device."""
        state, device = self.state, self.engine.device
        metrics = state.statistics.take()
        metrics |= {name: value.item() for name, value in state.objective.reported().items()}
        phase_times = self.timer.take()
        seconds = time.perf_counter() - self.tick_began
        images = state.nimg - self.tick_nimg
        metrics |= {
            "time/img_per_sec": images / seconds,
            "time/sec_per_kimg": seconds / images * 1000,
            "data/replaced": state.replaced,
            "time/data_wait": stream.seconds_waited / seconds,
            **{f"time/phase/{name}": total / count for name, (total, count) in phase_times.items()},
            "memory/peak_gib": peak_memory(device) / 2**30,
            "ema/decay": state.ema.decay(state.nimg - self.batch, self.batch),
        }
        self.monitor.tick(metrics, state.nimg)
        broken = {name: count for name, count in metrics.items() if name.startswith("grad_nonfinite/") and count}
        if broken and not self.alerted:  # once; the status line goes on to show them
            self.alerted = True
            text = ", ".join(f"{count:.0f} values in {name[-1]}" for name, count in broken.items())
            self.monitor.alert("non-finite gradients", text)
        if not self.told_waiting and (advice := what_waiting_means(self.engine, stream, seconds, self.config.data.workers,
                                                                   self.cache is not None)):
            self.told_waiting = True
            self.monitor.warn(advice)
        stream.seconds_waited = stream.seconds_read = stream.seconds_decode = 0.0
        self.tick_began, self.tick_nimg = time.perf_counter(), state.nimg

    def _count_replaced(self, stream: BatchStream) -> None:
        """Count and name the corrupt images that any rank has met since the last call; stop if they are too many."""
        replaced = stream.take_replaced()
        found = self.engine.gather([len(replaced), [str(one) for one in replaced[:SHOWN_REPLACED]]])
        count = sum(number for number, _ in found)
        if not count:
            return
        self.state.replaced += count
        names = [name for _, names in found for name in names]
        for name in names[:SHOWN_REPLACED]:
            self.monitor.warn(f"corrupt image replaced: {name}")
        if count > SHOWN_REPLACED:
            self.monitor.warn(f"corrupt images replaced: {count - SHOWN_REPLACED} more")
        allowed = self.config.data.max_bad_fraction
        seen = max(self.state.nimg, self.index.num_samples)
        if self.state.replaced > allowed * seen:
            raise InputError(
                f"{self.state.replaced} corrupt images are more than data.max_bad_fraction={allowed:g} of {seen}, such as "
                f"{names[0]}. stylegan-dist verify lists all: restore the shards or pack the data again; or set a larger "
                "data.max_bad_fraction and run the same command again"
            )

    @property
    def samples_path(self) -> Path:
        return self.run_dir / SAMPLES_NAME / f"nimg-{self.state.nimg:08d}.png"

    def _save_samples(self) -> None:
        """A picture of the averaged generator at fixed latents; one class per column if conditional."""
        self.engine.enter("drawing samples", self.state.nimg)
        network = self.state.ema.whole()
        self.engine.on_main(lambda: self._draw_samples(network))

    def _draw_samples(self, network: Generator | None) -> None:
        assert network is not None  # runs on rank 0
        m = self.config.monitor
        index = torch.arange(m.grid_columns * m.grid_rows, device=self.engine.device)
        labels = index % m.grid_columns % self.resolved.num_classes if self.resolved.conditional else None
        sampling = Sampling(batch=self.config.run.batch_gpu)
        images = draw_samples(network, self.config.run.seed, "samples", index, labels, sampling)
        if self.index.array:
            images = self.index.array.as_pictures(images)
        self._save_picture("samples", self.samples_path, images)

    def _save_reals(self) -> None:
        """A picture of the first images of the run."""
        m, d = self.config.monitor, self.config.data
        count = m.grid_columns * m.grid_rows
        stream = BatchStream(self.index, seed=self.config.run.seed, lanes=d.lanes, block=d.block, batch=count,
                             cache=self.cache)
        try:
            images = as_pictures(next(stream).images, self.index.array)
            self._save_picture("reals", self.run_dir / SAMPLES_NAME / "reals.png", images)
        finally:
            stream.close()

    def _save_picture(self, name: str, path: Path, images: torch.Tensor) -> None:
        self._check_folder()
        try:
            save_grid(path, images, self.config.monitor.grid_columns)
        except OSError as error:
            self.monitor.warn(f"cannot write {path}: {error.strerror or error}; training goes on")
        else:
            self.monitor.images(name, path, self.state.nimg)

    def _save_checkpoint(self) -> None:
        """All ranks write, after making sure that they still train the same networks."""
        state, c = self.state, self.config.checkpoint
        if not self.engine.agree(state.checksums()):
            raise RuntimeError(f"the ranks hold different networks at {state.nimg} images: a fault of the hardware or of this "
                               "program; the last checkpoint is good")
        self.unsaved = True
        self.engine.enter("saving a checkpoint", state.nimg)
        try:
            save_checkpoint(self.run_dir, state.nimg, state.tensors(), state.facts(), self.engine, int(c.file_mib * 2**20))
        except Diverged as error:  # going on would only move away from the last checkpoint
            raise InputError(f"training has diverged: at {state.nimg / 1000:g} kimg {error}. This state is not saved; the same "
                             "command continues from the last checkpoint: lower the learning rates (optim.*.lr), raise "
                             "loss.r1_gamma, or compute in fp32 (precision.*)") from None
        except InputError as error:  # the same on all ranks
            self.monitor.alert("checkpoint not saved", f"{error}; training goes on and tries again at the next one")
            return
        self.unsaved, self.saved = False, state.nimg
        try:
            damage = self.engine.on_main(lambda: prune_checkpoints(self.run_dir, c.keep, int(c.archive_kimg * 1000)))
            for problem in damage or ():
                self.monitor.warn(f"a damaged checkpoint, which does not count among checkpoint.keep={c.keep}: {problem}")
        except InputError as error:
            self.monitor.warn(f"an old checkpoint cannot be removed: {error}")

    # Preparation

    def _restore(self, nimg: int) -> None:
        folder = checkpoint_folder(self.run_dir, nimg)
        if not folder.is_dir():
            raise InputError(f"rank 0 continues from {folder}, which is not there on {platform.node()}: run.dir must be a "
                             "folder that all nodes share")
        self.state.restore(folder)

    def _check_folder(self) -> None:
        assert self.folder is not None  # runs on rank 0
        self.folder.check()

    def _starting_point(self) -> tuple[int, list[str]]:
        assert self.folder is not None  # runs on rank 0
        return self.folder.starting_point(self.config, self.index.fingerprint)

    def _open_monitor(self) -> Monitor:
        assert self.folder is not None  # runs on rank 0
        m = self.config.monitor
        self.folder.save_config(self.config)
        monitor = Monitor(
            self.run_dir, segment=self.state.segment, resume_nimg=self.state.nimg, total_nimg=self.total,
            config=to_dict(self.config), wandb_project=m.wandb_project or None,
            wandb_mode=m.wandb if self.state.nimg < self.total else "disabled",  # nothing new to record
            wandb_entity=m.wandb_entity or None, wandb_name=m.wandb_name or None,
        )
        monitor.header(header_facts(self.resolved, self.index, self.state, self.engine.describe(),
                                    self.engine.describe_network(), self.no_compile, self.engine.no_graphs))
        for notice in (*self.notices, why_nohup_fails(os.environ)):
            if notice:
                monitor.warn(notice)
        return monitor

    def _open_cache(self, nimg: int) -> NodeCache | None:
        """For the shards that come from elsewhere."""
        d, batch, world_size = self.config.data, self.config.run.batch, self.engine.world_size
        here = [rank for rank, host in enumerate(self.engine.hosts) if host == self.engine.hosts[self.engine.rank]]
        order = order_of(self.index, self.config.run.seed, d.lanes, d.block)
        demand = node_demand(self.index, order, nimg, batch, world_size, here, steps=1 + d.workers * d.prefetch)
        return open_cache(d.cache, d.cache_gb, self.index, demand, claim=self.engine.rank == here[0], verify=d.verify)

    def _open_stream(self) -> BatchStream:
        d = self.config.data
        return BatchStream(
            self.index, seed=self.config.run.seed, lanes=d.lanes, block=d.block, batch=self.batch,
            rank=self.engine.rank, world_size=self.engine.world_size, start=self.state.nimg, mirror=d.mirror,
            workers=d.workers, prefetch=d.prefetch, pin_memory=self.engine.device.type == "cuda",
            cache=self.cache, verify=d.verify,
            timeout=DATA_SHARE * self.config.run.timeout if self.engine.world_size > 1 else self.config.run.timeout,
        )


def crossed(before: int, after: int, every_kimg: float) -> bool:
    """Whether a multiple of `every_kimg` lies in (before, after], counted in images."""
    every = every_kimg * 1000
    return after // every > before // every


def set_arithmetic(config: Config) -> None:
    """Process-wide settings that decide which bits come out."""
    native.select(config.ops.path)
    torch.backends.cuda.matmul.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.deterministic = config.run.deterministic
    torch.backends.cudnn.benchmark = not config.run.deterministic

