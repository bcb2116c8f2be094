import inspect

import pytest
from metrics_reader import read
from wandb_reader import read_offline_runs

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.monitor import Monitor, NullMonitor
from stylegan_dist.monitor.tracker import Segment


def make(run_dir, segment=0, nimg=0, wandb="disabled"):
    return Monitor(Segment(run_dir, segment, nimg), 10_000, MonitorConfig(wandb=wandb), {})


def test_a_tick_reaches_every_reader(tmp_path, capsys):
    monitor = make(tmp_path, wandb="offline", segment=2)
    monitor.header([("data set", "photos")])
    monitor.tick({"loss/g_main": 1.25}, 4000)
    monitor.alert("diverged", "the loss is NaN")
    monitor.finish(0)

    (tick,) = read(tmp_path / "metrics.jsonl")
    assert (tick["nimg"], tick["kimg"], tick["segment"], tick["loss/g_main"]) == (4000, 4.0, 2, 1.25)
    assert tick["time"] > 1.6e9
    shown = capsys.readouterr().out
    log = (tmp_path / "log.txt").read_text()
    for text in ("data set   photos", "G 1.250", "WARNING: diverged: the loss is NaN"):
        assert text in shown
        assert text in log
    (run,) = read_offline_runs(tmp_path)
    assert run.values("loss/g_main") == {4000: 1.25}
    assert run.alerts == [("diverged", "the loss is NaN")]


def test_a_note_is_in_the_log_alone_and_only_where_that_still_is(tmp_path, capsys):
    monitor = make(tmp_path)
    monitor.line("hello")
    monitor.note("error: no data")
    log = tmp_path / "log.txt"
    assert log.read_text().splitlines()[-1].endswith("  error: no data")
    log.unlink()
    monitor.note("error: gone")
    monitor.finish(1)
    assert not log.exists()
    assert capsys.readouterr().out == "hello\n"


def test_resume_leaves_no_overlap(tmp_path, capsys):
    first = make(tmp_path)
    for nimg in (1000, 2000, 3000):
        first.tick({}, nimg)
    first.finish(75)
    second = make(tmp_path, segment=1, nimg=2000)
    second.tick({}, 2500)
    second.finish(0)
    records = read(tmp_path / "metrics.jsonl")
    assert [(r["nimg"], r["segment"]) for r in records] == [(1000, 0), (2000, 0), (2500, 1)]
    assert "dropped 1 lines beyond the checkpoint at 2 kimg" in capsys.readouterr().out


def full(line):
    raise OSError(28, "No space left on device")


def test_metrics_that_cannot_be_written_are_one_warning_and_come_later(tmp_path, capsys, monkeypatch):
    monitor = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(monitor._metrics, "_write", full)
        for nimg in (1000, 2000):
            monitor.tick({"loss/g_main": 1.0}, nimg)
    shown = capsys.readouterr().out
    assert shown.count("WARNING") == 1
    assert "No space left" in shown
    assert shown.count("G 1.000") == 2
    monitor.tick({}, 3000)
    assert "2 records" in capsys.readouterr().out
    monitor.tick({}, 4000)
    assert "records" not in capsys.readouterr().out
    monitor.finish(0)
    assert [record["nimg"] for record in read(tmp_path / "metrics.jsonl")] == [1000, 2000, 3000, 4000]


@pytest.mark.parametrize("room", [True, False])
def test_records_that_wait_at_the_end(room, tmp_path, capsys, monkeypatch):
    monitor = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(monitor._metrics, "_write", full)
        monitor.tick({}, 1000)
        if not room:
            monitor.finish(0)
    if room:
        monitor.finish(0)
    assert ("1 records are lost" in capsys.readouterr().out) != room
    assert len(read(tmp_path / "metrics.jsonl")) == room


def test_what_is_dropped_is_said_by_kind(tmp_path, capsys):
    first = make(tmp_path)
    for nimg in (1000, 2000):
        first.tick({}, nimg)
    first.finish(75)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("damaged\ntorn")
    make(tmp_path, nimg=1000).finish(0)
    shown = capsys.readouterr().out
    assert "dropped 1 lines beyond the checkpoint" in shown
    assert "2 damaged lines" in shown
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == "damaged\ntorn\n"


def test_deleted_files_are_begun_anew_and_that_is_said(tmp_path, capsys):
    monitor = make(tmp_path)
    monitor.tick({}, 1000)
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).unlink()
    monitor.tick({}, 2000)
    monitor.finish(0)
    assert "metrics.jsonl was deleted or replaced" in capsys.readouterr().out
    assert [record["nimg"] for record in read(tmp_path / "metrics.jsonl")] == [2000]
    assert "kimg 2.0" in (tmp_path / "log.txt").read_text()


def test_null_monitor_has_every_method_of_the_monitor(capsys):
    null = NullMonitor()
    for name, method in inspect.getmembers(Monitor, inspect.isfunction):
        if not name.startswith("_"):
            arguments = [None] * (len(inspect.signature(method).parameters) - 1)
            assert getattr(null, name)(*arguments) is None
    assert capsys.readouterr().out == ""


def test_a_record_that_cannot_be_kept_true_stops_the_start(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl is no plain file"):
        make(tmp_path)
