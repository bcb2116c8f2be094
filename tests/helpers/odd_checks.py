"""Checks of `doctor` that misbehave. They are called in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stylegan_dist.doctor.record import Check, error, ok
from stylegan_dist.errors import InputError


def fine(options):
    print("what a library prints")
    yield ok("fine", "first")
    yield ok("fine", f"second, {os.environ.get('RANK')}")


def wrong(options):
    yield error("something else", "broken", "mend it")


def raises(options):
    yield ok("raises", "begins well")
    raise ValueError("bad \nand long")


def raises_input_error(options):
    raise InputError("wrong here: do that")
    yield


def exits(options):
    sys.exit("a library does so")
    yield


def crashes(options):
    print("\x1b[31mlast words\x1b[0m\n", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    yield


def hangs(options):
    """With a child that hangs, too, and both deaf to SIGTERM; says their numbers in a file."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    other = subprocess.Popen(["sleep", "1000"])
    _say_numbers(options.run, f"{os.getpid()} {other.pid}")
    print("it hangs here", file=sys.stderr, flush=True)
    time.sleep(1000)
    yield


def sleeps(options):
    """As most that hangs; cleans up when it is asked to end."""
    try:
        _say_numbers(options.run, str(os.getpid()))
        time.sleep(1000)
    finally:
        Path(options.run, "cleaned").touch()
    yield


def waits_for_a_file(options):
    while not Path(options.run, "go").exists():
        time.sleep(0.02)
    yield ok("waits_for_a_file", "there it is")


def uses_scratch(options):
    Path(options.scratch, "file").write_text("x")
    yield ok("uses_scratch", options.scratch)


def _say_numbers(folder: str, text: str) -> None:
    Path(folder, "numbers.tmp").write_text(text)
    Path(folder, "numbers.tmp").rename(Path(folder, "numbers"))


def check(function, seconds: float = 600, needs: tuple[str, ...] = (), late="error") -> Check:
    return Check(function.__name__, function, seconds, "what to do", needs, late)
