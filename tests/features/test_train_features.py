"""Networks that learn the classes of a shard set: better than chance, the same again to the last bit, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.data.passes import held_out
from stylegan_dist.errors import InputError
from stylegan_dist.features.own import RECORD, WEIGHTS, OwnNetwork
from stylegan_dist.features.registry import open_features
from stylegan_dist.features.training import HELD_OUT
from stylegan_dist.kinds.array import ArrayOptions
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

FILES = (RECORD, WEIGHTS)


def striped(number: int, size: int = 16) -> tuple[int, np.ndarray]:
    """A class and a sample of it, in [0, 1): stripes down or across, with a phase of their own, in noise."""
    rng = np.random.default_rng(number)
    wave = np.sin((np.arange(size) + rng.uniform(0, size)) * np.pi / 2) * 0.3 + 0.5
    values = np.broadcast_to(wave if number % 2 else wave[:, None], (size, size))
    return number % 2, np.clip(values + rng.normal(0, 0.1, (size, size)), 0, 0.999)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """120 grey images of 16 pixels in 2 classes."""
    folder = tmp_path_factory.mktemp("striped")
    for number in range(120):
        label, values = striped(number)
        path = folder / "images" / "ab"[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * 256).astype(np.uint8)).save(path)
    options = PackOptions(ImageOptions(resolution=16, channels=1), labels="folders", samples_per_shard=50, workers=1)
    pack(folder / "images", folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "features"
    assert main(["train-features", str(shards), str(out), "--kimg", "2.5", "--device", "cpu"]) == 0
    return out


def test_better_than_chance(trained, shards):
    record = json.loads((trained / RECORD).read_text())
    assert record["accuracy"] >= 0.9
    assert (record["held_out"], record["images"], record["classes"]) == (12, 2500, 2)
    assert record["fingerprint"] == load_index(shards).fingerprint
    network = open_features(trained, "cpu")
    assert network.sha256 == record["sha256"] == hashlib.sha256((trained / WEIGHTS).read_bytes()).hexdigest()
    assert network.name == "own_" + record["sha256"][:8]
    assert network.score_name("fd") == f"fd_{network.name}"
    fresh = [striped(number) for number in range(1000, 1020)]
    pixels = torch.stack([torch.from_numpy((values * 256).astype(np.uint8))[None] for _, values in fresh])
    assert network(pixels).shape == (20, network.dimensions)
    right = network.logits(pixels).argmax(1) == torch.tensor([label for label, _ in fresh])
    assert right.float().mean() >= 0.9
    assert torch.equal(network(pixels)[3], network(pixels[3:4])[0])
    distance = network.distance(pixels[:2], pixels[1:3])
    assert torch.equal(distance, network.distance(*((x.float() / 127.5 - 1) for x in (pixels[:2], pixels[1:3]))))


def again(shards: Path, out: Path, *options: str) -> list[bytes]:
    """The files of another training."""
    assert main(["train-features", str(shards), str(out), "--kimg", "2.5", "--device", "cpu", *options]) == 0
    return [(out / file).read_bytes() for file in FILES]


def test_the_same_again(trained, shards, tmp_path):
    """To the last bit."""
    assert again(shards, tmp_path / "again") == [(trained / file).read_bytes() for file in FILES]


@pytest.mark.full
def test_readers_change_nothing_and_the_seed_does(trained, shards, tmp_path):
    assert again(shards, tmp_path / "readers", "--workers", "2") == [(trained / file).read_bytes() for file in FILES]
    assert again(shards, tmp_path / "other", "--seed", "1")[1] != (trained / WEIGHTS).read_bytes()


def test_what_is_held_out(shards):
    """A tenth, by numbers and seed."""
    index = load_index(shards)
    held = held_out(index, 0, HELD_OUT)
    assert len(held) == len(set(held)) == 12
    assert all(0 <= number < 120 for number in held)
    assert held == held_out(index, 0, HELD_OUT) != held_out(index, 1, HELD_OUT)


def test_arrays(tmp_path):
    """Samples of any dtype, in the range of the kind."""
    for number in range(60):
        label, values = striped(number)
        path = tmp_path / "arrays" / "ab"[label] / f"{number:03d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (np.stack([values, values.T]) * 1000).astype(np.float32))
    pack(tmp_path / "arrays", tmp_path / "shards", PackOptions(ArrayOptions(resolution=16), labels="folders", workers=1))
    assert main(["train-features", str(tmp_path / "shards"), str(tmp_path / "out"), "--kimg", "0.3", "--device", "cpu"]) == 0
    network = open_features(tmp_path / "out", "cpu")
    assert network.dtype == torch.float32
    kind = load_index(tmp_path / "shards").kind
    samples = torch.rand(2, 2, 16, 16) * 1000
    assert network(samples).shape == (2, network.dimensions)
    values = kind.to_network(samples)
    assert torch.equal(network.distance(values, values.flip(0)), network.distance(values.flip(0), values))
    with pytest.raises(InputError, match="takes samples of"):
        network(samples.to(torch.uint8))
    with pytest.raises(InputError, match="was trained on"):
        network(samples[:, :1])
    with pytest.raises(InputError, match="was trained on"):
        network(torch.zeros(1, 2, 32, 32))


def test_mistakes(shards, trained, tmp_path, capsys):
    images = shards.parent / "images"
    pack(images, tmp_path / "plain", PackOptions(ImageOptions(resolution=16, channels=1), workers=1))
    pack(images / "a", tmp_path / "one" / "shards", PackOptions(ImageOptions(resolution=16, channels=1), workers=1))
    for command, message in (
        ([str(tmp_path / "plain"), str(tmp_path / "out")], "no labels"),
        ([str(shards), str(trained)], "not empty"),
        ([str(shards), str(trained / RECORD)], "cannot use the folder"),
        ([str(tmp_path / "nothing"), str(tmp_path / "out")], "index.json"),
        ([str(shards), str(tmp_path / "out"), "--device", "gpu"], "--device"),
        ([str(shards), str(tmp_path / "out"), "--kimg", "0"], "--kimg"),
    ):
        assert main(["train-features", *command]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def damage(change):
    """A change of the record, as a change of the folder."""
    def apply(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        change(record)
        (folder / RECORD).write_text(json.dumps(record))
    return apply


def rewritten(change):
    """A change of the tensors with the record's SHA-256 to match, as somebody would forge it."""
    def apply(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        change(tensors)
        safetensors.torch.save_file(tensors, folder / WEIGHTS)
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        damage(lambda record: record.update(sha256=digest))(folder)
    return apply


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()[:-10]
    (folder / WEIGHTS).write_bytes(content)
    damage(lambda record: record.update(sha256=hashlib.sha256(content).hexdigest()))(folder)


@pytest.mark.parametrize("change", [
    lambda folder: (folder / RECORD).write_text("{"),
    lambda folder: (folder / RECORD).write_text("[" * 100_000),
    lambda folder: (folder / WEIGHTS).unlink(),
    lambda folder: (folder / WEIGHTS).write_bytes(b"x" + (folder / WEIGHTS).read_bytes()[1:]),
    truncate,
    damage(lambda record: record.pop("classes")),
    damage(lambda record: record.update(classes=3)),
    damage(lambda record: record.update(classes=10**9)),
    damage(lambda record: record.update(resolution=32)),
    damage(lambda record: record.update(resolution=17)),
    damage(lambda record: record.update(channels=3)),
    damage(lambda record: record.update(accuracy="good")),
    damage(lambda record: record.update(version=2)),
    damage(lambda record: record.update(more=1)),
    damage(lambda record: record.update(array={"dtype": "float32", "offset": [0.0], "scale": [0.0]})),
    rewritten(lambda tensors: tensors["fc.bias"].fill_(torch.nan)),
    rewritten(lambda tensors: tensors.pop("fc.bias")),
    rewritten(lambda tensors: tensors.update(more=torch.zeros(1))),
])
def test_damaged_and_forged_files_are_refused(change, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(InputError, match=r"features\."):
        open_features(tmp_path / "copy", "cpu")


@pytest.mark.parametrize("resolution", [8, 32, 256, 1024])
def test_sizes(resolution):
    with torch.device("meta"):
        network = OwnNetwork(resolution, 3, 10)
        maps: list[torch.Tensor] = []
        features = network(torch.zeros(2, 3, resolution, resolution), maps)
    assert features.shape == (2, 128)
    assert network.classify(features).shape == (2, 10)
    assert [one.shape[2] for one in maps] == [resolution >> step for step in range(1, resolution.bit_length() - 2)]
    assert maps[-1].shape == (2, 128, 4, 4)


@pytest.mark.full
def test_handwritten_digits(digits, tmp_path):
    """The data of the demonstration, in a fifth of the usual training."""
    assert main(["train-features", str(digits), str(tmp_path / "out"), "--kimg", "10", "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "out" / RECORD).read_text())["accuracy"] > 0.9
