"""Processes that carry out checks: what they say, and that none outlives its time."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import odd_checks as odd
import psutil
import pytest
from launching import TIMEOUT, wait_for, wait_until
from odd_checks import check

from stylegan_dist.doctor.asking import examine
from stylegan_dist.doctor.record import Options, worst


def examined(*groups, run="", limit=600.0):
    """All findings, and in which order names were told of checks that begin and of what is found."""
    told = []
    findings = examine(groups, Options(run=str(run)), lambda name: told.append(name), lambda one: told.append(one.text), limit)
    return findings, told


def numbers(folder: Path) -> list[int]:
    return [int(word) for word in (folder / "numbers").read_text().split()]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_each_failure_is_a_line_and_the_next_check_is_done(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # a check is no rank of a run
    findings, told = examined([check(one) for one in (
        odd.raises, odd.raises_input_error, odd.exits, odd.crashes, odd.fine)])
    assert [(one.name, one.status, one.text) for one in findings] == [
        ("raises", "ok", "begins well"),
        ("raises", "error", "ValueError: bad "),
        ("raises_input_error", "error", "wrong here: do that"),
        ("exits", "error", "SystemExit: a library does so"),
        ("crashes", "error", "the process of this check has ended by SIGSEGV: last words"),
        ("fine", "ok", "first"),
        ("fine", "ok", "second, None"),
    ]
    assert findings[4].remedy == "what to do"
    assert told[:3] == ["raises", "begins well", "ValueError: bad "]
    assert worst(findings) == "error"


def test_what_hangs_is_ended_with_all_that_it_has_started(tmp_path):
    findings, _ = examined([check(odd.hangs, seconds=5), check(odd.fine)], run=tmp_path)
    assert [(one.name, one.status) for one in findings] == [("hangs", "error"), ("fine", "ok"), ("fine", "ok")]
    assert findings[0].text.startswith("no answer within ")
    assert findings[0].text.endswith("s: it hangs here")
    wait_until(lambda: all(gone(pid) for pid in numbers(tmp_path)))


@pytest.mark.full
def test_what_hangs_may_clean_up(tmp_path):
    findings, _ = examined([check(odd.sleeps, seconds=5, late="warning")], run=tmp_path)
    assert findings[0].status == "warning"
    assert (tmp_path / "cleaned").exists()
    assert gone(*numbers(tmp_path))


def test_all_together_have_a_limit(tmp_path):
    hanging = [check(odd.hangs), check(odd.hangs), check(odd.fine, needs=("hangs",))]
    findings, _ = examined(hanging[:1], hanging, run=tmp_path, limit=2.0)
    assert [re.sub(" [0-9].*", "", one.text) for one in findings] == [
        "no answer within", "not tried: the", "not tried: the", "not tried, because of: hangs"]
    assert worst(findings) == "error"


def test_what_a_check_needs(tmp_path):
    """Of its own process, and of an earlier one; what is late is lacking, too."""
    findings, _ = examined(
        [check(odd.wrong), check(odd.fine, needs=("wrong",)), check(odd.sleeps, seconds=2, late="warning")],
        [check(odd.fine, needs=("wrong", "sleeps")), check(odd.uses_scratch, needs=("crashes",))], run=tmp_path)
    assert [one.text.partition(" within")[0] for one in findings[:4]] == [
        "broken", "not tried, because of: wrong", "no answer", "not tried, because of: sleeps, wrong"]
    assert [one.status for one in findings[:4]] == ["error", "warning", "warning", "warning"]
    assert findings[4].status == "ok"
    assert not Path(findings[4].text).exists()


def doctor_with(groups: str, run: Path | str = ".", environment: dict[str, str] | None = None, **streams) -> subprocess.Popen:
    """A process of the verb with other checks."""
    script = ("import odd_checks as odd\nfrom stylegan_dist.cli import main\nfrom stylegan_dist.doctor import commands\n"
              f"commands.GROUPS = {groups}\nraise SystemExit(main(['doctor', '--run', {str(run)!r}]))")
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    return subprocess.Popen([sys.executable, "-c", script], **streams,
                            env=env | {"PYTHONPATH": os.pathsep.join(sys.path)} | (environment or {}),
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # jobs in the background ignore it


def test_a_line_is_there_as_soon_as_it_is_known(tmp_path):
    with doctor_with("[[odd.check(odd.fine), odd.check(odd.waits_for_a_file)]]", tmp_path, stdout=subprocess.PIPE,
                     text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines == [f"{'fine':<26} {'ok':<8} first\n", f"{'fine':<26} {'ok':<8} second, None\n"]
        (tmp_path / "go").touch()
        out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert out.endswith("\ntraining would start here\n")
    assert "\x1b" not in out


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals(variables, coloured):
    ours, theirs = pty.openpty()
    process = doctor_with("[[odd.check(odd.wrong)]]", environment={"TERM": "xterm", **variables}, stdout=theirs)
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 1 << 16):
            said += block
    except OSError:  # EIO: the process has ended
        pass
    finally:
        os.close(ours)
        process.kill()
    assert process.wait() == 1
    lines = said.decode().replace("\r\n", "\n").splitlines()
    assert ("\x1b[1;31merror   \x1b[0m broken" in said.decode()) is coloured
    assert any("-> mend it" in line for line in lines)
    assert "would not start here: 1 error" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_check_outlives_its_parent(number, tmp_path):
    """Nor do temporary files, unless it has no time to remove them."""
    (tmp_path / "temporary").mkdir()
    process = doctor_with("[[odd.check(odd.fine)], [odd.check(odd.hangs)]]", tmp_path, {"TMPDIR": str(tmp_path / "temporary")},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "numbers", process)
        process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT)
        wait_until(lambda: all(gone(pid) for pid in numbers(tmp_path)))
    finally:
        process.kill()
    assert "Traceback" not in err
    assert len(list((tmp_path / "temporary").iterdir())) == (number == signal.SIGKILL)
