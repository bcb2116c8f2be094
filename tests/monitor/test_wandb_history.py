"""One W&B run over all restarts: what its newest file holds, and what a server is sent."""

import json
import math
import time

import numpy as np
import pytest
from evaluations import add_scores
from metrics_reader import read
from PIL import Image
from wandb_reader import read_offline_runs
from wandb_server import serve

from stylegan_dist.monitor.history import MOST_PICTURES, Results, history

TRAIN = """
    import torch
    from stylegan_dist.monitor import monitor as m
    from stylegan_dist.monitor.images import save_grid
    from evaluations import add_scores

    root = Path({run_dir!r})
    (root / "samples").mkdir(exist_ok=True)

    def begin(segment, nimg, mode="offline", **more):
        config = MonitorConfig(wandb=mode, wandb_project="p", **more)
        return m.Monitor(Segment(root, segment, nimg), 100_000, config, {{"seed": 3}})

    def train(monitor, first, last, branch=0.0):
        for nimg in range(first, last, 1000):
            monitor.tick({{"loss/g_main": nimg / 1000 + branch, "guard/rollbacks": float(branch > 0)}}, nimg)
            if nimg % 4000 == 0:
                path = root / "samples" / f"nimg-{{nimg:08d}}.png"
                save_grid(path, torch.full((1, 3, 64, 64), branch), 1)
                monitor.image("samples", path, nimg)
                monitor.histograms({{"histogram/logits_real": torch.arange(8.0) + branch}}, nimg)
"""


@pytest.fixture
def script(tmp_path):
    return TRAIN.format(run_dir=str(tmp_path))


def newest(tmp_path):
    return read_offline_runs(tmp_path)[-1]


def scores_of(run, name):
    """Images seen at the checkpoint -> score."""
    found = [(row["eval/nimg"], row[f"eval/{name}"]) for row in run.history if f"eval/{name}" in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def assert_is_the_run(run, tmp_path):
    """The curves of a W&B record are those of metrics.jsonl."""
    records = read(tmp_path / "metrics.jsonl")
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    for name in ("loss/g_main", "guard/rollbacks"):
        assert run.values(name) == {record["nimg"]: record[name] for record in records}
    assert {row["_step"]: row["nimg"] for row in run.history if "loss/g_main" in row} == {r["nimg"]: r["nimg"] for r in records}
    segments = run.values("run/segment")
    assert {record["nimg"]: segments[record["nimg"]] for record in records} == {r["nimg"]: r["segment"] for r in records}
    times = run.values("_timestamp")
    for record in records:
        assert times[record["nimg"]] == pytest.approx(record["time"], abs=60)


def test_the_newest_file_of_a_preempted_resumed_and_rolled_back_run_is_the_whole_run(run, script, tmp_path):
    first = script + """
    monitor = begin(0, 0)
    train(monitor, 1000, 9000)
    add_scores(root, 4000, fd=9.0, precision=(0.5, 0.1))
    train(monitor, 9000, 10_000)
    monitor.finish(75)
    """
    run(first)
    (one,) = read_offline_runs(tmp_path)
    assert_is_the_run(one, tmp_path)
    assert (one.preempting, one.exit_code) == (True, 75)
    assert scores_of(one, "fd") == {4000: 9}

    run(script + """
    monitor = begin(1, 8000)
    train(monitor, 9000, 15_000, branch=0.0)
    add_scores(root, 12_000, "b", time=1.0, fd=5.0, precision=0.6)
    train(monitor, 15_000, 16_000)
    monitor.go_back(8000)
    train(monitor, 9000, 21_000, branch=0.25)
    add_scores(root, 12_000, "c", time=2.0, fd=6.0, precision=0.7)
    add_scores(root, 16_000, "d", time=3.0, fd=7.0, precision=0.4)
    monitor.finish(0)
    """)
    whole = newest(tmp_path)
    assert_is_the_run(whole, tmp_path)
    assert whole.exit_code == 0
    assert whole.values("loss/g_main")[8000] == 8
    assert whole.values("loss/g_main")[9000] == 9.25
    assert scores_of(whole, "fd") == {4000: 9, 12_000: 6, 16_000: 7}
    assert scores_of(whole, "precision_error") == {4000: 0.1}
    assert whole.metrics["eval/fd"] == whole.metrics["eval/precision"] == "eval/nimg"
    assert (whole.summaries["eval/fd"], whole.summaries["eval/precision"]) == ({"min", "last"}, {"max", "last"})
    assert not any("nimg" in row for row in whole.history if "eval/fd" in row)
    for name in ("samples", "histogram/logits_real"):
        assert sorted(whole.values(name)) == [4000, 8000, 12_000, 16_000, 20_000]
    assert Image.open(whole.image_path("samples", 8000)).getpixel((5, 5)) == (128, 128, 128)
    assert Image.open(whole.image_path("samples", 12_000)).getpixel((5, 5)) != (128, 128, 128)
    assert whole.config["seed"] == 3
    assert set(whole.config["versions"]) >= {"PyTorch", "wandb"}
    assert len({each.run_id for each in read_offline_runs(tmp_path)}) == 1


def test_the_command_that_uploads_names_the_newest_file_alone(run, script, tmp_path, capsys):
    for segment in range(2):
        run(script + f"""
    monitor = begin({segment}, {segment} * 2000)
    train(monitor, 1000 + {segment} * 2000, 3000 + {segment} * 2000)
    monitor.finish(0)
        """)
    said = (tmp_path / "log.txt").read_text()
    for place in sorted((tmp_path / "wandb").glob("offline-run-*")):
        assert f"wandb sync {place}\n" in said
    assert "*" not in said


def test_scores_reach_a_run_whose_training_has_ended(run, script, tmp_path):
    give = """
    before = len(list(root.glob("wandb/offline-run-*")))
    config = MonitorConfig(wandb="offline", wandb_project="p", tensorboard=True)
    m.give_results(Segment(root, 0, 3000), config, {}, 0, said.append, warned.append)
    after = len(list(root.glob("wandb/offline-run-*")))
    """
    run(script + """
    monitor = begin(0, 0, tensorboard=True)
    train(monitor, 1000, 4000)
    monitor.finish(0)
    """)
    out = run(script + give + "assert before == after == 1\n")
    assert not out["wandb"]
    add_scores(tmp_path, 2000, fd=3.0)
    add_scores(tmp_path, 3000, "b", fd=2.0)
    (tmp_path / "evaluation").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "evaluation" / "truncation.png")
    frames = [Image.new("P", (8, 8), shade) for shade in (0, 9)]
    (tmp_path / "evaluation" / "damaged.png").write_bytes(b"no picture")
    for name in ("interpolation.gif", "other.webp"):
        frames[0].save(tmp_path / "evaluation" / name, save_all=True, append_images=frames[1:])
    assert run(script + give)["warned"] == []
    whole = newest(tmp_path)
    assert_is_the_run(whole, tmp_path)
    assert scores_of(whole, "fd") == {2000: 3, 3000: 2}
    assert whole.image_path("pictures/truncation", 3000).exists()
    assert whole.values("pictures/interpolation_clip")[3000]["_type"] == "video-file"
    assert whole.image_path("pictures/other", 3000).suffix == ".webp"
    assert not run(script + give + "assert before == after == 2\n")["wandb"]


def test_one_process_writes_at_a_time(run, script, tmp_path):
    out = run(script + """
    from stylegan_dist.monitor import tracker as t
    import fcntl
    (root / "wandb").mkdir()
    (root / "wandb_id").write_text("abcdefgh")
    other = open(root / "wandb" / t.LOCK_NAME, "w")
    fcntl.flock(other, fcntl.LOCK_EX)
    add_scores(root, 1000, fd=1.0)
    monitor = begin(0, 0)
    train(monitor, 1000, 3000)
    wait_for(lambda: monitor._trackers[0]._lock)
    time.sleep(0.5)
    t.LOCK_SECONDS = 0.0
    m.give_results(Segment(root, 0, 1000), MonitorConfig(wandb="offline"), {}, 0, said.append, warned.append)
    other.close()
    monitor.finish(0)
    """)
    (warning,) = out["warned"]  # of the evaluator; the training has waited in the background
    assert "another process writes" in warning
    (one,) = read_offline_runs(tmp_path)
    assert_is_the_run(one, tmp_path)
    assert scores_of(one, "fd") == {1000: 1}


def test_checkpoints_are_references(run, tmp_path):
    folder = tmp_path / "checkpoints" / "nimg-00004000"
    folder.mkdir(parents=True)
    (folder / "g.safetensors").write_bytes(b"weights")
    out = run(f"""
        w = tracker()
        w.checkpoint(Path({str(folder)!r}), 4000)
        w.checkpoint(Path({str(folder.with_name("gone"))!r}), 8000)
        w.finish(0)
    """)
    assert out["warned"] == []
    (artifact,) = newest(tmp_path).artifacts
    assert artifact["aliases"] == {"latest", "nimg-4000"}
    assert artifact["references"] == [f"file://{folder}/g.safetensors"]


@pytest.mark.full
def test_a_server_is_sent_what_it_lacks_and_nothing_twice(run, script, tmp_path):
    with serve() as server:
        run(script + """
    monitor = begin(0, 0, "online")
    train(monitor, 1000, 5000)
    add_scores(root, 2000, fd=4.0)
    train(monitor, 5000, 6000)
    monitor.finish(75)
        """, **server.environment)
        first = server.rows()
        server.resume_at = 3000  # the rest was lost
        server.bodies.clear()
        run(script + """
    monitor = begin(1, 4000, "online")
    train(monitor, 5000, 8000)
    add_scores(root, 6000, fd=3.0)
    train(monitor, 8000, 9000)
    monitor.finish(0)
        """, **server.environment)
        second = server.rows()
    assert [row["nimg"] for row in first if "loss/g_main" in row] == [1000, 2000, 3000, 4000, 5000]
    assert [row["nimg"] for row in second if "loss/g_main" in row] == [4000, 5000, 6000, 7000, 8000]
    assert [(row["eval/nimg"], row["eval/fd"]) for row in (*first, *second) if "eval/fd" in row] == [(2000, 4), (6000, 3)]


def test_history_is_bounded_in_pictures_and_passes_over_what_is_damaged(tmp_path):
    (tmp_path / "samples").mkdir()
    for number in range(100):
        (tmp_path / "samples" / f"nimg-{number * 100:08d}.png").write_bytes(b"x")
    lines = ['{"nimg": 100, "segment": 1, "time": 5.0, "a": "NaN"}', "damaged", '{"nimg": 200, "a": "text"}',
             '{"nimg": 9999999}', '{"nimg": 150, "a": [1]}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = {"nimg": 100, "h": {"counts": [1, 2], "low": 0.0, "high": 1.0},
              "i": {"counts": [], "low": 0.0, "high": 1.0}, "j": 7}
    (tmp_path / "histograms.jsonl").write_text(json.dumps(record) + "\n")
    found = {moment.nimg: moment for moment in history(tmp_path, -1, 9_900)}
    pictures = [nimg for nimg, moment in found.items() if moment.pictures]
    assert len(pictures) == MOST_PICTURES
    assert (pictures[0], pictures[-1]) == (0, 9_900)
    assert math.isnan(found[100].metrics["a"])
    assert (found[100].segment, found[100].time, list(found[100].histograms)) == (1, 5.0, ["h"])
    assert np.array_equal(found[100].histograms["h"].edges, [0.0, 0.5, 1.0])
    assert [nimg for nimg, moment in found.items() if moment.metrics is not None] == [100]
    assert [moment.nimg for moment in history(tmp_path, 100, 300)] == [200, 300]


def test_history_has_what_moves_and_what_is_heard(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("reals.png", "reals.gif", "nimg-00000100.png", "nimg-00000100.gif", "nimg-00000100.wav"):
        (tmp_path / "samples" / name).write_bytes(b"x")
    found = {moment.nimg: sorted(moment.pictures) for moment in history(tmp_path, -1, 100)}
    assert found == {0: ["reals", "reals_clip"], 100: ["samples", "samples_clip", "samples_sounds"]}


def test_results_are_given_once_and_again_after_a_change(tmp_path):
    book = tmp_path / "book.json"
    results = Results(tmp_path, book)
    assert not results.has_news(10**9)
    add_scores(tmp_path, 1000, fd=1.0)
    add_scores(tmp_path, 9000, "b", fd=2.0)
    (one, scores), = results.scores(5000)
    assert (one.nimg, list(scores)) == (1000, ["fd"])
    results.given(one, set(scores))
    results.save()
    again = Results(tmp_path, book)
    assert again.scores(5000) == []
    add_scores(tmp_path, 1000, fd=1.0, kid=2.0)  # with one more, in the place of the former
    (_, scores), = again.scores(5000)
    assert list(scores) == ["kid"]
    again.forget(500)
    (_, scores), = again.scores(5000)
    assert set(scores) == {"fd", "kid"}
    book.write_text('{"scores": 3, "files": []}')
    assert len(Results(tmp_path, book).scores(10_000)) == 2


def test_a_changed_picture_of_an_evaluation_is_new(tmp_path):
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "classes.png"
    path.write_bytes(b"one")
    results = Results(tmp_path, tmp_path / "book.json")
    assert results.files() == [("pictures/classes", path)]
    results.given_file(path)
    assert results.files() == []
    results.forget(500)
    assert results.files() == []
    results.forget()
    assert results.files() == [("pictures/classes", path)]
    results.given_file(path)
    time.sleep(0.01)
    path.write_bytes(b"another")
    assert results.files() == [("pictures/classes", path)]
