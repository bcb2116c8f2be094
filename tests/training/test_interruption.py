"""Requests to stop, and those that this process was told to ignore."""

from __future__ import annotations

import os
import signal

import pytest

from stylegan_dist.errors import STOP_SIGNALS
from stylegan_dist.training.interruption import StopRequest, why_nohup_fails


@pytest.fixture
def ignored(monkeypatch):
    """As nohup leaves it."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def asked_by(number: int) -> bool:
    stop = StopRequest()
    try:
        os.kill(os.getpid(), number)
        return stop.requested
    finally:
        stop.close()


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
    assert "TORCHELASTIC_SIGNALS_TO_HANDLE" in why_nohup_fails(os.environ)
    assert asked_by(signal.SIGHUP)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT")
    assert why_nohup_fails(os.environ) is None
    assert not asked_by(signal.SIGHUP)


def test_a_launcher_does_not_cut_last_words_short():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    stop = StopRequest()
    try:
        stop.last_words()
        stop.close()
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
