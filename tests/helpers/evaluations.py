"""Lines of evaluation.jsonl, as an evaluator leaves them."""

from __future__ import annotations

from stylegan_dist.evaluation.record import add_evaluation
from stylegan_dist.scores_file import Evaluation, Score


def add_scores(run_dir, nimg: int, digit: str = "a", time: float = 0.0, **scores: float | tuple[float, float]) -> None:
    """Scores of the checkpoint at `nimg` images, by name: values, or values and their errors.

    Args:
        digit: tells checkpoints with equally many images apart.
    """
    every = {name: Score(*(value if isinstance(value, tuple) else (value,)), lower_is_better=name.startswith(("fd", "kid")))
             for name, value in scores.items()}
    add_evaluation(run_dir, Evaluation(1, nimg, digit * 64, "efficientnet-lite0", "0" * 64, 1000, 0, "data", 1.0, time, every))
