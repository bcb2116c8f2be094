"""Results go to the trackers of the run. A training takes them itself at its ticks; afterwards the evaluator does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stylegan_dist.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, InputError
from stylegan_dist.monitor.monitor import give_results
from stylegan_dist.monitor.tracker import Segment
from stylegan_dist.training.checkpoint import list_checkpoints
from stylegan_dist.training.lease import is_owned, read_status
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import load_state
from stylegan_dist.training.setup import shown_config


def forward_results(run_dir: Path, say: Callable[[str], None]) -> None:
    """Give W&B and TensorBoard the results of a run that nobody trains. Failures are warnings. On rank 0.

    Args:
        say: receives a line for people.
    """
    status, checkpoints = read_status(run_dir), list_checkpoints(run_dir)
    if not checkpoints or is_owned(run_dir):
        return
    nimg, folder = checkpoints[-1]
    state = status.state if status else "failed"
    exit_code = {"finished": EXIT_OK, "stopped": EXIT_INTERRUPTED}.get(state, EXIT_FAILURE)
    try:
        config, facts = read_run_config(run_dir), load_state(folder)
    except InputError as error:
        say(f"WARNING: the results are not sent to trackers: {error}")
        return
    shown = shown_config(config, facts.data.fingerprint, facts.origin)
    segment = Segment(run_dir, facts.segment, nimg)
    give_results(segment, config.monitor, shown, exit_code, say, lambda text: say(f"WARNING: {text}"))
