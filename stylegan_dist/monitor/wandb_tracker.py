"""Weights & Biases as a copy of metrics.jsonl. It works as well as it can and never delays training.

W&B may be slow, unreachable or crash. One background thread with a bounded queue therefore makes every call into it.
`log` and its siblings return at once and cannot raise. The first failure prints one warning. After `MAX_FAILURES` in a
row the tracker turns itself off. No data is lost then, because metrics.jsonl has every record. The end of the run waits
for W&B for a bounded time. After that it kills the processes that W&B has started here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.errors import EXIT_INTERRUPTED, EXIT_OK
from stylegan_dist.files import write_whole
from stylegan_dist.monitor.wandb_choice import choose_mode, description, names_a_secret, user_settings
from stylegan_dist.redact import redact

ID_NAME = "wandb_id"
MAX_FAILURES = 3          # in a row
QUEUE_LENGTH = 256        # calls; when W&B is this far behind, calls are dropped
SERVICE = "wandb-core"    # the process that W&B starts, and that does all of its work
SERVICE_SECONDS = 30.0    # to wait for it at the start, in the background
KILL_SECONDS = 3.0        # in which what is left of W&B goes, once its processes are killed


class WandbTracker:
    """One W&B run for the life of a training run.

    The run id is stored in RUN_DIR/wandb_id, so every restart continues the same run. W&B's own files lie below RUN_DIR/wandb.
    The x-axis of every chart is `nimg`, which is also W&B's step. W&B drops a step below its last one. After a roll-back its
    curves therefore continue where the new segment overtakes the old one.

    Args:
        run_dir: folder of the training run; must exist
        segment: restarts of the run so far, logged as `run/segment`
        config:  how to use W&B. "auto" is online if W&B finds a login for its server, else offline; "online" without one, or
                 with a server that does not answer, becomes offline. What the user has told W&B may make it more
                 private, see `choose_mode`. Secrets in the names of the run are masked, as in its tags and notes
        shown:   nested dict of plain values, shown with the run; secrets in it are masked
        say:     receives one line of information; may be called from another thread
        warn:    receives one line of warning; may be called from another thread
    """

    # Seconds to wait for the server
    init_timeout = 30.0    # at the start, in the background
    finish_timeout = 30.0  # at the end
    early_timeout = 10.0   # at the end of a run that was interrupted or has failed

    def __init__(self, run_dir: Path, segment: int, config: MonitorConfig, shown: dict[str, Any],
                 say: Callable[[str], None], warn: Callable[[str], None]):
        self._run_dir, self._segment, self._config, self._shown = run_dir, segment, config, shown
        self._say, self._warn = say, warn
        self._start_deadline = time.monotonic() + self.init_timeout
        self._run: Any = None     # the W&B run, once it has started
        self._failures = 0        # in a row
        self._warned = False
        self._jobs: queue.Queue = queue.Queue(QUEUE_LENGTH)
        self._on = config.wandb != "disabled"
        self._thread: threading.Thread | None = None
        self._mode: str = config.wandb  # of W&B, "auto" until that is decided
        if not self._on:
            return
        self._others = _service_processes()       # not ours
        self._processes: set[psutil.Process] = set()
        # A daemon: a hung W&B must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="wandb-tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics by name at `nimg` images; calls with the same nimg are merged."""
        row = {**metrics, "nimg": nimg, "run/segment": self._segment}
        self._submit(lambda: self._run.log(row, step=nimg))

    def log_image(self, name: str, path: str | os.PathLike, nimg: int) -> None:
        """Record a PNG file, which must stay until it has been read in the background."""
        def call():
            import wandb

            self._run.log({name: wandb.Image(str(path)), "nimg": nimg, "run/segment": self._segment}, step=nimg)

        self._submit(call)

    def alert(self, title: str, text: str) -> None:
        """Send an alert (mail or chat, as the user's W&B settings say)."""
        self._submit(lambda: self._run.alert(title=title, text=text, level="ERROR"))

    def finish(self, exit_code: int) -> None:
        """Close the run. Later calls do nothing.

        Returns within `finish_timeout` (exit code 0) or `early_timeout` seconds and `KILL_SECONDS`, whatever W&B does.
        A run that ends well soon after its start also gets the rest of `init_timeout`. If the server does not answer, the
        run can then still become an offline record. Afterwards none of W&B's processes is left.
        """
        if self._thread is None:
            return

        def call():
            if exit_code == EXIT_INTERRUPTED:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)

        deadline = time.monotonic() + self.early_timeout
        if exit_code == EXIT_OK:
            deadline = max(time.monotonic(), self._start_deadline) + self.finish_timeout
        thread, self._thread = self._thread, None
        self._find_processes()  # while the service is there to say which children it has
        try:
            with contextlib.suppress(queue.Full):  # then the thread is stuck, and the join finds that out
                for job in (("finish", call), None):
                    if self._on:
                        self._jobs.put(job, timeout=max(0.0, deadline - time.monotonic()))
            thread.join(max(0.0, deadline - time.monotonic()))
        finally:  # also when Ctrl-C ends the wait
            self._on, self._warned = False, True
            if thread.is_alive():
                self._warn(f"W&B did not finish in time and is ended; upload what it has with: {self._sync_command}")
            self._kill_processes()
            thread.join(KILL_SECONDS)

    @property
    def _sync_command(self) -> str:
        folder = self._run_dir / "wandb"
        return f"wandb sync {'--include-online ' if self._mode == 'online' else ''}{folder}/*run-*"

    def _submit(self, call: Callable[[], None]) -> None:
        if not self._on:
            return
        try:
            self._jobs.put_nowait(("logging", call))
        except queue.Full:
            self._warn_once("W&B does not keep up, some records are left out there; metrics.jsonl has all of them")

    def _work(self) -> None:
        """The background thread: start the run, make the calls in order until None comes, disconnect from W&B."""
        try:
            self._start()
        except Exception as error:
            self._turn_off(f"W&B is off, it did not start ({_brief(error)}); metrics.jsonl has everything")
        while self._on and (job := self._jobs.get()) is not None:
            what, call = job
            try:
                call()
                self._failures = 0
            except Exception as error:
                self._failures += 1
                remedy = f"; upload what it lacks with: {self._sync_command}" if what == "finish" else ""
                self._warn_once(f"W&B failed in {what} ({_brief(error)}); metrics.jsonl has everything{remedy}")
                if self._failures >= MAX_FAILURES:
                    self._turn_off(f"W&B is off after {MAX_FAILURES} failures in a row")
        # W&B's finish returns before its service has written the file; the end of the service is the end of that.
        _teardown()

    def _start(self) -> None:
        self._mode, reason = choose_mode(self._config.wandb)
        if self._mode == "disabled":
            self._on = False
            self._say(f"W&B: off ({reason})")
            return
        if self._mode == "offline":
            self._say(f"W&B: recording offline ({reason}), upload with: {self._sync_command}")
        run_id = self._run_id()
        # W&B would quietly move to a temporary folder if this one were not writable.
        folder = self._run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
        if not self._others:  # the service of another process, which may have ended, and which we could not end
            os.environ.pop("WANDB_SERVICE", None)
        try:
            self._run = self._init(run_id)
        except Exception as error:
            if self._mode != "online" or not self._on:
                raise
            self._mode = "offline"
            self._warn_once(f"W&B is out of reach ({_brief(error)}): offline, upload with: {self._sync_command}")
            self._kill_processes()  # the service still holds the id of the run that failed to start
            _teardown()
            self._run = self._init(run_id)
        self._run.define_metric("nimg")
        self._run.define_metric("*", step_metric="nimg")
        self._find_processes()
        if self._mode == "online":
            self._say(f"W&B: {self._run.url} ({reason})")

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
            config=redact(self._shown),
            # Not every version has all of them.
            settings=wandb.Settings(**{name: value for name, value in settings.items() if name in wandb.Settings.model_fields}),
        )

    def _find_processes(self) -> None:
        """Record W&B's processes, because the children of an ended process cannot be found."""
        self._processes |= _service_processes() - self._others

    def _kill_processes(self) -> None:
        """Kill what there is of W&B's service; one that is stopped, too."""
        self._find_processes()
        for process in list(self._processes):
            with contextlib.suppress(psutil.Error):  # gone; psutil kills no other process of the same number
                process.kill()
        self._processes.clear()

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _turn_off(self, text: str) -> None:
        if self._on:  # else the run has ended without us
            self._warn(text)
        self._on = False


def _brief(error: Exception) -> str:
    """An error in one line, without secrets and of bounded length."""
    return " ".join(redact(f"{type(error).__name__}: {error}").split())[:200]


def _service_processes() -> set[psutil.Process]:
    """The services of W&B that this process has started, and their children."""
    found: set[psutil.Process] = set()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has just gone
                if child.name().startswith(SERVICE):
                    found |= {child, *child.children(recursive=True)}
    return found


def _teardown() -> None:
    """Disconnect from W&B's service, dead or alive, so that neither exit hooks nor child processes look for it."""
    # Not an import: there may have been none.
    wandb: Any = sys.modules.get("wandb")
    # A dead service raises here, after W&B has removed its hooks; one that was killed makes W&B want to exit.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
