"""Sets of generated images: counts, labels, provenance, the same images however many are drawn, continued after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from untrained_run import make_run

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream, ReaderOptions
from stylegan_dist.tools import generated_set
from stylegan_dist.training.snapshot import load_generator


def made(run: Path, out: Path, *words: str) -> int:
    return main(["augment-dataset", str(run), str(out), *words, "--device", "cpu"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("conditional") / "run", 3, resolution=8)


def images_of(folder: Path) -> dict[bytes, int]:
    """Pixels -> class, of a whole set."""
    index = load_index(folder)
    stream = BatchStream(index, StreamPlan(0, 1, 1, index.num_samples), ReaderOptions(workers=0))
    batch = next(stream)
    stream.close()
    return {pixels.numpy().tobytes(): int(label) for pixels, label in zip(batch["sample"], batch["label"], strict=True)}


def test_a_sample_does_not_depend_on_how_many_are_drawn(run: Path, tmp_path: Path):
    assert made(run, tmp_path / "few", "--counts", "0=3,2=20") == 0
    assert made(run, tmp_path / "many", "--per-class", "21") == 0
    few, many = images_of(tmp_path / "few"), images_of(tmp_path / "many")
    assert sorted(few.values()) == [0] * 3 + [2] * 20
    assert few.items() <= many.items()
    assert main(["verify", str(tmp_path / "many")]) == 0
    assert made(run, tmp_path / "other", "--per-class", "3", "--seed", "1") == 0
    assert not set(images_of(tmp_path / "other")) & set(many)


def test_the_index_says_what_made_it(run: Path, tmp_path: Path):
    assert made(run, tmp_path / "out", "--counts", "1=4", "--trunc", "0.5") == 0
    index = load_index(tmp_path / "out")
    assert index.class_counts == [0, 4, 0]
    assert index.packed_with["generated_by"] == {"checkpoint": load_generator(run, torch.device("cpu")).digest, "nimg": 1000,
                                                 "counts": [0, 4, 0], "seed": 0, "psi": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_rare_classes_lack(run: Path, tmp_path: Path):
    assert made(run, tmp_path / "real", "--counts", "0=5,1=2,2=1") == 0
    content = json.loads((tmp_path / "real/index.json").read_text())
    (tmp_path / "real/index.json").write_text(json.dumps({**content, "classes": ["cat", "dog", "cow"]}))
    assert made(run, tmp_path / "out", "--balance", str(tmp_path / "real")) == 0
    index = load_index(tmp_path / "out")
    assert index.class_counts == [0, 3, 4]
    assert index.classes == ["cat", "dog", "cow"]
    load_index(f"{tmp_path / 'real'} {tmp_path / 'out'}")  # they train together


def test_an_interrupted_one_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert made(run, tmp_path / "whole", "--per-class", "20") == 0
    saved = generated_set.save_picture
    left = iter(range(37))

    def save(path, pixels):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        saved(path, pixels)

    monkeypatch.setattr(generated_set, "save_picture", save)
    assert made(run, tmp_path / "out", "--per-class", "20") == 2
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(generated_set, "save_picture", saved)
    assert made(run, tmp_path / "out", "--per-class", "21") == 2
    assert "another command" in capsys.readouterr().err
    assert made(run, tmp_path / "out", "--per-class", "20") == 0
    assert images_of(tmp_path / "out") == images_of(tmp_path / "whole")
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.suffix == ".tar"]
    assert names
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


@pytest.mark.parametrize(("words", "message"), [
    (["--counts", "3=1"], "--counts: class 3 does not exist"), (["--counts", "1"], "class=samples"),
    (["--counts", "1=0"], "0 samples"), (["--balance", "nowhere"], "nowhere"),
])
def test_bad_counts_are_refused(run: Path, tmp_path: Path, capsys, words, message):
    assert made(run, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_without_labels_and_in_the_place_of_something(run: Path, tmp_path: Path, capsys):
    plain = make_run(tmp_path / "run", 0, resolution=8)
    assert made(plain, tmp_path / "out", "--per-class", "1") == 2
    assert "without labels" in capsys.readouterr().err
    assert made(run, plain, "--per-class", "1") == 2
    assert "not empty" in capsys.readouterr().err
