import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from stylegan_dist.monitor.console import Console, format_duration, status_line

FULL = {
    "time/img_per_sec": 123.4, "time/sec_per_kimg": 8.1, "loss/g_main": 1.2345, "loss/d_main": 0.5,
    "loss/r1": 0.0123, "logits/real": 0.51, "logits/fake": -0.49, "grad_norm/g": 0.5, "grad_norm/d": 1.5,
    "time/data_wait": 0.013, "memory/peak_gib": 3.25, "grad_nonfinite/g": 0, "grad_nonfinite/d": 0,
}


def test_status_line_has_all_facts():
    assert " ".join(status_line(12_800, 25_000_000, FULL).split()) == (
        "kimg 12.8 0.1% img/s 123.4 sec/kimg 8.10 G 1.234 D 0.500 r1 0.012 real +0.51 fake -0.49 "
        "|g| G 0.5 |g| D 1.5 wait 1% GiB 3.2 ETA 2d 8h"
    )


def test_status_lines_stand_in_columns():
    early = status_line(1, 25_000_000, FULL)
    late = status_line(24_999_999, 25_000_000, {**FULL, "loss/g_main": 123.4, "logits/fake": -88.0})
    names = ["img/s", "sec/kimg", " G ", " D ", "r1", "real", "fake", "wait", "GiB", "ETA"]
    assert [early.index(name) for name in names] == [late.index(name) for name in names]


def test_missing_metrics_are_left_out():
    assert status_line(500, 1000, {}).split() == ["kimg", "0.5", "50.0%"]
    assert "r1" not in status_line(500, 1000, {"loss/g_main": 1.0})


def test_non_finite_losses_are_shown_and_counts_only_if_there_are_any():
    assert "NON-FINITE" not in status_line(1, 10, FULL)
    line = status_line(1, 10, {**FULL, "loss/g_main": math.nan, "grad_nonfinite/d": 3})
    assert "nan" in line
    assert "!! NON-FINITE GRADIENTS d: 3 !!" in line
    assert "ETA ?" in status_line(1, 10, {"time/sec_per_kimg": math.nan})


def test_roll_backs_and_skipped_updates_are_shown_only_if_there_are_any():
    line = status_line(1, 10, {**FULL, "guard/rollbacks": 0, "guard/skipped": 0.0})
    assert line == status_line(1, 10, FULL)
    line = status_line(1, 10, {**FULL, "guard/rollbacks": 1, "guard/skipped": 4.0})
    assert line.endswith("!! SKIPPED UPDATES: 4 !!  roll-backs 1")


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0s"), (7.4, "7s"), (59.6, "1m 00s"), (245, "4m 05s"), (4980, "1h 23m"), (97200, "1d 3h"), (math.inf, "?"),
])
def test_durations_are_for_people(seconds, text):
    assert format_duration(seconds) == text


def test_lines_go_to_the_screen_and_with_a_time_to_the_log(tmp_path, capsys):
    console = Console(tmp_path / "log.txt", 10)
    console.line("one\ntwo")
    console.warn("careful")
    console.close()
    Console(tmp_path / "log.txt", 10).line("after a restart")
    assert capsys.readouterr().out == "one\ntwo\nWARNING: careful\nafter a restart\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "two", "WARNING: careful", "after a restart"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)


def test_header_is_aligned(tmp_path, capsys):
    Console(tmp_path / "log.txt", 10).header([("data set", "photos"), ("G", "30.0 M"), ("none", "")])
    assert capsys.readouterr().out.splitlines() == [
        "  data set   photos",
        "  G          30.0 M",
        "  none",
    ]


def test_unwritable_log_is_one_warning(tmp_path, capsys):
    console = Console(tmp_path / "no such folder" / "log.txt", 10)
    console.line("one")
    console.line("two")
    console.close()
    one, warning, two = capsys.readouterr().out.splitlines()
    assert (one, two) == ("one", "two")
    assert warning.startswith("WARNING: ")
    assert "log.txt cannot be written" in warning


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_one_warning(capsys):
    console = Console("/dev/full", 10)
    console.line("one")
    console.line(status_line(1, 10, FULL))
    shown = capsys.readouterr().out
    assert shown.count("WARNING") == 1
    assert "No space left" in shown


@pytest.mark.parametrize("broken", ["pipe", "closed"])
def test_lost_terminal_leaves_the_log(tmp_path, broken, monkeypatch):
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(tmp_path / "log.txt", 10)
    console.line("seen")
    os.close(reading)
    if broken == "closed":
        stream.close()
    for text in ("lost", "lost too"):
        console.line(text)
    console.line(status_line(1, 10, FULL))
    console.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4
    if broken == "pipe":
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_characters_the_terminal_lacks_are_replaced(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console(tmp_path / "log.txt", 10).line("Größe")
    assert raw.getvalue() == b"Gr??e\n"
    assert "Größe" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_no_progress_bar_without_a_terminal(tmp_path, capsys):
    console = Console(tmp_path / "log.txt", 10)
    console.progress(5)
    console.close()
    assert capsys.readouterr().out == ""


def test_progress_bar_on_a_terminal_and_lines_above_it(tmp_path):
    """Through a real pseudo-terminal: the bar is drawn, and every line of text begins on a clean line."""
    code = f"""
from stylegan_dist.monitor.console import Console, status_line
console = Console({str(tmp_path / "log.txt")!r}, 10000)
console.line("before")
for nimg in range(4000, 10001, 1000):
    console.progress(nimg)
    if nimg % 2000 == 0:
        console.line(status_line(nimg, 10000, {{"loss/g_main": 1.0}}))
console.close()
console.line("after")
"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs a width
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs)
    os.close(theirs)
    chunks = []

    def drain():
        try:
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)
        except OSError:
            pass  # how Linux says that the other side is closed

    reader = threading.Thread(target=drain)
    reader.start()
    assert process.wait(30) == 0
    reader.join(10)
    os.close(ours)
    output = b"".join(chunks).decode()
    assert "4.00k/10.0k" in output  # it begins where the run was resumed
    shown = [line.split("\r")[-1] for line in output.replace("\r\n", "\n").split("\n")]
    expected = ["before"] + [status_line(n, 10000, {"loss/g_main": 1.0}) for n in range(4000, 10001, 2000)] + ["after"]
    assert [line for line in shown if line] == expected
    assert "img/s" not in (tmp_path / "log.txt").read_text()  # the bar stays out of the log
