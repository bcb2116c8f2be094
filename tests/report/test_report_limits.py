"""A report of files that are hostile, damaged, missing or large."""

from __future__ import annotations

import html
import itertools
import json
import os
import time

import pytest
from report_runs import chart, data_of, evaluation, make_run, records, write_lines, written

from stylegan_dist.report.page import MOST_BYTES, write_report

HOSTILE = "<script>alert(1)</script>&\"'\u202e"


def test_nothing_of_the_files_becomes_html(tmp_path):
    run = make_run(tmp_path / f"x{HOSTILE.replace('/', '')}", monitor__wandb_project=HOSTILE)
    network = f"net{HOSTILE}"
    line = evaluation(600_000, 9.0, network)
    line["scores"][HOSTILE] = {"value": 1.0, "error": None, "floor": None, "lower_is_better": True}
    write_lines(run / "evaluation.jsonl", [line])
    rows = records(run)
    rows[5][f"grad_norm/{HOSTILE}"] = 1.0
    write_lines(run / "metrics.jsonl", rows)
    (run / "checkpoints/best.json").write_text(json.dumps({"metric": HOSTILE, "nimg": 600_000, "value": 1.0}))
    (run / "checkpoints/nimg-00600000/state.json").write_text(json.dumps(
        {"rollbacks": [{"at": 10, "to": 5, "reason": HOSTILE}]}))
    with open(run / "log.txt", "a") as file:
        file.write(f"2026-03-01 10:00:00  WARNING: {HOSTILE}\n2026-03-01 10:00:00    engine{HOSTILE}     {HOSTILE}\n")
        file.write(f"2026-03-01 10:00:00    engine     {HOSTILE}\n")
    (run / "restarts.tsv").write_text("\t".join([HOSTILE] * 6) + "\n")
    page = written(tmp_path, run)
    assert "<script>alert" not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert page.count(html.escape("<script>alert(1)</script>")) >= 8
    other = make_run(tmp_path / "other")
    assert "<script>alert" not in written(tmp_path, run, other)


def test_secrets_are_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef-secret")
    run = make_run(tmp_path / "run", data__shards="https://user:hunter2hunter2@example.org/x")
    with open(run / "log.txt", "a") as file:
        file.write("2026-03-01 10:00:00  WARNING: cannot log in with 0123456789abcdef-secret\n")
    (run / "restarts.tsv").write_text("1\t2\t0\tfailed\t-\thttps://user:hunter2hunter2@example.org/x\n")
    page = written(tmp_path, run)
    assert "hunter2" not in page
    assert "0123456789abcdef-secret" not in page
    assert "***" in page


def test_damaged_lines_are_passed_over(tmp_path):
    run = make_run(tmp_path / "run")
    content = (run / "metrics.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    bad = [b"\x00\xff\n", b"{}\n", b"[1]\n", b'{"nimg": true}\n', b'{"nimg": -1}\n', b'{"nimg": 1e9}\n',
           b"{" * 10_000 + b"\n", b"\n"]
    half = b'{"nimg": 601000, "loss/g_ma'  # being written
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:3] + bad + lines[3:]) + half)
    with open(run / "evaluation.jsonl", "ab") as file:
        file.write(b'{"version": 2}\n{"version": 1, "nimg": 5, "scores": {"fid": {"value": "x"}}}\nnothing\n')
    page = written(tmp_path, run)
    assert chart(page, "Losses")["series"][0]["x"] == [json.loads(line)["kimg"] for line in lines]
    assert f"{len(bad)} lines of metrics.jsonl" in page
    assert "2 lines of evaluation.jsonl" in page


DAMAGES = ["config.yaml", "metrics.jsonl", "evaluation.jsonl", "log.txt", "restarts.tsv", "metrics.jsonl.abandoned",
           "checkpoints/best.json", "checkpoints/nimg-00600000/state.json", "samples/reals.png", "samples/nimg-00000000.png",
           "samples/nimg-00600000.png"]


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "folder", "pipe"])
def test_a_damaged_or_missing_file_is_no_error(tmp_path, name, damage):
    run = make_run(tmp_path / "run", ticks=5, grids=3, scores=2, side=24)
    (run / name).unlink()
    if damage == "folder":
        (run / name).mkdir()
    elif damage == "pipe":
        os.mkfifo(run / name)
    elif damage != "missing":
        (run / name).write_bytes(b"" if damage == "empty" else b"\x89PNG\r\n\x1a\n\x00\xff{]\n" * 50)
    page = written(tmp_path, run)
    assert data_of(page)["charts"]
    if name == "samples/nimg-00600000.png":  # the newest that can be shown takes its place
        assert [step[0] for step in data_of(page)["steps"]] == [0, 300]


def test_an_empty_run_says_what_is_missing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").touch()
    page = written(tmp_path, tmp_path / "run")
    for missing in ("no curves", "no scores", "no pictures", "no configuration"):
        assert missing in page


@pytest.mark.parametrize("grids", [1, 2, 40])
def test_it_keeps_to_its_size(tmp_path, grids):
    run = make_run(tmp_path / "run", grids=grids, side=200)
    report = write_report([run], tmp_path / "out.html", most=300_000)
    assert report.bytes <= 300_000
    assert report.path.stat().st_size == report.bytes
    steps = [step[0] for step in data_of(report.path.read_text("utf-8"))["steps"]]
    assert {steps[0], steps[-1]} == ({0, 600} if grids > 1 else {0})
    if grids == 40:
        assert len(steps) < 40
        assert any("of 40 sample grids" in note for note in report.notes)
        gaps = [after - before for before, after in itertools.pairwise(steps)]
        assert max(gaps) - min(gaps) < 600 / 39 * 1.01  # evenly


@pytest.mark.full
def test_sixteen_runs_fit(tmp_path):
    runs = [make_run(tmp_path / f"run{i}", ticks=1500, grids=3, scores=3, seed=i) for i in range(16)]
    assert write_report(runs, tmp_path / "out.html").bytes <= MOST_BYTES


@pytest.mark.full
def test_thousands_of_scores_and_restarts_fit(tmp_path):
    run = make_run(tmp_path / "run", ticks=9000, grids=2, restarts=3000)
    write_lines(run / "evaluation.jsonl", [evaluation(10 * i, 50 + abs(i - 7777) / 50, f"net{i % 5}") for i in range(20_000)])
    (run / "checkpoints/best.json").write_text(json.dumps({"metric": "fid/net2", "nimg": 77_770, "value": 50.0}))
    report = write_report([run], tmp_path / "out.html")
    assert report.bytes < MOST_BYTES / 2
    page = report.path.read_text("utf-8")
    assert "3,000 restarts" in page
    assert page.count('class="star') == 1


def test_a_log_of_one_endless_line_takes_no_time(tmp_path):
    run = make_run(tmp_path / "run", ticks=2, grids=1, scores=1)
    (run / "log.txt").write_text("2026-03-01 10:00:00    x" + " " * 5_000_000 + "\n"
                                 + "2026-03-01 10:00:00  WARNING: " + "://a" * 1_000_000 + "\n")
    began = time.perf_counter()
    assert "1 warning" in written(tmp_path, run)
    assert time.perf_counter() - began < 20
