"""`stylegan-dist label`: the same clusters on any number of ranks, labels that training reads, and shards that stay."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forking import run_ranks
from launching import ROOT, finished, launcher_command, trained
from PIL import Image
from small_features import small_features

from stylegan_dist.cli import main
from stylegan_dist.clusters.label import SHEET, LabelOptions, label
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.evaluation import reals
from stylegan_dist.features import registry
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.verify import verify
from stylegan_dist.ranks import ALONE, Ranks

COLOURS = {"red": (220, 30, 30), "green": (40, 200, 60), "blue": (20, 40, 230)}
FEW = LabelOptions(4, sample=30)
SIZES = {"red": 40, "green": 22, "blue": 9}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """71 images in three colours with noise; the folder of each is its colour."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(SIZES[name]):
            pixels = np.clip(rng.normal(colour, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def unlabelled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(photos, tmp_path_factory.mktemp("unlabelled") / "set", "none")


def packed(photos: Path, out: Path, labels: str) -> Path:
    pack(photos, out, PackOptions(ImageOptions(16), labels=labels, samples_per_shard=20, workers=1))
    return out


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature network that takes no time. No features are kept from one test for the next."""
    monkeypatch.setattr(registry, "open_features", lambda name, device: small_features(device))
    monkeypatch.setattr(reals, "user_folder", lambda name: tmp_path)


def colour(data: bytes) -> str:
    mean = np.asarray(Image.open(io.BytesIO(data))).mean((0, 1))
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def samples_of(folder: Path) -> list[tuple[str, int]]:
    """Colour and label of every sample, as training reads them."""
    index = load_index(folder)
    reader = ShardReader(index)
    found = [reader.read(s, i) for s, shard in enumerate(index.shards) for i in range(shard.samples)]
    reader.close()
    return [(colour(data), label) for data, label in found]


def test_colours_become_classes_and_no_byte_of_the_set_changes(unlabelled, tmp_path, capsys):
    before = {file.name: file.read_bytes() for file in unlabelled.iterdir()}
    out = tmp_path / "three"
    assert main(["label", str(unlabelled), "--clusters", "3", "--out", str(out)]) == 0
    assert "3 clusters of 40, 22, 9 samples" in capsys.readouterr().out
    assert set(samples_of(out)) == {("red", 0), ("green", 1), ("blue", 2)}, "the largest cluster is class 0"
    assert {file.name: file.read_bytes() for file in unlabelled.iterdir()} == before
    index, old = load_index(out), load_index(unlabelled)
    assert (index.classes, index.class_counts) == (["0", "1", "2"], [40, 22, 9])
    assert index.fingerprint != old.fingerprint
    assert [shard.sha256 for shard in index.shards] == [shard.sha256 for shard in old.shards]
    assert not list(out.glob("*.tar"))
    assert index.packed_with["labels_from"] | {"mean_squared_distance": 0} == {
        "method": "k-means", "clusters": 3, "features": "small", "features_sha256": "0" * 64, "resize": "bicubic-antialias-16",
        "sample": 71, "seed": 0, "rounds": index.packed_with["labels_from"]["rounds"], "mean_squared_distance": 0,
        "data": old.fingerprint}
    assert verify(out, workers=1) == []
    assert Image.open(out / SHEET).size == (10 * 66 - 2, 3 * 66 - 2 + 3 * 15), "a row for each cluster, with a line above"


def test_all_samples_get_labels_from_the_clusters_of_a_few(unlabelled, tmp_path):
    found = label(unlabelled, tmp_path / "out", small_features, LabelOptions(3, sample=25), ALONE)
    assert found.sizes.tolist() == [40, 22, 9]
    assert set(samples_of(tmp_path / "out")) == {("red", 0), ("green", 1), ("blue", 2)}


@pytest.mark.slow
def test_any_number_of_ranks_and_any_batch_give_the_same_files(unlabelled, tmp_path, monkeypatch):
    """Two ranks are started by a new process: this one may have threads."""
    done = finished([sys.executable, __file__, str(unlabelled), str(tmp_path / "two")], PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr
    label(unlabelled, tmp_path / "one", small_features, FEW, ALONE)
    monkeypatch.setattr(reals, "user_folder", lambda name: None)
    for name in ("evaluation.reals", "evaluation.samples", "clusters.label"):
        monkeypatch.setattr(f"stylegan_dist.{name}.BATCH", 7)
    label(unlabelled, tmp_path / "seven", small_features, FEW, ALONE)
    one, two, seven = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
                       for name in ("one", "two", "seven"))
    assert len(one) == 6, "four offsets, the index and the picture"
    assert one == two
    assert one == seven


def test_a_dry_run_writes_nothing(unlabelled, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(unlabelled.parent.iterdir())
    assert main(["label", str(unlabelled), "--clusters", "3", "--sample", "25", "--dry-run"]) == 0
    assert "of 25 samples: 3 clusters of " in capsys.readouterr().out
    assert sorted(unlabelled.parent.iterdir()) == before


def test_labels_are_replaced_only_on_demand(photos, tmp_path, capsys):
    labelled = packed(photos, tmp_path / "set", "folders")
    assert main(["label", str(labelled), "--clusters", "2"]) == 2
    assert "has labels already, of 3 classes: give --replace" in capsys.readouterr().err
    assert main(["label", str(labelled), "--clusters", "3", "--replace"]) == 0
    made = tmp_path / "set-3-clusters"
    assert set(samples_of(made)) == {("red", 0), ("green", 1), ("blue", 2)}
    assert set(samples_of(labelled)) == {("red", 2), ("green", 1), ("blue", 0)}, "the old set has its own"
    assert verify(made, workers=1) == [], "the classes in the tar files are the old ones"
    assert main(["label", str(made), "--clusters", "3", "--replace", "--out", str(tmp_path / "again")]) == 0
    assert load_index(tmp_path / "again").shards_at == str(labelled), "not a set of a set"


@pytest.mark.parametrize(("arguments", "told"), [
    (["--clusters", "72"], "--clusters 72 is too many: "),
    (["--clusters", "26", "--sample", "25"], "gives 25 to decide"),
    (["--clusters", "0"], "--clusters must be a whole number"),
    (["--clusters", "2", "--best"], "give --run, too"),
    (["--clusters", "2", "--run", "nowhere"], "nowhere"),
    (["--clusters", "2", "--out", "full"], "full is not empty"),
    (["--clusters", "2", "--out", "file"], "cannot use the folder file"),
])
def test_mistakes_get_a_line(unlabelled, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    assert main(["label", str(unlabelled), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("error:") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "full"]


def test_sets_that_cannot_be_labelled(unlabelled, tmp_path, capsys):
    assert main(["label", str(tmp_path / "no"), "--clusters", "2"]) == 2
    assert "no index.json in" in capsys.readouterr().err
    assert main(["label", "https://example.org/set", "--clusters", "2"]) == 2
    assert "--out FOLDER" in capsys.readouterr().err


def test_equal_images_are_one_cluster(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (number // 3 * 200, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    data = packed(tmp_path / "photos", tmp_path / "set", "none")
    assert main(["label", str(data), "--clusters", "3"]) == 2
    assert "only 2 of the samples differ in their features: ask for 2 clusters at most" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.slow
def test_a_run_on_clusters_of_its_forerunners_discriminator(unlabelled, tmp_path):
    """Unconditional, then conditional on what its discriminator has seen; by the command line, on two processes."""
    first, made, second = tmp_path / "first", tmp_path / "made", tmp_path / "second"
    trained(unlabelled, first, "run.kimg=0.08")
    command = [str(ROOT / "launch/label.py"), str(unlabelled), "--clusters", "3", "--run", str(first), "--device", "cpu"]
    done = finished([sys.executable, *command, "--out", str(made)])
    assert done.returncode == 0, done.stderr
    origin = load_index(made).packed_with["labels_from"]
    assert origin["features"].startswith("run_")
    again = finished([*launcher_command("cpu.yaml", 2), *command, "--out", str(tmp_path / "again")])
    assert again.returncode == 0, again.stderr
    for shard, other in zip(load_index(made).shards, load_index(tmp_path / "again").shards, strict=True):
        assert (load_offsets(shard) == load_offsets(other)).all()
    trained(made, second, "run.kimg=0.08")
    state = json.loads(next(second.glob("checkpoints/nimg-*/state.json")).read_text())
    assert state["data"]["num_classes"] == 3


def on_two_ranks() -> None:
    torch.distributed.init_process_group("gloo")
    reals.user_folder = lambda name: None
    label(sys.argv[1], sys.argv[2], small_features, FEW, Ranks(torch.distributed.get_rank(), 2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_ranks(2, on_two_ranks)
