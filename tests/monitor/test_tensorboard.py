"""TensorBoard's files, read back as TensorBoard reads them."""

import numpy as np
import pytest
import torch
from evaluations import add_scores
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.kinds.audio import write_wav
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.monitor.monitor import Monitor
from stylegan_dist.monitor.tracker import Segment


def begin(run_dir, segment=0, nimg=0, tensorboard=True):
    config = MonitorConfig(wandb="disabled", tensorboard=tensorboard)
    return Monitor(Segment(run_dir, segment, nimg), 10_000, config, {"seed": 5})


def train(monitor, run_dir, first, last, branch=0.0):
    for nimg in range(first, last, 1000):
        monitor.tick({"loss/g_main": nimg / 1000 + branch}, nimg)
        if nimg % 2000 == 0:
            path = run_dir / "samples" / f"nimg-{nimg:08d}.png"
            path.parent.mkdir(exist_ok=True)
            save_grid(path, torch.full((1, 3, 64, 64), branch), 1)
            monitor.image("samples", path, nimg)
            monitor.histograms({"histogram/logits_fake": torch.arange(10.0)}, nimg)


def shown(run_dir):
    """What TensorBoard shows."""
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0})
    return accumulator.Reload()


def curve(run_dir, name):
    points = [(event.step, event.value) for event in shown(run_dir).Scalars(name)]
    assert len(dict(points)) == len(points)
    return {step: pytest.approx(value) for step, value in points}


def test_a_resumed_and_rolled_back_run_is_one_curve(tmp_path):
    monitor = begin(tmp_path)
    train(monitor, tmp_path, 1000, 5000)
    add_scores(tmp_path, 4000, "a", fd=3.0, kid=(0.5, 0.1))
    monitor.finish(75)
    monitor = begin(tmp_path, 1, 2000)
    train(monitor, tmp_path, 3000, 7000, 0.25)
    add_scores(tmp_path, 6000, "b", time=1.0, fd=8.0)
    train(monitor, tmp_path, 7000, 8000, 0.25)
    monitor.alert("diverged", "the loss is NaN")
    monitor.go_back(4000)
    train(monitor, tmp_path, 5000, 8000, 0.5)
    add_scores(tmp_path, 6000, "c", time=2.0, fd=2.0)
    monitor.finish(0)

    expected = {1000: 1, 2000: 2, 3000: 3.25, 4000: 4.25, 5000: 5.5, 6000: 6.5, 7000: 7.5}
    assert curve(tmp_path, "loss/g_main") == expected
    assert curve(tmp_path, "run/segment") == {nimg: int(nimg > 2000) for nimg in expected}
    assert curve(tmp_path, "eval/fd") == {4000: 3, 6000: 2}
    assert curve(tmp_path, "eval/kid_error") == {4000: 0.1}
    seen = shown(tmp_path)
    assert [event.step for event in seen.Images("samples")] == [2000, 4000, 6000]
    assert seen.Images("samples")[-1].encoded_image_string == (tmp_path / "samples" / "nimg-00006000.png").read_bytes()
    assert [event.step for event in seen.Histograms("histogram/logits_fake")] == [2000, 4000, 6000]
    histogram = seen.Histograms("histogram/logits_fake")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (10, 0, 9)
    text = seen.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "seed: 5" in text
    assert "PyTorch" in text
    assert "diverged: the loss is NaN" in seen.Tensors("alerts/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_a_run_that_turns_it_on_later_has_all_of_it(tmp_path):
    monitor = begin(tmp_path, tensorboard=False)
    train(monitor, tmp_path, 1000, 5000)
    monitor.finish(75)
    assert not (tmp_path / "tensorboard").exists()
    monitor = begin(tmp_path, 1, 4000)
    train(monitor, tmp_path, 5000, 6000)
    monitor.finish(0)
    assert curve(tmp_path, "loss/g_main") == {nimg: nimg / 1000 for nimg in range(1000, 6000, 1000)}
    assert [event.step for event in shown(tmp_path).Images("samples")] == [2000, 4000]


def test_clips_are_shown_where_the_page_can(tmp_path):
    frames = [Image.new("P", (8, 6), shade) for shade in (0, 9)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "b.mp4").write_bytes(b"x")
    monitor = begin(tmp_path)
    monitor.image("a", tmp_path / "a.gif", 1000)
    monitor.image("b", tmp_path / "b.mp4", 1000)
    monitor.finish(0)
    seen = shown(tmp_path)
    assert seen.Tags()["images"] == ["a"]
    assert (seen.Images("a")[0].width, seen.Images("a")[0].height) == (8, 6)


def test_sounds_are_heard(tmp_path):
    """Given at once, and with the history."""
    monitor = begin(tmp_path, tensorboard=False)
    train(monitor, tmp_path, 1000, 3000)
    write_wav(tmp_path / "samples" / "nimg-00002000.wav", np.linspace(-0.5, 0.5, 300), 8000)
    monitor.finish(75)
    monitor = begin(tmp_path, 1, 2000)
    monitor.image("samples_sounds", tmp_path / "samples" / "nimg-00002000.wav", 4000)
    monitor.finish(0)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"), {"audio": 0}).Reload()
    seen = accumulator.Audio("samples_sounds")
    assert [(one.step, one.sample_rate, one.length_frames) for one in seen] == [(2000, 8000, 300), (4000, 8000, 300)]


def test_pictures_that_came_with_the_history_are_drawn_again_after_a_roll_back(tmp_path):
    monitor = begin(tmp_path, tensorboard=False)
    train(monitor, tmp_path, 1000, 5000)
    monitor.finish(75)
    monitor = begin(tmp_path, 1, 4000)  # TensorBoard is new: it gets the pictures at 2000 and 4000
    train(monitor, tmp_path, 5000, 6000)
    monitor.go_back(3000)
    train(monitor, tmp_path, 4000, 6000, 0.5)
    monitor.finish(0)
    seen = shown(tmp_path).Images("samples")
    assert [event.step for event in seen] == [2000, 4000]
    assert seen[-1].encoded_image_string == (tmp_path / "samples" / "nimg-00004000.png").read_bytes()


def test_a_damaged_picture_is_left_out(tmp_path, capsys):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/a.png").write_bytes(b"")
    save_grid(tmp_path / "evaluation/b.png", torch.zeros(1, 3, 64, 64), 1)
    monitor = begin(tmp_path)
    train(monitor, tmp_path, 1000, 6000)
    monitor.finish(0)
    assert len(curve(tmp_path, "loss/g_main")) == 5
    assert shown(tmp_path).Tags()["images"] == ["pictures/b", "samples"]
    assert "WARNING" not in capsys.readouterr().out


def test_failures_are_one_warning(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where the folder belongs")
    monitor = begin(tmp_path)
    train(monitor, tmp_path, 1000, 5000)
    monitor.finish(0)
    shown = capsys.readouterr().out
    assert shown.count("WARNING") == 1
    assert "TensorBoard is off, it did not start" in shown
