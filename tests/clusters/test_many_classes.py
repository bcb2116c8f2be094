"""Sets with very many classes, most of them without an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import TINY, TINY_R3GAN
from small_features import small_features

from stylegan_dist.cli import main
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.passes import new_folder
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation import evaluate as evaluating
from stylegan_dist.evaluation import reals
from stylegan_dist.evaluation.record import read_evaluations
from stylegan_dist.making.relabel import write_relabelled
from stylegan_dist.making.verify import verify
from stylegan_dist.metrics import frechet_by_class
from stylegan_dist.metrics.frechet import ClassDistance, frechet_distance

MANY = 20_000
USED = (7, MANY // 2, MANY - 2)  # and with very unequal numbers of images


def with_classes(data: Path, out: Path, classes: int = MANY, used: tuple[int, ...] = USED) -> DatasetIndex:
    """The same images, of which all but two are of the first of the used classes."""
    index = load_index(data)
    numbers = np.full(index.num_samples, used[0])
    numbers[[3, 40]] = used[1:3]
    parts = np.split(numbers, np.cumsum([shard.samples for shard in index.shards])[:-1])
    return write_relabelled(index, parts, classes, {"method": "by hand"}, new_folder(out))


def test_what_is_told_of_many_classes_is_short(small_shards, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with_classes(small_shards, one)
    with_classes(small_shards, two, MANY - 1)
    with pytest.raises(InputError, match=f"cannot be mixed: they have {MANY} and {MANY - 1} classes"):
        load_index(f"{one} {two}")
    content = json.loads((two / "index.json").read_text())
    content["class_counts"][5], content["class_counts"][7] = 1, 57
    (two / "index.json").write_text(json.dumps(content))
    assert [str(problem).partition(";")[0] for problem in verify(two, workers=1)] == [
        "index.json: class_counts promise 1 of class 5 and hold 0, 57 of class 7 and hold 58"]


def test_labels_outside_are_refused(small_shards, tmp_path, capsys):
    with_classes(small_shards, tmp_path / "set")
    content = json.loads((tmp_path / "set" / "index.json").read_text())
    for name in ("classes", "class_counts"):
        content[name] = content[name][:100]
    (tmp_path / "set" / "index.json").write_text(json.dumps(content))
    assert main(["peek", str(tmp_path / "set"), "--out", str(tmp_path / "peek.png")]) == 2
    assert "does not know, such as" in capsys.readouterr().err


def test_distances_of_many_classes():
    """As of each class alone, and quickly, though most classes have no sample."""
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(1)) * 4_999 + 3
    found = frechet_by_class(rows[:200], labels[:200], rows[200:], labels[200:], MANY)
    assert len(found) == MANY
    for number in range(4):
        label = 4_999 * number + 3
        ours, theirs = rows[:200][labels[:200] == label], rows[200:][labels[200:] == label]
        assert (found[label].value, found[label].real) == (frechet_distance(ours, theirs), len(ours))
    assert found[0] == ClassDistance(None, 0, 0, None)


@pytest.mark.full
@pytest.mark.parametrize("networks", [TINY, TINY_R3GAN], ids=["stylegan2", "r3gan"])
def test_a_run_with_many_classes(small_shards, tmp_path, monkeypatch, networks):
    """It trains on what there is, draws pictures, is scored by class, and every class can be drawn."""
    with_classes(small_shards, tmp_path / "set")
    run = tmp_path / "run"
    assert main(["train", *networks, f"data.shards={tmp_path / 'set'}", f"run.dir={run}", "run.kimg=0.016",
                 "monitor.pictures_kimg=0.016"]) == 0
    state = json.loads(next(run.glob("checkpoints/nimg-*/state.json")).read_text())
    assert state["data"]["num_classes"] == MANY
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: small_features(device))
    monkeypatch.setattr(reals, "user_folder", lambda name: tmp_path)
    assert main(["evaluate", str(run), "--count", "60", "--metrics", "kid,classes", "--device", "cpu"]) == 0
    scored, = read_evaluations(run)
    assert "fd_classes_small" in scored.scores
    assert scored.by_class == (), "the line would be longer than readers take"
    assert main(["generate", str(run), "--seeds", "0,1", "--class", str(MANY - 1), "--device", "cpu",
                 "--out", str(tmp_path / "pictures")]) == 0
