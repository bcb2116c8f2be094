"""Scores inside a training: an event of its loop, on all ranks. Training waits meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.evaluate import EvaluateOptions, Evaluator, describe
from stylegan_dist.evaluation.record import alone
from stylegan_dist.evaluation.samples import Stopped
from stylegan_dist.training.checkpoint import passes
from stylegan_dist.training.events import Checkpoint, Event
from stylegan_dist.training.setup import Run


def evaluation_events(run: Run, checkpoint: Checkpoint, stop: Callable[[], bool]) -> tuple[Event, ...]:
    """The events that `evaluate.every_kimg` asks for. All ranks must call it.

    Args:
        stop: whether this rank was asked to stop.
    Raises:
        InputError: what the scores need is not there.
    """
    return (Scores(run, checkpoint, stop),) if run.config.evaluate.every_kimg else ()


class Scores(Event):
    """The state is saved, and its checkpoint is scored as `stylegan-dist evaluate` does it, to the last bit.

    What goes wrong is a warning. A run that is asked to stop does not wait for samples. The scores of samples that are all
    drawn are computed first. A checkpoint whose evaluation was cut off is scored when the run continues from it.
    """

    before_stop = "never"

    def __init__(self, run: Run, checkpoint: Checkpoint, stop: Callable[[], bool]):
        self.run, self.checkpoint, self.every_kimg = run, checkpoint, run.config.evaluate.every_kimg
        self.evaluator = Evaluator(run.dir, EvaluateOptions(), run.engine, run.monitor.line, stop)
        nimg = run.state.nimg
        if nimg and passes(self.every_kimg, nimg - run.config.run.batch, nimg):
            self._evaluate()

    def happen(self) -> None:
        self.checkpoint.wait()
        if self.checkpoint.nimg != self.run.state.nimg:
            self.checkpoint.happen()
            self.checkpoint.wait()
        if not self.checkpoint.failed:
            self._evaluate()

    def _evaluate(self) -> None:
        run, evaluator, nimg, ranks = self.run, self.evaluator, self.run.state.nimg, self.run.engine
        ranks.enter("computing scores", nimg)
        try:
            with contextlib.ExitStack() as held:
                ranks.on_main(lambda: held.enter_context(alone(run.dir)))
                known = ranks.broadcast(ranks.on_main(lambda: evaluator.known(nimg) is not None))
                if not known and (found := evaluator.evaluate(nimg)):
                    run.monitor.line(f"{describe(found)}\n{evaluator.best()}")
        except Stopped:
            run.monitor.line(f"no scores at {nimg / 1000:g} kimg before the run continues: it was asked to stop")
        except InputError as error:
            run.monitor.warn(f"no scores at {nimg / 1000:g} kimg: {error}; training goes on")
