import json
import math
import os
import signal
import subprocess
import sys

import pytest
from metrics_reader import read

from stylegan_dist.errors import InputError
from stylegan_dist.monitor import jsonl
from stylegan_dist.monitor.jsonl import MAX_LINE, MetricsFile, abandoned_path, damaged_path


def opened(path, nimg=10**9, told=None):
    """A metrics file; `told` becomes the list of what it says and warns of."""
    tell = (told if told is not None else []).append
    return MetricsFile(path, 0, nimg, tell, tell)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *nimgs):
    file = opened(path)
    for nimg in nimgs:
        file.append(nimg, {})
    file.close()


def test_round_trip_keeps_order_and_values(path):
    records = [{"nimg": 1000, "kimg": 1.0, "segment": 0, "loss/g_main": 1.25, "grad_nonfinite/g": 0},
               {"nimg": 2500, "kimg": 2.5, "segment": 0, "loss/g_main": 1e-30}]
    file = opened(path)
    for item in records:
        file.append(item["nimg"], {name: value for name, value in item.items() if name not in ("nimg", "kimg", "segment")})
    back = read(path)  # while it is still open
    assert all(item.pop("time") > 1.6e9 for item in back)
    assert back == records


def test_non_finite_values_stay_valid_json_and_come_back(path):
    opened(path).append(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (strict["a"], strict["b"], strict["c"]) == ("NaN", "Infinity", "-Infinity")
    (back,) = read(path)
    assert math.isnan(back["a"])
    assert back["b"] == math.inf
    assert back["c"] == -math.inf


@pytest.mark.parametrize("cut", [2, 5, 30])
def test_torn_last_line_is_dropped_and_the_next_record_is_whole(path, cut):
    write(path, 1000, 2000)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["nimg"] for r in read(path)] == [1000]
    torn = path.read_bytes().splitlines()[1]
    write(path, 3000)
    assert [r["nimg"] for r in read(path)] == [1000, 3000]
    assert damaged_path(path).read_bytes() == torn + b"\n"


def test_a_last_record_without_an_end_of_line_is_kept(path):
    write(path, 1000, 2000)
    path.write_bytes(path.read_bytes()[:-1])
    write(path, 3000)
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 3000]
    assert not damaged_path(path).exists()


def test_torn_only_line(path):
    path.write_bytes(b'{"nimg": 10')
    assert read(path) == []
    write(path, 5)
    assert [r["nimg"] for r in read(path)] == [5]


def test_what_lies_beyond_the_checkpoint_is_dropped(path):
    write(path, 1000, 2000, 3000, 4000)
    before = path.read_bytes().splitlines(keepends=True)
    told = []
    file = opened(path, 2000, told)
    assert path.read_bytes() == b"".join(before[:2])  # the kept lines are not rewritten
    file.append(2500, {})
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 2500]
    assert os.listdir(path.parent) == ["metrics.jsonl"]
    (line,) = told
    assert "dropped 2 lines" in line


def test_a_file_with_nothing_to_drop_is_left_alone(path):
    write(path, 1000, 2000)
    inode, told = path.stat().st_ino, []
    opened(path, 2000, told)
    assert path.stat().st_ino == inode
    assert told == []


def test_failure_during_truncation_leaves_the_old_file(path, monkeypatch):
    write(path, 1000, 2000)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        opened(path, 1000)
    assert path.read_bytes() == before


DAMAGE = {"zeros": b"\0\0\0", "list": b"[1, 2]", "no nimg": b"{}", "empty": b"",
          "truth": b'{"nimg": true}',
          "text": b'{"nimg": "5"}', "float": b'{"nimg": 5.0}', "half": b'{"nimg": 5, "kimg"',
          "two": b'{"nimg": 5} {"nimg": 6}', "return": b"a\rb",
          "deep": b'{"nimg": 5, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no text": b'{"nimg": 5, "a": "\xff"}',
          "long": b'{"nimg": 5, "a": "' + b"x" * MAX_LINE + b'"}', "digits": b'{"nimg": 5, "a": ' + b"9" * 5000 + b".}"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_lines_are_kept_aside(path, kind):
    write(path, 1000, 2000, 3000)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + DAMAGE[kind] + b"\n" + b"[]\n" + lines[1] + lines[2])
    told = []
    opened(path, 2000, told)
    assert [r["nimg"] for r in read(path)] == [1000, 2000]
    assert damaged_path(path).read_bytes() == DAMAGE[kind] + b"\n[]\n"
    beyond, damaged = told
    assert "dropped 1 lines" in beyond
    assert "2 damaged lines" in damaged


def test_damaged_lines_stay_where_they_cannot_be_kept_aside(path):
    write(path, 1000)
    path.write_bytes(b"damaged\n" + path.read_bytes())
    before = path.read_bytes()
    damaged_path(path).mkdir()
    with pytest.raises(OSError, match="damaged"):
        opened(path)
    assert path.read_bytes() == before


def test_a_file_that_was_deleted_begins_anew(path):
    told = []
    file = opened(path, told=told)
    file.append(1000, {})
    path.unlink()
    file.append(2000, {})
    assert [r["nimg"] for r in read(path)] == [2000]
    path.with_name("other").write_bytes(path.read_bytes() + b"torn")
    path.with_name("other").replace(path)
    file.append(3000, {})
    assert [r["nimg"] for r in read(path)] == [2000, 3000]
    assert sum("deleted or replaced" in line for line in told) == 2


def test_a_folder_that_was_moved_gets_no_new_file(path):
    folder = path.parent / "run"
    folder.mkdir()
    told = []
    file = opened(folder / path.name, told=told)
    folder.rename(path.parent / "moved")
    for waiting in (1, 2):
        file.append(waiting, {})
    assert not folder.exists()
    assert len(told) == 2  # that it is gone, and that it cannot be written
    (path.parent / "moved").rename(folder)
    file.append(3, {})
    assert "2 records" in told[2]
    assert [r["nimg"] for r in read(folder / path.name)] == [1, 2, 3]


def test_of_too_many_waiting_records_the_newest_are_kept(path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_PENDING", 3)
    told = []
    file = opened(path, told=told)
    with monkeypatch.context() as patch:
        patch.setattr(file, "_write", lambda line: os.stat("/no/such/path"))
        for nimg in range(5):
            file.append(nimg, {})
    assert len(told) == 2
    file.close()
    assert "3 records that waited are there now, 2 are lost" in told[2]
    assert [r["nimg"] for r in read(path)] == [2, 3, 4]


def test_failed_append_leaves_the_file_as_it_was_and_the_record_waits(path):
    write(path, 1000)
    before = path.read_bytes()
    # A limit on the file size stands for a full disk: the kernel takes a part of the record, as there.
    code = f"""
import resource, signal
from pathlib import Path
from stylegan_dist.monitor.jsonl import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = MetricsFile(Path({str(path)!r}), 0, 10**9, print, print)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20}, resource.RLIM_INFINITY))
for nimg in (2000, 2001):
    file.append(nimg, {{}})
    print("as it was" if file.path.stat().st_size == {len(before)} else "changed")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(3000, {{}})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    warning, first, second, again = result.stdout.splitlines()
    assert "cannot be written" in warning
    assert (first, second) == ("as it was", "as it was")
    assert "2 records" in again
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 2001, 3000]


def test_records_survive_kill_9(path):
    code = f"""
import os, signal
from pathlib import Path
from stylegan_dist.monitor.jsonl import MetricsFile
file = MetricsFile(Path({str(path)!r}), 0, 0, print, print)
for nimg in range(1, 51):
    file.append(nimg, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == -signal.SIGKILL
    assert [r["nimg"] for r in read(path)] == list(range(1, 51))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file(make, tmp_path):
    """A pipe would wait for somebody who reads it."""
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics.jsonl is no plain file"):
        opened(tmp_path / "metrics.jsonl")


def test_records_of_an_abandoned_branch_are_put_aside(path):
    file = opened(path)
    for nimg in (1000, 2000, 3000):
        file.append(nimg, {"branch": 0})
    file.go_back(1000)
    file.append(2000, {"branch": 1})
    file.go_back(1000)
    file.append(2000, {"branch": 2})
    file.close()
    assert [(record["nimg"], record["branch"]) for record in read(path)] == [(1000, 0), (2000, 2)]
    assert [(record["nimg"], record["branch"]) for record in read(abandoned_path(path))] == [(2000, 0), (3000, 0), (2000, 1)]


def test_going_back_begins_a_file_that_was_deleted(path):
    file = opened(path)
    file.append(1000, {})
    path.unlink()
    file.go_back(1000)
    file.append(2000, {})
    assert [record["nimg"] for record in read(path)] == [2000]
    assert not abandoned_path(path).exists()
