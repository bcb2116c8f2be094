"""The training loop: a batch, a step with its phases and the average, and then the events that are due.

`training/setup.py` prepares a run, `training/step.py` has one phase, `training/events.py` the events.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylegan_dist.config import Config
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.stream import LOOK_SECONDS, BatchStream
from stylegan_dist.engine import Engine
from stylegan_dist.errors import Diverged, InputError, Interrupted, LocalInputError, LocalInterrupted, RankLost
from stylegan_dist.last_word import say_line
from stylegan_dist.machine import available_memory
from stylegan_dist.monitor.monitor import Monitor, NullMonitor
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ranks import host_name
from stylegan_dist.training.compiled import compile_networks
from stylegan_dist.training.events import Checkpoint, Event, Pictures, Samples, Tick, count_replaced, is_due, save_reals
from stylegan_dist.training.guard import Guard
from stylegan_dist.training.interruption import StopRequest, end_with_launcher, remove_stop_file
from stylegan_dist.training.memory import is_out_of_memory, propose_batch_gpu
from stylegan_dist.training.plan import load_index_of
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.setup import Run, open_run
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches, run_phase
from stylegan_dist.training.timing import PhaseTimer

STOP_SECONDS = 10.0  # that one of several ranks waits for data after a request to stop; there may be 30 until it is killed


MoreEvents = Callable[[Run, Checkpoint, Callable[[], bool]], tuple[Event, ...]]


def no_events(run: Run, checkpoint: Checkpoint, stop: Callable[[], bool]) -> tuple[Event, ...]:
    return ()


def train(config: Config, more_events: MoreEvents = no_events) -> None:
    """Train, or continue, the run that `config` describes, until it has seen `run.kimg`.

    Args:
        more_events: makes events that come after those of this package, from the run, the event that saves checkpoints, and a
            function that says whether this rank was asked to stop. All ranks call it.
    Raises:
        InputError: configuration, data or launch are wrong.
        Interrupted: the run was asked to stop and has saved its state.
    """
    end_with_launcher()
    engine = Engine(config.run)
    failure, free = None, available_memory(engine.device, engine.local_world_size)
    try:
        train_on(engine, config, more_events)
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
        resolved = resolve(config, index, engine.world)
        proposal = propose_batch_gpu(resolved, index, engine.world_size, engine.device.type, free, engine.choice)
        raise LocalInputError(f"out of memory ({failure}); {proposal}")
    # Where one rank fails alone, leaving the process group would wait for the others, which wait for this rank.
    engine.close()


def train_on(engine: Engine, config: Config, more_events: MoreEvents = no_events) -> None:
    """The part of `train` that needs networks; they are gone when it returns."""
    with open_run(config, engine) as run:
        if run.stream is not None:
            run_loop(run, run.stream, more_events)
        else:
            run.monitor.line(f"finished before, at {run.state.nimg / 1000:g} kimg; set run.kimg higher to go on")


def run_loop(run: Run, stream: BatchStream, more_events: MoreEvents = no_events) -> None:
    """From the starting point to the end of the run, or until it is asked to stop."""
    state, engine = run.state, run.engine
    checkpoint, samples = Checkpoint(run), Samples(run)
    with StopRequest(run.dir if engine.is_main else None, run.until) as stop:
        if state.nimg == 0:
            engine.on_main(lambda: save_reals(run))
            samples.happen()
        held_out = run.held_out
        for one in (stream, *([held_out.stream] if held_out else ())):
            one.tell = functools.partial(tell_late, engine, run.monitor)
        pictures = [Pictures(run)] if run.config.monitor.pictures_kimg else []
        events: tuple[Event, ...] = (Tick(run, stream), checkpoint, samples, *pictures,
                                     *more_events(run, checkpoint, lambda: stop.requested))
        guard = Guard(run, stream, checkpoint, events)
        run.report(state="running")
        asked = None  # says whether any rank had been asked to stop in the step before
        while state.nimg < run.total:
            before = state.nimg
            try:
                engine.enter("waiting for data", before, step=True)
                needed = [stream, held_out.stream] if held_out and held_out.due(before) else [stream]
                if not wait_for_data(needed, stop, engine.world_size > 1):
                    stop_without_data(run, stream, checkpoint, stop)
                batch, others = next(stream), held_out.after(before) if held_out else None
                engine.enter("training", before, step=True)
                stopping = step(run, batch, stop.requested, others)
                run.monitor.progress(state.nimg)
                interrupted, asked = asked is not None and asked() > 0, stopping

                guard.look()
                last = state.nimg >= run.total
                due = [event for event in events if is_due(event, before, state.nimg, last, interrupted)]
                if due:
                    engine.enter("reporting", state.nimg)
                    engine.on_main(run.check_folder)
                    checkpoint.look()
                    count_replaced(run, stream)
                for event in due:
                    event.happen()
                if last or interrupted:
                    checkpoint.wait()
            except Diverged as error:
                guard.go_back(str(error))
                continue
            if interrupted and not last:
                end_on_request(run, checkpoint, stop)
    if checkpoint.failed:
        raise InputError("the run ended, but its last checkpoint could not be saved (see the warning above): make "
                         "room and run the same command again")
    run.monitor.line(f"finished at {state.nimg / 1000:g} kimg; samples: {samples.path}")


def step(run: Run, batch: Batch, stop_requested: bool, held_out: Batch | None) -> Callable[[], float]:
    """Train both networks on one global batch; returns a function that tells how many ranks want to stop."""
    device, run.batch = run.engine.device, batch
    parts = micro_batches(batch, run.config.run.batch_gpu, run.resolved.conditional, device, run.index.kind, held_out)
    if run.to_compile:
        run.monitor.line(compile_networks(run.state, run.engine, run.to_compile, parts[0]))
        run.to_compile = ()
    stop = torch.full((), float(stop_requested), device=device)
    return run.engine.read_later(train_networks(run.state, parts, stop, run.timer, run.monitor.warn))


def train_networks(state: TrainState, parts: list[MicroBatch], stop: Tensor, timer: PhaseTimer,
                   warn: Callable[[str], None]) -> Tensor:
    """All phases of a step, and the average. Waits for nothing that the device computes.

    Args:
        parts: this rank's part of the global batch.
        stop: 1 if this rank wants to stop, else 0; on the device.
        warn: is told what a person should hear.
    Returns: `stop`, summed over the ranks, on the device.
    """
    batch, skips = state.config.run.batch, state.config.guard.nonfinite == "skip"
    broken = []
    state.follow_schedules()
    for phase in state.phases:
        if state.nimg // batch % phase.interval == 0:
            with timer(phase.name):
                result = run_phase(state, phase, parts, {"stop": stop})
            stopping = result.counts["stop"]
            if result.notice:
                warn(result.notice)
            suffix = phase.name.removesuffix("_main")
            state.statistics.add({**result.statistics, f"grad_norm/{suffix}": result.gradient_norm})
            counts = {f"grad_nonfinite/{phase.network}": result.nonfinite}
            if skips:
                counts["guard/skipped"] = torch.full_like(result.gradient_norm, result.skipped)
            state.statistics.add(counts, mean=False)
            broken.append(result.broken())
    state.broken_steps.add(broken)
    state.ema.update(state.generator, state.nimg, batch)
    state.nimg += batch
    return stopping


# Waiting for data, and requests to stop

def wait_for_data(needed: Sequence[BatchStream], stop: StopRequest, patient: bool) -> bool:
    """Wait for the next batch; returns whether it is there. If it is not, the run is asked to stop.

    Args:
        needed: all must have one.
        patient: wait a little longer then, as the other ranks need this one to save their state.
    """
    asked = None  # when
    while not all(stream.ready(LOOK_SECONDS) for stream in needed):
        if stop.requested:
            asked = asked or time.monotonic()
            if not patient or time.monotonic() - asked > STOP_SECONDS:
                return False
    return True


def tell_late(engine: Engine, monitor: Monitor | NullMonitor, text: str) -> None:
    """Report that data is late, on the rank that waits for it. The other ranks read it there."""
    engine.describe_stage(text)
    if engine.is_main:
        monitor.warn(text)
    else:
        say_line(f"WARNING: rank {engine.rank} ({host_name()}): {text}")


def stop_without_data(run: Run, stream: BatchStream, checkpoint: Checkpoint, stop: StopRequest) -> None:
    """End on request before there is another batch."""
    if run.engine.world_size > 1:  # the others are in the middle of a step
        text = (f"rank {run.engine.rank} ({host_name()}) stopped on request without saving the state, as it has no data: "
                f"{stream.describe_wait()}; the same command continues from the last checkpoint")
        run.monitor.line(text)
        raise LocalInterrupted(text, shown=run.engine.is_main)
    checkpoint.wait()
    if run.state.nimg > checkpoint.nimg:  # this is the state after a whole step
        count_replaced(run, stream)
        checkpoint.happen()
    end_on_request(run, checkpoint, stop)


def end_on_request(run: Run, checkpoint: Checkpoint, stop: StopRequest) -> None:
    """End after the state was saved; there may be only seconds left."""
    checkpoint.wait()
    if checkpoint.failed:
        raise InputError("stopped on request, but the state could not be saved (see the warning above); the run will "
                         "continue from its last whole checkpoint")
    reason = f" ({stop.reason})" if stop.reason else ""
    text = f"stopped on request at {run.state.nimg / 1000:g} kimg{reason}; the same command continues"
    run.monitor.line(text)
    if run.engine.is_main:
        remove_stop_file(run.dir)
    raise Interrupted(text, shown=True, then=stop.then)
