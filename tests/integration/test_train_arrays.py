"""A run on log-mel spectrograms: the same path as images, and sounds come out of it."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import TINY
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.kinds.audio import read_sound, write_wav
from stylegan_dist.training.snapshot import load_generator

SETTINGS = [setting for setting in TINY if not setting.startswith("data.mirror")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(24):
        seconds = np.arange(1200 + 30 * number) / 8000
        tone = 0.4 * np.sin(2 * np.pi * (400 + 900 * (number % 3)) * seconds)
        write_wav(folder / f"{number % 3}_tone_{number}.wav", tone, 8000)
    assert main(["pack", str(folder), str(folder / "shards"), "--log-mel", "--resolution", "16", "--labels", "names"]) == 0
    return folder / "shards"


def train(shards: Path, run_dir: Path, *settings: str) -> int:
    return main(["train", *SETTINGS, f"data.shards={shards}", f"run.dir={run_dir}", *settings])


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[dict]:
    return [{name: value for name, value in record.items() if not name.startswith(("time", "memory", "data", "wall"))
             and isinstance(value, float)} for record in records(run_dir)]


def test_trains_continues_and_generates(shards, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(shards, run, "run.kimg=0.016") == 0
    assert train(shards, run, "run.kimg=0.032", "data.workers=1") == 0
    assert train(shards, tmp_path / "whole", "run.kimg=0.032") == 0
    assert losses(run) == losses(tmp_path / "whole")
    assert len(losses(run)) == 4
    assert "24 spectrograms, 16 px, 1 channel of float16, 3 classes" in (run / "log.txt").read_text()
    reals = np.asarray(Image.open(run / "samples" / "reals.png"))
    assert (reals.min(), reals.max()) == (0, 255)
    assert (run / "samples" / "nimg-00000032.png").is_file()
    with wave.open(str(run / "samples" / "nimg-00000032.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 4 * (2048 + 1200)), "a row of four, with pauses"
    heard = read_sound((run / "samples" / "reals.wav").read_bytes(), 10**6)[1].reshape(4, 3248)
    assert (np.abs(heard[:, :1000]).max(1) > 0.1).all(), "tones of 0.4 at the beginning of each"
    assert (heard[:, 2048:] == 0).all()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.count('<audio src="data:audio/wav;base64,UklGR') == 4, "three of the run, and real ones"
    assert "media-src data:" in page

    index = load_index(shards)
    snapshot = load_generator(run, torch.device("cpu"))
    assert snapshot.nimg == 32
    assert snapshot.kind == index.kind
    assert main(["generate", str(run), "--seeds", "0-2", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["grid.png", *(f"seed000{i}-class{i}.{ending}" for i in range(3) for ending in ("npy", "png", "wav"))]
    values = np.load(tmp_path / "out" / "seed0001-class1.npy", allow_pickle=False)
    assert (values.shape, values.dtype) == ((1, 16, 16), np.float16)
    picture = np.asarray(Image.open(tmp_path / "out" / "seed0001-class1.png")).astype(float)
    seen = (values[0, ::-1].astype(float) - index.kind.offset[0]) / index.kind.scale[0]
    assert np.abs(np.clip(seen * 127.5 + 127.5, 0, 255) - picture).max() < 1
    with wave.open(str(tmp_path / "out" / "seed0001-class1.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getsampwidth()) == (8000, 2048, 2)
    capsys.readouterr()


def test_another_normalisation_is_other_data(shards, tmp_path, capsys):
    assert train(shards, tmp_path / "run", "run.kimg=0.008") == 0
    assert main(["index", str(shards), str(tmp_path / "other"), "--offset", "-40", "--scale", "40"]) == 0
    assert train(tmp_path / "other", tmp_path / "run", "run.kimg=0.016") == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_accuracy_of_sounds_and_networks_of_another_form(shards, tmp_path, capsys):
    """A network that has learnt these sounds reads the generated ones; one of another form of spectrogram is refused."""
    run, other = tmp_path / "run", tmp_path / "phases"
    assert train(shards, run, "run.kimg=0.008") == 0
    assert main(["pack", str(shards.parent), str(other), "--form", "linear", "--resolution", "16", "--labels", "names"]) == 0
    for data, out in ((shards, tmp_path / "own"), (other, tmp_path / "foreign")):
        assert main(["train-features", str(data), str(out), "--kimg", "0.1", "--device", "cpu"]) == 0
    score = ["evaluate", str(run), "--count", "24", "--metrics", "accuracy", "--device", "cpu", "--network"]
    assert main([*score, str(tmp_path / "own")]) == 0
    assert "accuracy_own_" in capsys.readouterr().out, "it chooses the best checkpoint"
    assert main([*score, str(tmp_path / "foreign")]) == 2
    assert "has learnt samples of another form" in capsys.readouterr().err
