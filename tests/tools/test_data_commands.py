"""Looking at a shard set and measuring it from the command line."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image
from servers import http_server

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.kinds.pixels import decode
from stylegan_dist.tools.bench_data import Speed, workers_for


def test_peek_shows_every_sample_of_a_small_set_once(labelled_shards, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["peek", str(labelled_shards), "--columns", "10", "--rows", "20", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (6 * 66 - 2, 10 * 66 - 2, 3), "60 pictures, enlarged to 64 pixels"
    shown = {sheet[y:y + 64:4, x:x + 64:4].tobytes() for y in range(0, 6 * 66, 66) for x in range(0, 10 * 66, 66)}
    index = load_index(labelled_shards)
    reader = ShardReader(index)
    held = {decode(reader.read(s, i)[0], 3, 16).transpose(1, 2, 0).tobytes()
            for s, shard in enumerate(index.shards) for i in range(shard.samples)}
    reader.close()
    assert shown == held


def test_peek_mistakes(labelled_shards, tmp_path, capsys):
    assert main(["peek", str(labelled_shards), "--rows", "0"]) == 2
    assert "--rows must be" in capsys.readouterr().err
    assert main(["peek", str(labelled_shards), "--out", str(tmp_path / "no" / "x.png")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["peek", str(tmp_path)]) == 2


def test_bench_data(labelled_shards, capsys):
    command = ["bench-data", str(labelled_shards), "--workers", "0,1", "--seconds", "0.2", "--need", "1"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert [row[:2] for row in rows] == [["0", "cold"], ["0", "warm"], ["1", "cold"], ["1", "warm"]]
    assert lines[5] == "1 img/s: data.workers=1"
    rate, *stages = map(float, rows[1][2:])
    assert sum(stages) == pytest.approx(1e6 / rate, rel=0.02), "the stages are all of the time"


def test_remote_shards(labelled_shards, tmp_path, capsys):
    with http_server(labelled_shards) as server:
        assert main(["bench-data", server.url, "--workers", "0", "--seconds", "0.2", "--folder", str(tmp_path)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        assert [row[1] for row in rows] == ["cold", "warm"]
        assert float(rows[0][3]) > float(rows[1][3]), "reading is slower while shards are fetched"
        assert list(tmp_path.iterdir()) == [], "the cache was a temporary one"
        assert main(["verify", server.url]) == 0


@pytest.mark.parametrize("wrong", [["--workers", "two"], ["--workers", "-1"], ["--seconds", "0"], ["--batch", "0"]])
def test_bench_data_mistakes(labelled_shards, wrong, capsys):
    assert main(["bench-data", str(labelled_shards), *wrong]) == 2
    assert re.search(f"{wrong[0]} must be", capsys.readouterr().err)


def test_workers_for():
    speeds = [Speed(0, False, 900, 0, 0, 0), Speed(1, True, 9999, 0, 0, None), Speed(1, False, 1000, 0, 0, None),
              Speed(2, False, 1800, 0, 0, None)]
    assert [workers_for(rate, speeds) for rate in (500, 1000, 1500, 1800, 4500)] == [1, 1, 2, 2, 5]
    assert workers_for(100, speeds[:1]) is None


@pytest.mark.parametrize(("command", "message"), [
    ("verify EMPTY", r"no index.json in .*: pack the images first .* or correct the path$"),
    ("peek nothing", r"no index.json in nothing: pack the images first"),
    ("bench-data foo://bucket/set", r"cannot use foo://.*not known: foo; data may lie in folders and at URLs such as s3"),
    ("index EMPTY", r"holds no .tar file: give the folder"),
    ("index foo://bucket/0.tar OUT", r"cannot use foo://bucket/0.tar: Protocol not known"),
    ("index gs://bucket/{0..3}.tar OUT", r'gs://bucket/0.tar needs a driver that is not installed: pip install "style'),
    ("pack EMPTY OUT --resolution 8", r"holds no images .*: is it the right place\?"),
    ("pack gs://bucket/photos OUT --resolution 8", r"SOURCE of pack must be on this machine, not at gs://bucket/photos"),
    ("pack EMPTY s3://bucket/photos --resolution 8", r"OUT of pack must be on this machine, not at s3://bucket/photos"),
])
def test_what_a_stranger_gets_wrong(command, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed, wherever this runs
    (tmp_path / "empty").mkdir()
    words = [{"EMPTY": str(tmp_path / "empty"), "OUT": str(tmp_path / "out")}.get(word, word) for word in command.split()]
    assert main(words) == 2
    said = capsys.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if line and "shard/s]" not in line]
    assert len(lines) == 1
    assert re.search(message, lines[0])
