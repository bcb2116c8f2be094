"""Autoencoders that are trained here: better than none, the same again to the last bit, and refused data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.encoders.training import RECORD, STRIP
from stylegan_dist.kinds.array import ArrayOptions
from stylegan_dist.kinds.encoder import CONFIG, WEIGHTS, read_encoder
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

FILES = (CONFIG, WEIGHTS, RECORD, STRIP)
WORDS = ["--downscale", "2", "--latent-channels", "3", "--width", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """60 pictures of 16 pixels: fields of 4 pixels, each of one colour."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "pictures").mkdir()
    for number in range(60):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(colours, np.ones((4, 4, 1), np.uint8))).save(folder / "pictures" / f"{number:02d}.png")
    pack(folder / "pictures", folder / "shards", PackOptions(ImageOptions(resolution=16), samples_per_shard=25, workers=1))
    return folder / "shards"


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "encoder"
    assert main(["train-encoder", str(shards), "--out", str(out), *WORDS, "--kimg", "0.6"]) == 0
    return out


def test_better_than_one_colour(trained, shards):
    """Held-out pictures are nearer to what is decoded than to their mean colour."""
    record, flat = json.loads((trained / RECORD).read_text()), []
    for path in sorted((shards.parent / "pictures").iterdir()):
        pixels = np.asarray(Image.open(path)).astype(float)
        flat.append(10 * np.log10(255**2 / pixels.var((0, 1)).mean()))
    assert record["psnr"] > np.mean(flat) + 1.5
    assert (record["held_out"], record["judged"], record["images"], record["resolution"]) == (6, 6, 600, 16)
    assert record["fingerprint"] == load_index(shards).fingerprint
    encoder, trained_at = read_encoder(str(trained))
    assert (encoder.maker, encoder.sha256, trained_at) == ("own", record["sha256"], 16)
    assert (encoder.form.downscale, encoder.form.latent_channels, encoder.form.in_channels) == (2, 3, 3)
    with Image.open(trained / STRIP) as strip:
        assert strip.size[0] > strip.size[1] > 2 * 16


def test_the_same_again(shards, tmp_path):
    """To the last bit, whoever reads; with another seed another one."""
    made = []
    for name, more in (("first", []), ("again", ["--workers", "1"]), ("other", ["--seed", "1"])):
        assert main(["train-encoder", str(shards), "--out", str(tmp_path / name), *WORDS, "--kimg", "0.05", *more]) == 0
        made.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert made[0] == made[1]
    assert made[0][1] != made[2][1]


def test_pack_names_it(trained, shards, tmp_path):
    assert main(["pack", str(shards.parent / "pictures"), str(tmp_path / "latents"), "--resolution", "16", "--encode",
                 str(trained)]) == 0
    index = load_index(tmp_path / "latents")
    assert (index.resolution, index.channels) == (8, 3)
    assert "an autoencoder that was trained here" in index.kind.layout(3)


def test_what_is_refused(shards, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.zeros((3, 16, 16), np.float32))
    pack(tmp_path, tmp_path / "arrays", PackOptions(ArrayOptions(resolution=16), workers=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place, out, more, words in ((tmp_path / "arrays", "out", [], "holds arrays, and an autoencoder is trained on images"),
                                    (shards, "out", ["--downscale", "4"], "choose a smaller --downscale"),
                                    (shards, "full", [], "is not empty")):
        assert main(["train-encoder", str(place), "--out", str(tmp_path / out), *WORDS, *more]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
