"""Lines for people: on the terminal, and with a time stamp in RUN_DIR/log.txt."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from stylegan_dist.environment import takes_output
from stylegan_dist.files import is_at, open_log

# What a status line shows after the progress, in this order: metric, how it is written.
STATUS_FIELDS = (
    ("time/img_per_sec", "img/s {:<7.1f}"),
    ("time/sec_per_kimg", "sec/kimg {:<7.2f}"),
    ("loss/g_main", "G {:<7.3f}"),
    ("loss/d_main", "D {:<7.3f}"),
    ("loss/r1", "r1 {:<8.2g}"),
    ("logits/real", "real {:<+7.2f}"),
    ("logits/fake", "fake {:<+7.2f}"),
    ("augment/p", "p {:<5.3f}"),
    ("grad_norm/g", "|g| G {:<8.2g}"),
    ("grad_norm/d", "|g| D {:<8.2g}"),
    ("time/data_wait", "wait {:<4.0%}"),
    ("memory/peak_gib", "GiB {:<6.1f}"),
)
NONFINITE_PREFIX = "grad_nonfinite/"
TROUBLE_FIELDS = (  # shown at the end unless zero
    ("guard/skipped", "!! SKIPPED UPDATES: {:.0f} !!"),
    ("guard/rollbacks", "roll-backs {:.0f}"),
)


class Console:
    """Prints to the terminal (stdout) and appends to `log_path`. Neither can stop training.

    If the log cannot be written, the terminal shows one warning. Every later line is tried again, because a full disk may be
    cleared. If the terminal goes away (a closed pipe, a lost ssh session), only the log continues.
    All methods may be called from any thread.

    Args:
        log_path:   file to append to; its folder must exist
        total_nimg: images to see in the whole run
    """

    def __init__(self, log_path: Path, total_nimg: int):
        self._log_path = log_path
        self._total_nimg = total_nimg
        self._stream = sys.stdout
        self._lock = threading.RLock()
        self._log: BinaryIO | None = None
        self._log_warned = False
        self._stream_lost = False
        self._bar_wanted = self._stream.isatty()
        self._bar: tqdm | None = None

    def line(self, text: str) -> None:
        """Print text; each of its lines gets a time stamp in the log."""
        with self._lock:
            self._print(text)
            self._append(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.line(f"WARNING: {text}")

    def note(self, text: str) -> None:
        """Write text to the log alone, if that is still there."""
        with self._lock, contextlib.suppress(OSError):
            if self._log is not None and is_at(self._log, self._log_path):
                self._append(text)

    def header(self, facts: list[tuple[str, str]]) -> None:
        """Print (name, value) pairs in two aligned columns."""
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            self.line(f"  {name:<{width}}   {value}".rstrip())

    def progress(self, nimg: int) -> None:
        """Move the progress bar; free of cost without a terminal, so the loop may call it every step."""
        if not self._bar_wanted:
            return
        with self._lock:
            try:
                if self._bar is None:
                    # Opened at the first call: after a resume the rate must not count the images of an earlier process.
                    self._bar = tqdm(
                        initial=nimg, total=self._total_nimg, file=self._stream,
                        unit="img", unit_scale=True, dynamic_ncols=True, leave=False,
                    )
                self._bar.update(nimg - self._bar.n)
            except (OSError, ValueError):
                self._bar_wanted = False

    def close(self) -> None:
        """Take the progress bar away and close the log."""
        with self._lock:
            if self._bar is not None:
                with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                    self._bar.close()
            self._bar, self._bar_wanted = None, False
            self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _print(self, text: str) -> None:
        if self._stream_lost or not takes_output(self._stream):  # the log has it; training does not wait for a reader
            return
        try:
            # A terminal of another encoding must not turn a run's name into an error.
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            tqdm.write(text.encode(encoding, "replace").decode(encoding), file=self._stream)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._stream_lost = True
            self._bar_wanted = False

    def _append(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""])
        try:
            if self._log is None or not is_at(self._log, self._log_path):  # deleted or replaced: lines would go to nowhere
                self._close_log()
                self._log = open_log(self._log_path)
            self._log.write(lines.encode("utf-8", "replace"))
        except OSError as error:
            if not self._log_warned:
                self._log_warned = True
                self._print(f"WARNING: {self._log_path} cannot be written ({error}); training goes on without it")


def status_line(nimg: int, total_nimg: int, metrics: dict[str, float]) -> str:
    """A line of fields of fixed width, so that the lines of a run stand in columns.

    Args:
        nimg, total_nimg: images seen, and images to see in the whole run
        metrics: flat, by the names in `STATUS_FIELDS`, of which some may be missing; `grad_nonfinite/*` are counts
    """
    parts = [f"kimg {nimg / 1000:<9.1f}", f"{nimg / total_nimg:<6.1%}"]
    parts += [form.format(metrics[name]) for name, form in STATUS_FIELDS if name in metrics]
    if "time/sec_per_kimg" in metrics:
        remaining = max(total_nimg - nimg, 0) / 1000 * metrics["time/sec_per_kimg"]
        parts.append(f"ETA {format_duration(remaining)}")
    for name in sorted(metrics):
        if name.startswith(NONFINITE_PREFIX) and metrics[name]:
            parts.append(f"!! NON-FINITE GRADIENTS {name.removeprefix(NONFINITE_PREFIX)}: {metrics[name]:.0f} !!")
    parts += [form.format(metrics[name]) for name, form in TROUBLE_FIELDS if metrics.get(name)]
    return "  ".join(parts).rstrip()


def format_duration(seconds: float) -> str:
    """The two largest units: "2d 3h", "1h 23m", "4m 05s", "7s"; "?" if not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    if minutes:
        return f"{minutes}m {seconds:02d}s"
    return f"{seconds}s"
