"""Pictures of what a generator has learned: what is in them, the same again, and a loop without a jump."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import TINY
from PIL import Image
from safetensors.torch import load_file
from small_networks import stylegan2_generator

from stylegan_dist.cli import main
from stylegan_dist.kinds import Text
from stylegan_dist.kinds.array import Array, TextForm
from stylegan_dist.kinds.image import Image as ImageKind
from stylegan_dist.monitor.images import ABOUT
from stylegan_dist.networks.generator import Sampling
from stylegan_dist.networks.layers import initialize
from stylegan_dist.training import events, pictures
from stylegan_dist.training.run_folder import PICTURES

PHOTOS = ImageKind()


def generator(classes: int = 0, resolution: int = 16, channels: int = 3):
    """Its mean of W is not zero."""
    network = stylegan2_generator(resolution, channels, classes, z_dim=8, w_dim=8, mapping_layers=2, channel_base=1024,
                                  channel_max=16)
    initialize(network, 1, "init.g")
    network.w_avg.copy_(torch.linspace(-1, 1, 8))
    return network.eval().requires_grad_(False)


def all_of(network, batch: int = 16, kind=PHOTOS) -> list[torch.Tensor]:
    made = [pictures.truncation(network, kind, 5, batch).images, pictures.interpolation(network, kind, 5, batch)]
    return [*made, pictures.classes(network, kind, 5, batch).images] if network.num_classes else made


@pytest.mark.parametrize("classes", [0, 3])
def test_the_same_again_and_in_other_batches(classes: int):
    network = generator(classes)
    first, again, otherwise = all_of(network), all_of(network), all_of(network, 5)
    for a, b, c in zip(first, again, otherwise, strict=True):
        assert a.dtype == torch.uint8
        assert torch.equal(a, b)
        assert (a.int() - c.int()).abs().max() <= 1  # rounding
        assert a.float().std() > 1  # there is something in it


def test_long_lines_of_text_stay_readable():
    kind = Text("uint8", (0.0,), (1.0,), text=TextForm(" ab", 300))
    assert pictures.small_pictures(kind, torch.rand(2, 1, 512, 512), pictures.SMALL_SIDE).shape == (2, 1, 16, 2400)


@pytest.mark.parametrize("classes", [0, 3])
def test_truncation_goes_from_the_mean_to_the_samples_themselves_and_beyond(classes: int):
    network = generator(classes)
    images, columns, captions = pictures.truncation(network, PHOTOS, 5, 16)
    rows = images.unflatten(0, (pictures.TRUNCATION_ROWS, columns))
    assert captions[:columns] == ["psi 0", "psi 0.2", "psi 0.4", "psi 0.6", "psi 0.8", "psi 1", "psi 1.2"]
    assert not any(captions[columns:])
    assert len(captions) == len(images)
    mean = PHOTOS.from_network(network.synthesize(network.w_avg[None], torch.zeros(1).long() if classes else None))
    assert (rows[:, 0].int() - mean.int()).abs().max() <= 1
    index = torch.arange(pictures.TRUNCATION_ROWS)
    labels = index % classes if classes else None
    samples = PHOTOS.from_network(network.sample(5, "pictures.truncation", index, labels, Sampling()))
    assert (rows[:, 5].int() - samples.int()).abs().max() <= 1
    far = (rows.float() - rows[:, :1].float()).square().mean((0, 2, 3, 4))
    assert far.diff().min() > 0


def test_classes_have_rows_and_latents_have_columns():
    images, columns, captions = pictures.classes(generator(3), PHOTOS, 5, 16, ["cat", "1", "a dog"])
    rows = images.unflatten(0, (3, columns))
    assert captions[::columns] == ["class 0: cat", "class 1", "class 2: a dog"]
    assert not torch.equal(rows[0], rows[1])
    index, label = torch.arange(columns), torch.ones(columns).long()
    expected = PHOTOS.from_network(generator(3).sample(5, "pictures.classes", index, label, Sampling()))
    assert (rows[1].int() - expected.int()).abs().max() <= 1


def test_of_many_classes_some_are_shown():
    _, columns, captions = pictures.classes(generator(1000, 8), PHOTOS, 5, 64)
    assert captions[::columns] == [f"class {50 * i}" for i in range(20)]


@pytest.mark.parametrize("classes", [0, 3])
def test_the_loop_is_closed_and_has_no_jump(classes: int):
    network = generator(classes)
    frames = pictures.interpolation(network, PHOTOS, 5, 16)
    assert frames.shape == (pictures.CORNERS * pictures.STEPS, pictures.LOOPS, 3, 16, 16)
    steps = (frames.float() - frames.roll(1, 0).float()).square().mean((1, 2, 3, 4)).sqrt()  # the first: from the last frame
    assert steps[0] < 2 * steps.median()
    assert steps.max() < 3 * steps.median()
    far = (frames[0].float() - frames[pictures.STEPS].float()).square().mean().sqrt()
    assert far > 4 * steps.max()
    images, columns, _ = pictures.strip(frames)
    assert columns == 12
    assert torch.equal(images[0], frames[0, 0])
    assert torch.equal(images[columns + 1], frames[pictures.STEPS // pictures.SHOWN_STEPS, 1])


def test_arrays_are_shown_as_their_kind_says():
    values = Array("float32", (0.0,), (1.0,))
    for made in all_of(generator(channels=2), kind=values):
        assert made.shape[-3] == 3
        assert not made[..., 2, :, :].any()  # two channels are red and green


def test_large_images_become_smaller_by_whole_pixels():
    network = generator(resolution=512)
    sheet = pictures.truncation(network, PHOTOS, 5, 16)
    assert sheet.images.shape[1:] == (3, 256, 256)
    latents = network.latents(5, "pictures.truncation", torch.arange(1), None)
    whole = network.synthesize(latents, None)
    expected = PHOTOS.from_network(whole.unflatten(3, (256, 2)).unflatten(2, (256, 2)).mean((3, 5)))
    assert (sheet.images[5:6].int() - expected.int()).abs().max() <= 1


def train(shards: Path, run: Path, *overrides: str) -> None:
    assert main(["train", *TINY, f"data.shards={shards}", f"run.dir={run}", "run.kimg=0.08", *overrides]) == 0


def test_a_run_draws_them_and_learns_the_same(small_shards, tmp_path):
    train(small_shards, tmp_path / "without")
    assert not (tmp_path / "without/evaluation").exists()
    train(small_shards, tmp_path / "with", "monitor.pictures_kimg=0.04")
    one, other = (load_file(tmp_path / run / "checkpoints/nimg-00000080/g.safetensors") for run in ("without", "with"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {path.name for path in (tmp_path / "with/evaluation").iterdir()} == set(PICTURES)
    for name in PICTURES[:3]:
        with Image.open(tmp_path / "with/evaluation" / name) as picture:
            assert picture.info[ABOUT] == "At 0.08 kimg."
    with Image.open(tmp_path / "with/evaluation/interpolation.gif") as clip:
        assert clip.n_frames == pictures.CORNERS * pictures.STEPS
        assert clip.info["loop"] == 0


def test_what_cannot_be_drawn_is_a_warning(small_shards, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "evaluation").write_text("in the way")
    train(small_shards, run, "monitor.pictures_kimg=1")
    said = capsys.readouterr().out
    assert said.count("WARNING: cannot write") == len(PICTURES)
    assert "finished at 0.08 kimg" in said

    monkeypatch.setattr(events, "PICTURES_SHARE", 1e-6)
    train(small_shards, tmp_path / "slow", "monitor.pictures_kimg=1")
    assert "no picture of the interpolation: it would take" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "slow/evaluation").iterdir()] == ["truncation.png"]


def test_normally_distributed_latents_stay_as_long_as_they_are():
    """The way of directions is in one plane, at a constant speed; the middle of a straight line would be too short."""
    one, other = (torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    way = torch.stack([pictures.great_circle(one, other, share / 8) for share in range(9)]).double()
    torch.testing.assert_close(way[[0, 8]].float(), torch.stack([one, other]), rtol=1e-5, atol=1e-6)
    lengths = way.norm(dim=2)
    assert lengths.diff(n=2, dim=0).abs().max() < 1e-5
    steps = torch.cosine_similarity(way[1:], way[:-1], dim=2)
    assert (steps - steps[0]).abs().max() < 1e-6
    assert (lengths[4] / (one + other).double().norm(dim=1) * 2).min() > 1.2
    assert torch.equal(pictures.great_circle(one, one, 0.3), one)
    assert pictures.great_circle(one, -one, 0.25).isfinite().all()


def test_loops_are_great_circles_where_there_is_no_mean(monkeypatch: pytest.MonkeyPatch):
    network, seen = generator(), []
    monkeypatch.setattr(network, "synthesize",
                        lambda latents, labels: seen.append(latents) or torch.zeros(len(latents), 3, 4, 4))
    for truncates in (True, False):
        network.truncates = truncates
        pictures.interpolation(network, PHOTOS, 5, 1000)
    straight, round_ = (one.unflatten(0, (pictures.LOOPS, -1)) for one in seen)
    middle = pictures.STEPS // 2
    torch.testing.assert_close(straight[:, middle], (straight[:, 0] + straight[:, pictures.STEPS]) / 2)
    expected = pictures.great_circle(round_[:, 0], round_[:, pictures.STEPS], 0.5)
    torch.testing.assert_close(round_[:, middle], expected)
    assert not torch.allclose(expected, straight[:, middle])
