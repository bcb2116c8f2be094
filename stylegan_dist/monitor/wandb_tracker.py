"""Weights & Biases as a copy of the record of a run. It works as well as it can and never delays training.

The end of the run waits for W&B for a bounded time. After that it kills the processes that W&B has started here.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.errors import EXIT_INTERRUPTED, EXIT_OK
from stylegan_dist.files import write_whole
from stylegan_dist.monitor.histograms import Histogram
from stylegan_dist.monitor.history import SOUND_SUFFIX
from stylegan_dist.monitor.tracker import Segment, Tracker, brief
from stylegan_dist.monitor.wandb_choice import choose_mode, description, names_a_secret, user_settings
from stylegan_dist.monitor.wandb_service import Service, disconnect
from stylegan_dist.redact import redact
from stylegan_dist.scores_file import Evaluation, Score

ID_NAME = "wandb_id"
FOLDER = "wandb"
SERVICE_SECONDS = 30.0    # to wait for W&B's service at the start, in the background


class WandbTracker(Tracker):
    """One W&B run for the life of a training run.

    The run id is stored in RUN_DIR/wandb_id, so every restart continues the same run. W&B's own files lie below RUN_DIR/wandb.
    The x-axis of every chart is `nimg`, which is also W&B's step; that of `eval/*` is `eval/nimg`. W&B's step can only grow.

    A start whose W&B run is empty gives it the whole history of the training run. So does each offline start, and an offline
    run that goes back: W&B begins a new file then, and the newest file alone is the whole run. An online run that is continued
    gets what the server lacks. After a roll-back its curves continue where the run overtakes what the server has.

    Args:
        config:  how to use W&B. "auto" is online if W&B finds a login for its server, else offline; "online" without one, or
                 with a server that does not answer, becomes offline. What the user has told W&B may make it more
                 private, see `choose_mode`. Secrets in the names of the run are masked, as in its tags and notes
        others: see `Tracker`.
    """

    TITLE = "W&B"
    init_timeout = 30.0    # seconds to wait for the server at the start, in the background

    def __init__(self, segment: Segment, config: MonitorConfig, shown: Mapping[str, Any], say: Callable[[str], None],
                 warn: Callable[[str], None]):
        super().__init__(segment, FOLDER, shown, say, warn)
        self._config = config
        self._start_deadline = time.monotonic() + self.init_timeout
        self._run: Any = None               # the W&B run, once it has started
        self._mode: str = config.wandb      # of W&B, "auto" until that is decided
        self._step = -1                     # W&B's last one
        self._server_step = -1              # that the server had at the start
        self._scores: deque[tuple[Evaluation, Mapping[str, Score]]] = deque()  # that wait for a free step
        self._defined: set[str] = set()     # scores whose charts and best values W&B knows
        self._service = Service()
        self._open(config.wandb != "disabled")

    def _deadline(self, exit_code: int) -> float:
        """`finish_timeout` (exit code 0) or `early_timeout` from now.

        A run that ends well soon after its start also gets the rest of `init_timeout`. If the server does not answer, the
        run can then still become an offline record.
        """
        if exit_code == EXIT_OK:
            return max(time.monotonic(), self._start_deadline) + self.finish_timeout
        return time.monotonic() + self.early_timeout

    def _before_end(self) -> None:
        self._service.find()  # while it is there to say which children it has

    def _kill(self) -> None:
        self._service.kill()  # afterwards none of W&B's processes is left

    def _close(self) -> None:
        # W&B's finish returns before its service has written the file; the end of the service is the end of that.
        disconnect()

    def _end(self, exit_code: int) -> None:
        while self._scores:
            self._log_score(self._step + 1)
        if exit_code == EXIT_INTERRUPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)

    def _remedy(self) -> str:
        return f"; upload what it has with: {self._sync_command}"

    @property
    def _sync_command(self) -> str:
        """Uploads the newest file of this run."""
        # Before there is a run, the newest is that of the start before, if there was one.
        place = self._run.settings.sync_dir if self._run is not None else self._folder / "latest-run"
        return f"wandb sync {'--include-online ' if self._mode == 'online' else ''}{place}"

    # Start

    def _start(self) -> None:
        self._mode, reason = choose_mode(self._config.wandb)
        if self._mode == "disabled":
            self._on = False
            self._say(f"W&B: off ({reason})")
            return
        run_id = self._run_id()
        self._claim()  # W&B would quietly move to a temporary folder if this one were not writable
        if not self._service.others:  # the service of another process, which may have ended, and which we could not end
            os.environ.pop("WANDB_SERVICE", None)
        try:
            self._run = self._init(run_id)
        except Exception as error:
            if self._mode != "online" or not self._on:
                raise
            self._mode = "offline"
            self._service.kill()  # it still holds the id of the run that failed to start
            disconnect()
            self._run = self._init(run_id)
            self._warn_once(f"W&B is out of reach ({brief(error)}): offline, upload with: {self._sync_command}")
        else:
            self._say(f"W&B: {self._run.url} ({reason})" if self._mode == "online" else
                      f"W&B: recording offline ({reason}), upload with: {self._sync_command}")
        self._service.find()
        self._begin()

    def _begin(self) -> None:
        """Say what the charts are over, and give W&B the history that it lacks."""
        run, self._scores = self._run, deque()
        run.define_metric("nimg")
        run.define_metric("*", step_metric="nimg")
        run.define_metric("eval/nimg")
        run.define_metric("eval/*", step_metric="eval/nimg")
        self._defined = set()
        self._server_step = run.starting_step - 1 if run.resumed else -1
        self._step = self._row_at = self._server_step
        if self._server_step < 0:
            self._results.forget()
        self._give_history(self._server_step)

    def _run_id(self) -> str:
        """The id in RUN_DIR/wandb_id, written once; if there is none, the one that the user has told W&B, or a new one."""
        wanted = user_settings().run_id
        wanted = wanted if redact(wanted) == wanted else None
        path = self._run_dir / ID_NAME
        stored = path.read_text().strip() if path.exists() else ""
        if not stored:
            stored = wanted or secrets.token_hex(4)
            write_whole(path, stored + "\n")
        elif wanted and wanted != stored:
            self._say(f"W&B: the run keeps its id {stored} ({ID_NAME}); WANDB_RUN_ID is for its first start")
        return stored

    def _init(self, run_id: str):
        import wandb  # here, so that a run without W&B neither needs nor loads it

        settings = {
            **description(user_settings(), self._run_dir.resolve().name, self._config),
            "init_timeout": self.init_timeout,
            "x_service_wait": SERVICE_SECONDS,
            "finish_timeout": self.finish_timeout * 0.75,  # before we give up on the whole of it
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": 2.0,        # seconds that a kill may cost; W&B's own: 15
            "console": "off",   # it would wrap stdout, against the progress bar; log.txt has the lines
            "silent": True,
            # The metadata holds the command line, where overrides may carry secrets, and all of SLURM_*.
            "x_disable_meta": names_a_secret(sys.argv),
        }
        return wandb.init(
            dir=self._run_dir,
            mode=self._mode,  # type: ignore[arg-type]
            id=run_id,
            resume="allow",
            reinit="create_new",       # never a run that someone else began in this process
            allow_val_change=True,     # a restart may have changed the config
            config=self._about(),
            # Not every version has all of them.
            settings=wandb.Settings(**{name: value for name, value in settings.items() if name in wandb.Settings.model_fields}),
        )

    # Records

    def _write(self, values: Mapping[str, Any], nimg: int) -> None:
        """Add to the row at `nimg` images, unless W&B has rows beyond already, which it would not take it behind."""
        if nimg > self._server_step and nimg >= self._step:
            self._run.log({**values, "nimg": nimg}, step=nimg)
            self._step = nimg

    def _write_row(self, metrics: Mapping[str, float], nimg: int, segment: int, when: float | None) -> None:
        while self._scores and self._step + 1 < nimg:  # the steps between two rows are free
            self._log_score(self._step + 1)
        self._write({**metrics, "run/segment": segment, **({"_timestamp": when} if when is not None else {})}, nimg)

    def _write_picture(self, name: str, path: Path, nimg: int, clip: bool) -> None:
        import wandb

        media: Any = wandb.Audio if path.suffix == SOUND_SUFFIX else wandb.Video if clip else wandb.Image
        self._write({name: media(str(path))}, nimg)

    def _write_histogram(self, name: str, histogram: Histogram, nimg: int) -> None:
        import wandb

        self._write({name: wandb.Histogram(np_histogram=(np.array(histogram.counts), histogram.edges))}, nimg)

    def _write_score(self, one: Evaluation, scores: Mapping[str, Score]) -> None:
        self._scores.append((one, scores))

    def _log_score(self, step: int) -> None:
        one, scores = self._scores.popleft()
        values = {f"eval/{name}": score.value for name, score in scores.items()}
        errors = {f"eval/{name}_error": score.error for name, score in scores.items() if score.error is not None}
        for name in (values.keys() | errors.keys()) - self._defined:
            score = scores.get(name.removeprefix("eval/"))  # None: the name of an error, of which there is no best
            best = score and ("min,last" if score.lower_is_better else "max,last")
            self._run.define_metric(name, step_metric="eval/nimg", summary=best)
            self._defined.add(name)
        self._run.log({**values, **errors, "eval/nimg": one.nimg}, step=step)
        self._step = step

    def _write_checkpoint(self, folder: Path, nimg: int) -> None:
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="checkpoint", metadata={"nimg": nimg})
        artifact.add_reference(folder.resolve().as_uri(), checksum=False)  # it has checksums of its own
        self._run.log_artifact(artifact, aliases=["latest", f"nimg-{nimg}"])

    def _write_alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text, level="ERROR")

    def _go_back(self, nimg: int) -> None:
        if self._mode == "offline":  # a new file, without what is abandoned
            run_id = self._run.id
            self._run.finish(exit_code=0)
            self._run = self._init(run_id)
            self._say(f"W&B: a new offline record without what is abandoned, upload with: {self._sync_command}")
            self._begin()
