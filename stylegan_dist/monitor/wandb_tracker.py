"""Weights & Biases as a copy of metrics.jsonl: best effort, never in the way of training.

W&B may be slow, unreachable, or die under us. So every call into it is made by one background thread with a bounded
queue: `log` and its sisters return at once, and cannot raise. The first failure prints one warning; after
`MAX_FAILURES` in a row the tracker turns itself off. Nothing is lost then: metrics.jsonl has every record.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stylegan_dist.errors import EXIT_INTERRUPTED
from stylegan_dist.files import write_whole
from stylegan_dist.monitor.redact import redact

MODES = ("auto", "online", "offline", "disabled")
ID_NAME = "wandb_id"
MAX_FAILURES = 3          # in a row
QUEUE_LENGTH = 256        # calls; when W&B is this far behind, calls are dropped
DEFAULT_HOST = "https://api.wandb.ai"


class WandbTracker:
    """One W&B run for the life of a training run.

    The run id is kept in RUN_DIR/wandb_id, so every restart continues the same run; W&B's own files lie below
    RUN_DIR/wandb. The x-axis of every chart is `nimg`, which is also W&B's step. W&B drops a step below the last one
    it has, so after a roll-back its curves continue where the new segment overtakes the old one.

    Args:
        run_dir:  folder of the training run; must exist
        mode:     "online", "offline", "disabled", or "auto": WANDB_MODE if set, else online if there is an API key,
                  else offline. Online without a key, or with a server that does not answer, becomes offline.
        project, entity, name: where the run is listed; None: W&B's own defaults and environment variables
        config:   nested dict of plain values, shown with the run; secrets in it are masked
        segment:  restarts of the run so far, logged as `run/segment`
        say:      receives one line of information; may be called from another thread
        warn:     receives one line of warning; may be called from another thread
        init_timeout, finish_timeout: seconds to wait for the server at the start (in the background) and at the end

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        mode: str,
        project: str | None,
        entity: str | None,
        name: str | None,
        config: dict,
        segment: int,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        init_timeout: float = 30.0,
        finish_timeout: float = 30.0,
    ):
        if mode not in MODES:
            raise ValueError(f"W&B mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._run_dir = Path(run_dir)
        self._settings = {"project": project, "entity": entity, "name": name, "config": redact(config)}
        self._segment = segment
        self._say, self._warn = say, warn
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self._start_deadline = time.monotonic() + init_timeout
        self._run: Any = None     # the W&B run, once it has started
        self._failures = 0        # in a row
        self._warned = False
        self._jobs: queue.Queue = queue.Queue(QUEUE_LENGTH)
        self._on = True
        self._thread: threading.Thread | None = None
        self.mode, reason = resolve_mode(mode)
        if self.mode == "disabled":
            self._on = False
            return
        if self.mode == "offline":
            say(f"W&B: recording offline ({reason}), upload with: {self._sync_command}")
        # A daemon: a hung W&B must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="wandb-tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics by name at `nimg` images; calls with the same nimg are merged."""
        row = {**metrics, "nimg": nimg, "run/segment": self._segment}
        self._submit(lambda: self._run.log(row, step=nimg))

    def log_images(self, paths: dict[str, str | os.PathLike], nimg: int) -> None:
        """Record pictures: name -> PNG file, which must stay until it has been read in the background."""
        def call():
            import wandb

            row = {name: wandb.Image(str(path)) for name, path in paths.items()}
            self._run.log({**row, "nimg": nimg, "run/segment": self._segment}, step=nimg)

        self._submit(call)

    def alert(self, title: str, text: str) -> None:
        """Send an alert (mail or chat, as the user's W&B settings say)."""
        self._submit(lambda: self._run.alert(title=title, text=text, level="ERROR"))

    def finish(self, exit_code: int) -> None:
        """Close the run. Later calls do nothing.

        Returns within `finish_timeout` seconds, whatever W&B does; a run that has only just begun also gets the rest
        of `init_timeout`, so that a server which does not answer can still become an offline record.
        """
        if self._thread is None:
            return

        def call():
            if exit_code == EXIT_INTERRUPTED:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)

        deadline = max(time.monotonic(), self._start_deadline) + self._finish_timeout
        if self._on:
            with contextlib.suppress(queue.Full):  # then the thread is stuck, and the join finds that out
                for job in (("finish", call), None):
                    self._jobs.put(job, timeout=max(0.0, deadline - time.monotonic()))
        thread, self._thread = self._thread, None
        thread.join(max(0.0, deadline - time.monotonic()))
        self._on = False
        if thread.is_alive():
            self._warn(f"W&B did not finish in time and is left behind; upload with: {self._sync_command}")
            _kill_service()

    @property
    def _sync_command(self) -> str:
        folder = self._run_dir / "wandb"
        return f"wandb sync {'--include-online ' if self.mode == 'online' else ''}{folder}/*run-*"

    def _submit(self, call: Callable[[], None]) -> None:
        if not self._on:
            return
        try:
            self._jobs.put_nowait(("logging", call))
        except queue.Full:
            self._warn_once("W&B does not keep up, some records are left out there; metrics.jsonl has all of them")

    def _work(self) -> None:
        """The background thread: start the run, make the calls in order until None comes, let go of W&B."""
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
                self._warn_once(f"W&B failed in {what} ({_brief(error)}); metrics.jsonl has everything")
                if self._failures >= MAX_FAILURES:
                    self._turn_off(f"W&B is off after {MAX_FAILURES} failures in a row")
        # W&B's own finish returns before its service has written the file; the end of the service is the end of that.
        _teardown()

    def _start(self) -> None:
        run_id = stable_run_id(self._run_dir)
        # W&B would quietly move to a temporary folder if this one were not writable.
        folder = self._run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
        try:
            self._run = self._init(run_id)
        except Exception as error:
            if self.mode != "online" or not self._on:
                raise
            self.mode = "offline"
            self._warn_once(f"W&B is out of reach ({_brief(error)}): offline, upload with: {self._sync_command}")
            _teardown()  # the service still holds the id of the run that failed to start
            self._run = self._init(run_id)
        self._run.define_metric("nimg")
        self._run.define_metric("*", step_metric="nimg")
        if self.mode == "online":
            self._say(f"W&B: {self._run.url}")

    def _init(self, run_id: str):
        import wandb  # here, so that a run without W&B neither needs nor loads it

        return wandb.init(
            dir=self._run_dir,
            mode=self.mode,  # type: ignore[arg-type]
            id=run_id,
            resume="allow",
            reinit="create_new",       # never a run that someone else began in this process
            allow_val_change=True,     # a restart may have changed the config
            settings=wandb.Settings(
                init_timeout=self._init_timeout,
                x_service_wait=self._init_timeout,
                finish_timeout=self._finish_timeout * 0.75,  # before we give up on the whole of it
                console="off",         # it would wrap stdout, against the progress bar; log.txt has the lines
                silent=True,
                # The metadata holds the command line, where overrides may carry secrets.
                x_disable_meta=redact(sys.argv) != sys.argv,
            ),
            **self._settings,
        )

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _turn_off(self, text: str) -> None:
        self._on = False
        self._warn(text)


def resolve_mode(mode: str) -> tuple[str, str]:
    """The mode to use ("online", "offline" or "disabled") for one of `MODES`, and the reason in a few words."""
    reason = "as configured"
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "").lower()
        mode = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}.get(wanted, "online")
        reason = "WANDB_MODE"
    # Without a key W&B would ask for one on the terminal, and wait.
    if mode == "online" and not has_api_key():
        return "offline", "no API key found, see wandb login"
    return mode, reason


def has_api_key() -> bool:
    """Whether credentials for the W&B host are in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, places):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            return netrc.netrc(path).authenticators(urlsplit(_base_url()).netloc) is not None
    return False


def _base_url() -> str:
    """WANDB_BASE_URL, else what `wandb login --host` stored, else the public server."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    settings = configparser.ConfigParser()
    try:
        settings.read(Path(folder) / "settings")
        return settings.get("default", "base_url", fallback=DEFAULT_HOST)
    except configparser.Error:
        return DEFAULT_HOST


def stable_run_id(run_dir: Path) -> str:
    """The id in RUN_DIR/wandb_id, written once; a new one if there is none.

    Raises:
        OSError: the file cannot be read or written.
    """
    path = run_dir / ID_NAME
    if path.exists() and (stored := path.read_text().strip()):
        return stored
    run_id = secrets.token_hex(4)
    write_whole(path, run_id + "\n")
    return run_id


def _brief(error: Exception) -> str:
    """The first line of an error, without secrets and of bounded length."""
    first = (str(error).splitlines() or [""])[0]
    return redact(f"{type(error).__name__}: {first}")[:200]


def _teardown() -> None:
    """Let go of W&B's service, dead or alive, so that neither exit hooks nor child processes look for it."""
    # Not an import: the background thread may be stuck in that very import.
    wandb: Any = sys.modules.get("wandb")
    with contextlib.suppress(Exception):  # a dead service raises here, after W&B has removed its hooks
        wandb.teardown()


def _kill_service() -> None:
    """Kill the service process that W&B started: at exit Python would wait for a hung one without a limit.

    W&B has no public handle on the process. If a later version keeps it elsewhere, nothing happens here.
    """
    wandb: Any = sys.modules.get("wandb")
    try:
        os.kill(wandb.setup()._connection._proc._process.pid, signal.SIGKILL)
    except Exception:
        return
    _teardown()
