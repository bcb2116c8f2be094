import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from stylegan_dist.errors import InputError
from stylegan_dist.monitor import jsonl
from stylegan_dist.monitor.jsonl import MAX_LINE, MetricsFile, damaged_path, read


def record(nimg, **metrics):
    return {"nimg": nimg, "kimg": nimg / 1000, "segment": 0, "time": 1.5, **metrics}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *nimgs):
    file = MetricsFile(path)
    for nimg in nimgs:
        file.append(record(nimg))
    file.close()


def test_round_trip_keeps_order_and_values(path):
    records = [record(1000, **{"loss/g_main": 1.25, "grad_nonfinite/g": 0, "note": "x", "none": None, "flag": True}),
               record(2000, **{"loss/g_main": 1e-30})]
    file = MetricsFile(path)
    for item in records:
        file.append(item)
    assert read(path) == records  # while it is still open


def test_non_finite_values_stay_valid_json_and_come_back(path):
    MetricsFile(path).append(record(1, a=math.nan, b=math.inf, c=-math.inf))
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (strict["a"], strict["b"], strict["c"]) == ("NaN", "Infinity", "-Infinity")
    (back,) = read(path)
    assert math.isnan(back["a"])
    assert back["b"] == math.inf
    assert back["c"] == -math.inf


def test_numbers_of_other_libraries_are_taken(path):
    MetricsFile(path).append(record(1, a=torch.tensor(0.5), b=np.float32(0.25), c=np.int64(3)))
    (back,) = read(path)
    assert (back["a"], back["b"], back["c"]) == (0.5, 0.25, 3)


def test_required_keys_are_an_invariant(path):
    with pytest.raises(AssertionError, match="segment"):
        MetricsFile(path).append({"nimg": 1, "kimg": 0.001, "time": 0.0})


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


def test_truncate_drops_what_lies_beyond_the_checkpoint(path):
    write(path, 1000, 2000, 3000, 4000)
    before = path.read_bytes().splitlines(keepends=True)
    file = MetricsFile(path)
    assert file.truncate_after(2000) == (2, 0)
    assert path.read_bytes() == b"".join(before[:2])  # the kept lines are not rewritten
    file.append(record(2500))
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 2500]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncate_with_nothing_to_drop_leaves_the_file_alone(path):
    write(path, 1000, 2000)
    inode = path.stat().st_ino
    assert MetricsFile(path).truncate_after(2000) == (0, 0)
    assert path.stat().st_ino == inode


def test_failure_during_truncation_leaves_the_old_file(path, monkeypatch):
    write(path, 1000, 2000)
    before = path.read_bytes()
    file = MetricsFile(path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.truncate_after(1000)
    assert path.read_bytes() == before


DAMAGE = {"zeros": b"\0\0\0", "list": b"[1, 2]", "no nimg": b"{}", "empty": b"",
          "truth": b'{"nimg": true}',
          "text": b'{"nimg": "5"}', "float": b'{"nimg": 5.0}', "half": b'{"nimg": 5, "kimg"',
          "two": b'{"nimg": 5} {"nimg": 6}', "return": b"a\rb",
          "deep": b'{"nimg": 5, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no text": b'{"nimg": 5, "a": "\xff"}',
          "long": b'{"nimg": 5, "a": "' + b"x" * MAX_LINE + b'"}', "digits": b'{"nimg": 5, "a": ' + b"9" * 5000 + b".}"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_line_is_named_by_read_and_kept_aside_on_resume(path, kind):
    write(path, 1000, 2000, 3000)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + DAMAGE[kind] + b"\n" + b"[]\n" + lines[1] + lines[2])
    with pytest.raises(InputError, match="line 2"):
        read(path)
    assert MetricsFile(path).truncate_after(2000) == (1, 2)
    assert [r["nimg"] for r in read(path)] == [1000, 2000]
    assert damaged_path(path).read_bytes() == DAMAGE[kind] + b"\n[]\n"


def test_damaged_lines_stay_where_they_cannot_be_kept_aside(path):
    write(path, 1000)
    path.write_bytes(b"damaged\n" + path.read_bytes())
    before = path.read_bytes()
    damaged_path(path).mkdir()
    with pytest.raises(OSError, match="damaged"):
        MetricsFile(path).truncate_after(5000)
    assert path.read_bytes() == before


def test_a_file_that_was_deleted_begins_anew(path):
    file = MetricsFile(path)
    file.append(record(1000))
    path.unlink()
    file.append(record(2000))
    assert [r["nimg"] for r in read(path)] == [2000]
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)
    file.append(record(3000))
    assert [r["nimg"] for r in read(path)] == [2000, 3000]
    assert file.renewed == 2


def test_a_folder_that_was_moved_gets_no_new_file(path):
    folder = path.parent / "run"
    folder.mkdir()
    file = MetricsFile(folder / path.name)
    folder.rename(path.parent / "moved")
    for waiting in (1, 2):
        with pytest.raises(FileNotFoundError):
            file.append(record(waiting))
        assert file.pending == waiting
    assert not folder.exists()
    (path.parent / "moved").rename(folder)
    file.append(record(3))
    assert [r["nimg"] for r in read(folder / path.name)] == [1, 2, 3]


def test_of_too_many_waiting_records_the_newest_are_kept(path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_PENDING", 3)
    file = MetricsFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(file, "_write", lambda line: os.stat("/no/such/path"))
        for nimg in range(5):
            with pytest.raises(OSError, match="/no/such"):
                file.append(record(nimg))
    assert (file.pending, file.lost) == (3, 2)
    file.flush()
    assert [r["nimg"] for r in read(path)] == [2, 3, 4]


def test_failed_append_leaves_the_file_as_it_was_and_the_record_waits(path):
    write(path, 1000)
    before = path.read_bytes()
    # A limit on the file size stands for a full disk: the kernel takes a part of the record, as there.
    code = f"""
import resource, signal
from stylegan_dist.monitor.jsonl import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = MetricsFile({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20}, resource.RLIM_INFINITY))
for nimg in (2000, 2001):
    try:
        file.append(dict(nimg=nimg, kimg=2.0, segment=0, time=0.0))
    except OSError:
        print("OSError", file.pending, file.path.stat().st_size == {len(before)})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(dict(nimg=3000, kimg=3.0, segment=0, time=0.0))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["OSError", "1", "True", "OSError", "2", "True"]
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 2001, 3000]


def test_records_survive_kill_9(path):
    code = f"""
import os, signal
from stylegan_dist.monitor.jsonl import MetricsFile
file = MetricsFile({str(path)!r})
for nimg in range(1, 51):
    file.append(dict(nimg=nimg, kimg=nimg / 1000, segment=0, time=0.0))
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
        MetricsFile(tmp_path / "metrics.jsonl")
