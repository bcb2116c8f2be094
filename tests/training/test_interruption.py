"""Requests to stop, and those that this process was told to ignore."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest
import torch
from launching import finished, launcher_command

from stylegan_dist.config import Config
from stylegan_dist.errors import STOP_SIGNALS, InputError, Interrupted, LocalInputError, LocalInterrupted, RankLost
from stylegan_dist.training import loop
from stylegan_dist.training.interruption import StopRequest, why_nohup_fails


@pytest.fixture(autouse=True)
def obeyed():
    """As a shell in the foreground starts programs, however the tests were started."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ignored(monkeypatch):
    """As nohup leaves it."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def asked_by(number: int) -> bool:
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        return stop.requested


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request(number):
    before = [signal.getsignal(other) for other in STOP_SIGNALS]
    assert asked_by(number)
    assert [signal.getsignal(other) for other in STOP_SIGNALS] == before


def test_what_was_ignored_stays_ignored(ignored):
    assert not asked_by(signal.SIGHUP)
    assert asked_by(signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_launcher_that_ends_on_it_is_obeyed_and_told_of(ignored, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("_", "/usr/bin/nohup")
    assert why_nohup_fails(os.environ)
    assert asked_by(signal.SIGHUP)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT")
    assert why_nohup_fails(os.environ) is None
    assert not asked_by(signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("inherited", "told"), [(signal.SIG_IGN, True), (signal.SIG_DFL, False)])
def test_nohup_shows_behind_the_launcher_and_its_remedy_works(inherited, told, monkeypatch, tmp_path):
    """torch's own launcher: its ranks inherit nothing of what it has inherited, unless it is told to leave SIGHUP alone."""
    for name in ("_", "TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE"):
        monkeypatch.delenv(name, raising=False)
    rank = tmp_path / "rank.py"
    rank.write_text("import os, signal, sys\nfrom stylegan_dist.training.interruption import why_nohup_fails\n"
                    "sys.stdout.write(f'{why_nohup_fails(os.environ)}; {signal.getsignal(signal.SIGHUP).name}\\n')\n")
    command = [*launcher_command("cpu.yaml", 2), str(rank)]
    before = signal.signal(signal.SIGHUP, inherited)  # of this process, which starts the launcher
    try:
        said = finished(command).stdout
        assert ("nohup has no effect" in said) == told
        assert said.count("; SIG_DFL") == 2
        if told:
            variable, value = re.search(r"(\w+)=(\S+) where it is started", said).groups()
            assert finished(command, **{variable: value}).stdout.count("None; SIG_IGN\n") == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_launcher_does_not_cut_last_words_short():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(RankLost), StopRequest():
            raise RankLost
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(("error", "left"), [(Interrupted, True), (InputError, True), (LocalInterrupted, False),
                                             (LocalInputError, False)])
def test_a_rank_that_ends_alone_does_not_leave_the_process_group(error, left, monkeypatch):
    """It would wait for the others, which wait for it."""
    done: list[str] = []

    class FakeEngine:
        device, local_world_size = torch.device("cpu"), 1

        def __init__(self, *args):
            pass

        def say_end(self, error):
            done.append("said")

        def close(self):
            done.append("left")

    def fail(*args):
        raise error("text")

    monkeypatch.setattr(loop, "end_with_launcher", lambda: None)
    monkeypatch.setattr(loop, "Engine", FakeEngine)
    monkeypatch.setattr(loop, "open_run", fail)
    with pytest.raises(error):
        loop.train(Config())
    assert done == (["said", "left"] if left else ["said"])
