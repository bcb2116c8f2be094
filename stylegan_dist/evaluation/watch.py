"""Follows a run: evaluates its checkpoints as they appear, the newest first, and then those that were passed over."""

from __future__ import annotations

import time
from collections.abc import Callable

from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.evaluate import Evaluator
from stylegan_dist.evaluation.record import Evaluation
from stylegan_dist.training.lease import read_status

LOOK_SECONDS = 10.0      # between two looks for a new checkpoint
IDLE_SECONDS = 86_400.0  # after which a run that does not go on is left alone


def watch(evaluator: Evaluator, tell: Callable[[Evaluation], None], look_seconds: float = LOOK_SECONDS) -> None:
    """Evaluate what has no scores yet, until the run has ended and nothing is left. All ranks must call it.

    A run that was stopped, preempted or killed may go on, so it is waited for, up to a day.

    Args:
        tell: is given each result, on rank 0.
    """
    ranks, refused, changed, before = evaluator.ranks, set[str](), time.monotonic(), object()
    while True:
        def look() -> tuple[int, bool]:
            """The next checkpoint, 0 for none; whether the run has ended."""
            nonlocal changed, before
            status = read_status(evaluator.run_dir)
            if status != before:
                changed, before = time.monotonic(), status
            ended = status is not None and status.state in ("finished", "diverged")
            left = evaluator.unscored(refused)
            return (left[-1] if left else 0), ended or time.monotonic() - changed > IDLE_SECONDS

        nimg, ended = ranks.broadcast(ranks.on_main(look))
        if nimg:
            try:
                found = evaluator.evaluate(nimg)
            except InputError as error:  # a damaged one is no reason to leave out the others
                refused.add(evaluator.digest(nimg))  # after a roll-back there may be a good one of the same number
                evaluator.say(f"WARNING: the checkpoint at {nimg} images is passed over: {error}")
            else:
                if found is not None:
                    tell(found)
        elif ended:
            return
        else:
            time.sleep(look_seconds)
