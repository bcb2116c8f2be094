"""The guard of a run: where training has diverged, it goes back to the last healthy checkpoint, or ends with a post-mortem."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import Diverged
from stylegan_dist.training.checkpoint import newest_healthy, put_aside
from stylegan_dist.training.events import Checkpoint, Event
from stylegan_dist.training.postmortem import NAME, write_postmortem
from stylegan_dist.training.saved import checkpoint_folder
from stylegan_dist.training.setup import Run
from stylegan_dist.training.statistics import WINDOW


class Guard:
    """Decides after each step, on all ranks alike, whether training has diverged. The verdict is read one step late.

    Args:
        checkpoint: the event that saves the state.
        events: all of them; are told when the run has gone back.
    """

    def __init__(self, run: Run, stream: BatchStream, checkpoint: Checkpoint, events: Sequence[Event]):
        self.run, self.stream, self.checkpoint, self.events = run, stream, checkpoint, events
        self._count = run.engine.read_later(run.state.broken_steps.count())  # as after the step before a restart

    def look(self) -> None:
        """To be called once after each step.

        Raises:
            Diverged: why the run cannot go on from here.
        """
        count, limit = self._count(), self.run.config.guard.limit
        self._count = self.run.engine.read_later(self.run.state.broken_steps.count())
        if count > limit:
            raise Diverged(f"{count:.0f} of {WINDOW} steps had losses or gradients that are not finite (guard.limit={limit})")

    def go_back(self, reason: str) -> None:
        """Continue from the last healthy checkpoint, with other draws.

        Raises:
            Diverged: that was done as often as it may be, or there is no such checkpoint. The message names the post-mortem.
        """
        run, state, engine = self.run, self.run.state, self.run.engine
        at, done, most = state.nimg, len(state.rollbacks), run.config.guard.rollbacks
        engine.enter("going back to a checkpoint", at)
        with contextlib.suppress(Diverged):
            self.checkpoint.wait()  # what it writes is of the branch that is abandoned, or is what the run goes back to
        engine.on_main(run.check_folder)
        to = engine.broadcast(engine.on_main(lambda: newest_healthy(run.dir, run.config.checkpoint.every_kimg,
                                                                    run.config.run.batch)))
        if to:
            engine.on_main(lambda: put_aside(run.dir, beyond=to))
        if not to or done >= most:
            why = f"guard.rollbacks={most} is used up" if to else "there is no healthy checkpoint"
            text = f"at {at / 1000:g} kimg {reason}; {why}. {run.dir / NAME} says more, and what to try"
            run.monitor.alert("training has diverged and ends", text)
            write_postmortem(run, self.stream, reason, to)
            raise Diverged(f"training has diverged: {text}")
        engine.together(lambda: state.go_back(checkpoint_folder(run.dir, to), reason))
        engine.on_main(lambda: run.monitor.go_back(to))
        for one in (self.stream, *([run.held_out] if run.held_out else ())):
            one.go_to(to)
        self._count = engine.read_later(state.broken_steps.count())
        run.timer.take()
        run.report(nimg=to, checkpoint=to)
        for event in self.events:
            event.gone_back()
        run.monitor.alert("training has diverged", f"at {at / 1000:g} kimg {reason}; going back to {to / 1000:g} kimg with "
                                                   f"other draws (roll-back {done + 1} of {most})")

