"""Latents as data: what is packed, which of two flips a draw takes, and runs whose pictures are decoded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_encoder
import torch
from batches import ORDER, joined, same, stream_of, take
from launching import TINY
from PIL import Image
from small_features import small_features
from tiny_encoder import drawn

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.samples import check_takes, is_of_another_form, pictures_for
from stylegan_dist.export.folder import _published
from stylegan_dist.kinds import encoder
from stylegan_dist.kinds.array import Array, ArrayOptions
from stylegan_dist.kinds.autoencoder import Form
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.kinds.encoder import RUN_COPY, WEIGHTS
from stylegan_dist.kinds.latent import LatentOptions, Latents
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.verify import verify
from stylegan_dist.training.saved import SavedData

SIDE, COUNT = 32, 24
SETTINGS = [setting for setting in TINY if not setting.startswith("data.mirror")]


def picture(number: int) -> np.ndarray:
    """uint8 [32, 32, 3], unlike its mirror image."""
    corner = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(corner, np.ones((8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures, an encoder, and two sets of its latents: `none` and `stored` are their flips."""
    folder = tmp_path_factory.mktemp("latents")
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        Image.fromarray(picture(number)).save(folder / "pictures" / f"{number:02d}.png")
    tiny_encoder.write(folder / "vae")
    for flips in ("none", "stored"):
        assert main(["pack", str(folder / "pictures"), str(folder / flips), "--resolution", str(SIDE), "--encode",
                     str(folder / "vae"), "--flips", flips, "--samples-per-shard", "7", "--workers", "2", "--no-shuffle"]) == 0
    return folder


def samples_of(folder, count: int, **options) -> torch.Tensor:
    """The first ones of training, float16 [count, 4, 16, 16], and their places."""
    stream = stream_of(load_index(folder), **{**ORDER, "batch": count, **options})
    try:
        return next(stream)["sample"]
    finally:
        stream.close()


def test_what_is_packed(place):
    """The means of each picture alone, in half precision; offset and scale give mean 0 and deviation 1/2."""
    index, network = load_index(place / "none"), drawn()
    assert (index.resolution, index.channels, index.encoding, index.num_samples) == (16, 4, "npy", COUNT)
    assert isinstance(index.kind, Latents)
    assert verify(place / "none") == verify(place / "stored") == []
    expected = {network.encode(torch.from_numpy(picture(number)).permute(2, 0, 1)[None] / 127.5 - 1)[0].half()
                for number in range(COUNT)}
    found = samples_of(place / "none", COUNT)
    assert all(any(torch.allclose(one.float(), other.float(), rtol=2e-3, atol=2e-3) for other in expected) for one in found)
    values = index.kind.to_network(torch.stack(list(expected)))
    assert values.mean((0, 2, 3)).abs().max() < 1e-2
    assert (values.std((0, 2, 3)) - 0.5).abs().max() < 1e-2
    assert "4 channels of float16, of an AutoencoderKL" in index.kind.layout(4)


def test_workers_parts_and_the_place_of_the_encoder_change_nothing(place, tmp_path):
    shutil.copytree(place / "vae", tmp_path / "moved")
    options = LatentOptions(resolution=SIDE, encode=str(tmp_path / "moved"), flips="stored")
    packing = PackOptions(options, shuffle=False, samples_per_shard=7, workers=1)
    for part in ((2, 2), (1, 2), None):
        pack(place / "pictures", tmp_path / "again", replace(packing, part=part))
    for path in sorted((place / "stored").glob("shard-*")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    first, again = load_index(place / "stored"), load_index(tmp_path / "again")
    assert (first.fingerprint, first.kind) == (again.fingerprint, again.kind)
    assert first.packed_with == again.packed_with
    pack(place / "pictures", place / "stored", packing)  # it is that set: nothing to do


def test_other_weights_are_other_data(place, tmp_path):
    """Also where the latents are the same: the pictures would be others."""
    index = load_index(place / "none")
    other = replace(index, kind=replace(index.kind, encoder=replace(index.kind.encoder, sha256="0" * 64)))
    assert other.fingerprint != index.fingerprint
    assert other.kind != index.kind
    assert is_of_another_form(other.kind, index.kind)  # for a network of `train-features`
    assert not is_of_another_form(replace(index.kind, offset=(1.0,) * 4), index.kind)
    at_home = replace(index, kind=index.kind.at(tmp_path))
    assert (at_home.fingerprint, at_home.kind.facts()) == (index.fingerprint, index.kind.facts())


def test_flips_are_of_pictures(place):
    """The draw by (seed, purpose, image number) takes the latent of the mirrored picture, which is not the mirrored latent."""
    plain, flipped = (samples_of(place / "stored", COUNT, mirror=mirror) for mirror in (False, True))
    assert torch.equal(plain, samples_of(place / "none", COUNT))
    coins = randomness.coins(ORDER["seed"], "data.mirror", 0, COUNT)
    assert 0 < sum(coins) < COUNT
    pixels, network = {}, drawn()
    for number in range(COUNT):
        values = torch.from_numpy(picture(number)).permute(2, 0, 1)[None] / 127.5 - 1
        pixels[network.encode(values)[0]] = network.encode(values.flip(3))[0]
    for one, other, coin in zip(plain, flipped, coins, strict=True):
        mirrored = min(pixels.items(), key=lambda pair: float((pair[0] - one).abs().max()))[1]
        assert torch.allclose(other.float(), mirrored if coin else one.float(), rtol=2e-3, atol=2e-3)
        assert not coin or not torch.allclose(other.float(), one.flip(2).float(), atol=0.05)


def test_draws_of_flips_do_not_depend_on_ranks_or_starts(place):
    """Latent number i of the training is the same for 1 and 2 ranks, and after a start in between on another number."""
    plan = {"mirror": True, "batch": 8}
    whole = take(place / "stored", 7, **plan)  # 56 latents: beyond the second epoch of 24
    by_two = [take(place / "stored", 7, **plan, rank=rank, world_size=2, workers=rank) for rank in range(2)]
    resumed = [take(place / "stored", 4, **plan, rank=rank, world_size=2, start=24) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert same(batch, joined([part[step] for part in by_two]))
        assert step < 3 or same(batch, joined([part[step - 3] for part in resumed]))
    coins = randomness.coins(ORDER["seed"], "data.mirror", 0, 56)
    plain = torch.cat([batch["sample"] for batch in take(place / "stored", 7, **{**plan, "mirror": False})])
    other = (torch.cat([batch["sample"] for batch in whole]) != plain).flatten(1).any(1)
    assert other.tolist() == [bool(coin) for coin in coins]


@pytest.mark.parametrize(("words", "arguments"), [
    ("leave out --channels", ["--channels", "1"]),
    ("choose a --resolution of 16 or more", ["--resolution", "8"]),
    ("has no meaning for latents", ["--quality", "90"]),
    ("has no meaning for arrays", ["--arrays"]),
    ("was trained on pictures of 64 pixels, not of 32", ["--encode", "own"]),
    ("is no autoencoder", ["--encode", "pictures"]),
])
def test_what_does_not_fit_is_refused(place, tmp_path, capsys, monkeypatch, words, arguments):
    monkeypatch.chdir(place)
    if not (place / "own").is_dir():
        tiny_encoder.write(place / "own", made_by="stylegan-dist train-encoder", sample_size=64)
    assert main(["pack", "pictures", str(tmp_path / "out"), "--resolution", str(SIDE), "--encode", "vae", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_feature_networks_see_decoded_pictures(place):
    index, network = load_index(place / "none"), small_features()
    check_takes(network, index)
    values = index.kind.to_network(samples_of(place / "none", 3))
    pictures = pictures_for(network, index.kind, values)
    assert (pictures.shape, pictures.dtype) == ((3, 3, SIDE, SIDE), torch.uint8)
    latents = values * torch.tensor(index.kind.scale)[:, None, None] + torch.tensor(index.kind.offset)[:, None, None]
    expected = to_uint8(torch.cat([drawn().decode(one[None]) for one in latents]))
    assert (pictures.int() - expected.int()).abs().max() <= 1


def test_pictures_have_the_side_that_is_told(place):
    kind = load_index(place / "none").kind
    values = torch.zeros(1, 4, 16, 16)
    for one, side in ((kind, SIDE), (replace(kind, false_colours=True), 16)):
        assert one.as_pictures(values).shape[2] == one.shown_side(16) == side


def train(shards: Path, run_dir: Path, *settings: str) -> int:
    return main(["train", *SETTINGS, f"data.shards={shards}", f"run.dir={run_dir}", *settings])


@pytest.fixture
def moved(place, tmp_path) -> Path:
    """A copy of the latents whose encoder can be taken away."""
    shutil.copytree(place / "vae", tmp_path / "vae")
    pack(place / "pictures", tmp_path / "set", PackOptions(LatentOptions(
        resolution=SIDE, encode=str(tmp_path / "vae"), flips="stored"), workers=1))
    return tmp_path


def weights_of(run: Path) -> list[bytes]:
    return [(run / "checkpoints/nimg-00000032" / f"{name}.safetensors").read_bytes() for name in ("g", "d", "g_ema")]


def test_a_run_takes_its_decoder_along(moved, capsys):
    run, sets = moved / "run", moved / "set"
    assert train(sets, run, "run.kimg=0.016", "data.mirror=true") == 0
    assert (run / RUN_COPY).read_bytes() == (moved / "vae" / WEIGHTS).read_bytes()
    index = (sets / "index.json").read_text()
    (sets / "index.json").write_text(index.replace(str(moved / "vae"), "/other/place"))  # a hint, and no part of the data
    assert train(sets, run, "run.kimg=0.032", "data.mirror=true", "data.workers=1") == 0
    shutil.rmtree(moved / "vae")
    with Image.open(run / "samples" / "nimg-00000032.png") as grid, Image.open(run / "samples" / "reals.png") as reals:
        assert grid.size == reals.size
        assert min(grid.size) >= 4 * SIDE
    assert "false colours" not in (run / "log.txt").read_text()
    assert main(["generate", str(run), "--seeds", "0-1", "--out", str(moved / "out"), "--device", "cpu"]) == 0
    with Image.open(moved / "out" / "seed0001.png") as drawn_picture:
        assert drawn_picture.size == (SIDE, SIDE)
    latents = np.load(moved / "out" / "seed0001.npy", allow_pickle=False)
    assert (latents.shape, latents.dtype) == ((4, 16, 16), np.float16)

    (run / RUN_COPY).rename(moved / "elsewhere")
    encoder._opened.cache_clear()  # another process would not have it
    capsys.readouterr()
    assert main(["generate", str(run), "--seeds", "0", "--out", str(moved / "out"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    digest = load_index(sets).kind.encoder.sha256
    assert digest in error
    assert str(run / RUN_COPY) in error
    assert "/other/place" in error  # where they were, as the last start was told


def test_a_run_without_a_decoder_goes_on_and_says_so_once(moved):
    shutil.rmtree(moved / "vae")
    run = moved / "run"
    assert train(moved / "set", run, "run.kimg=0.032", "monitor.samples_kimg=0.008") == 0
    assert (run / "log.txt").read_text().count("false colours") == 1
    with Image.open(run / "samples" / "nimg-00000032.png") as grid:
        assert grid.mode == "RGB"
    whole = moved / "whole"
    tiny_encoder.write(moved / "vae")
    assert train(moved / "set", whole, "run.kimg=0.032") == 0
    assert weights_of(whole) == weights_of(run)


def test_places_that_cannot_be_read_are_passed_over(place, tmp_path, monkeypatch):
    kept = load_index(place / "none").kind.encoder
    monkeypatch.setattr(encoder, "user_folder", lambda name: tmp_path)
    right = tmp_path / f"{kept.sha256}.safetensors"
    shutil.copy(place / "vae" / WEIGHTS, right)
    assert encoder.find_weights(replace(kept, path="/" + "a" * 300), str(tmp_path / "run"))[0] == right
    with pytest.raises(InputError, match="is no autoencoder"):
        encoder.read_encoder(str(tmp_path / ("a" * 300)))

    def refuse(path):
        if path == place / "vae" / WEIGHTS:
            raise InputError(f"cannot read {path}: Permission denied")
        return read(path)

    read = encoder._read
    monkeypatch.setattr(encoder, "_read", refuse)
    assert encoder.find_weights(kept, "")[0] == right
    right.unlink()
    with pytest.raises(InputError, match="Permission denied"):
        encoder.find_weights(kept, "")


def test_the_path_of_the_encoder_is_not_published(place):
    kind = load_index(place / "none").kind
    published = _published(SavedData("0" * 64, 16, 4, 0, Array(**kind.facts()["array"] | {"encoder": kind.encoder})))
    assert (published.array.encoder.path, published.array.encoder) == ("", kind.encoder)


def test_mirrored_latents_must_be_stored(place, tmp_path, capsys):
    assert train(place / "none", tmp_path / "run", "run.kimg=0.008", "data.mirror=true") == 2
    assert "pack it again with --flips stored, or set data.mirror=false" in capsys.readouterr().err.splitlines()[-1]


def test_a_damaged_index_is_refused(place):
    kind = load_index(place / "none").kind
    for wrong in (replace(kind, dtype="float32"), replace(kind, key="a")):
        with pytest.raises(ValueError, match="stored as float16"):
            wrong.check(16, 4)
    for wrong, words in (({"path": "a\nb"}, "no plain text"), ({"form": Form(3, 4, (4,) * 8, 1, 4)}, "of more than 1024")):
        with pytest.raises(ValueError, match=words):
            replace(kind, encoder=replace(kind.encoder, **wrong)).check(16, 4)
    with pytest.raises(ValueError, match="latents of 4 channels"):
        replace(kind, offset=(0.0,), scale=(1.0,)).check(16, 3)
    with pytest.raises(InputError, match="no encoder"):
        LatentOptions(resolution=SIDE).completed([])
    assert "encoder" not in str(ArrayOptions(resolution=8, channels=1, dtype="uint8").decisive())
