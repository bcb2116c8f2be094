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
from stylegan_dist.monitor.jsonl import MetricsFile, read


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


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_torn_last_line_is_dropped_and_the_next_record_is_whole(path, cut):
    write(path, 1000, 2000)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["nimg"] for r in read(path)] == [1000]
    write(path, 3000)
    assert [r["nimg"] for r in read(path)] == [1000, 3000]


def test_torn_only_line(path):
    path.write_bytes(b'{"nimg": 10')
    assert read(path) == []
    write(path, 5)
    assert [r["nimg"] for r in read(path)] == [5]


def test_truncate_drops_what_lies_beyond_the_checkpoint(path):
    write(path, 1000, 2000, 3000, 4000)
    before = path.read_bytes().splitlines(keepends=True)
    file = MetricsFile(path)
    assert file.truncate_after(2000) == 2
    assert path.read_bytes() == b"".join(before[:2])  # the kept lines are not rewritten
    file.append(record(2500))
    assert [r["nimg"] for r in read(path)] == [1000, 2000, 2500]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncate_with_nothing_to_drop_leaves_the_file_alone(path):
    write(path, 1000, 2000)
    inode = path.stat().st_ino
    assert MetricsFile(path).truncate_after(2000) == 0
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


def test_damaged_line_is_named_by_read_and_dropped_on_resume(path):
    write(path, 1000, 2000)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0\0\0\n" + b"[1, 2]\n" + lines[1])
    with pytest.raises(InputError, match="line 2"):
        read(path)
    assert MetricsFile(path).truncate_after(5000) == 2
    assert [r["nimg"] for r in read(path)] == [1000, 2000]


def test_failed_append_leaves_the_file_as_it_was(path):
    write(path, 1000)
    before = path.read_bytes()
    # A limit on the file size stands for a full disk: the kernel takes a part of the record, as there.
    code = f"""
import resource, signal
from stylegan_dist.monitor.jsonl import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = MetricsFile({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20}, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        file.append(dict(nimg=2000, kimg=2.0, segment=0, time=0.0))
    except OSError:
        print("OSError")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(dict(nimg=3000, kimg=3.0, segment=0, time=0.0))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["OSError", "OSError"]
    assert [r["nimg"] for r in read(path)] == [1000, 3000]


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
