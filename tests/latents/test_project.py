"""Latents of images: found again, independent of the batch, known by their files; holes; tuning; errors."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tape import NobodyWaits
from untrained_run import R3GAN, TINY, make_run

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.latents.agreeing import shares
from stylegan_dist.latents.inputs import read_images
from stylegan_dist.latents.loss import Loss, open_loss_features
from stylegan_dist.latents.project import Found, ProjectOptions, pasted, project, psnr
from stylegan_dist.latents.saved import load_latents
from stylegan_dist.latents.search import Rows, Search, latent_noise, learning_rate, normalised, roughness, search
from stylegan_dist.latents.trained import Trained, open_trained
from stylegan_dist.tools.generate import GenerateOptions, generate
from stylegan_dist.training.checkpoint import check_checkpoint, checkpoint_folder

SMALL = [*TINY, "generator.z_dim=8", "generator.w_dim=8", "generator.channel_base=256", "generator.channel_max=16",
         "generator.mapping_layers=2"]
CLASSES = (2, 0, 1)


def draw(trained: Trained, folder: Path) -> list[Path]:
    """Generated images, one of each of `CLASSES` if there are classes."""
    labels = torch.tensor(CLASSES) if trained.shape.num_classes else None
    with torch.no_grad():
        made = trained.generator.synthesize(trained.generator.latents(5, "wanted", torch.arange(3), labels), labels)
    files = []
    for number, pixels in enumerate(trained.kind.from_network(made)):
        files.append(folder / f"made{number}.png")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(files[-1])
    return files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("conditional") / "run", 3, resolution=16, knobs=SMALL, contrast=0.3)


@pytest.fixture(scope="module")
def trained(run):
    return open_trained(run, "cpu")


@pytest.fixture(scope="module")
def images(trained, tmp_path_factory):
    return draw(trained, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def projection(run, images, tmp_path_factory) -> tuple[list[Found], Path]:
    out = tmp_path_factory.mktemp("projection")
    return project(images, run, out, ProjectOptions(steps=60, noise="const", device="cpu")), out


def test_generated_images_are_found_again(projection):
    found, out = projection
    assert [one.label for one in found] == list(CLASSES), "their classes, too"
    assert all(one.psnr > 30 for one in found)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"made{number}.{ending}" for number in range(3) for ending in ("png", "safetensors")] + ["strip.png"])
    assert Image.open(out / "strip.png").size == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2 + 15)


def test_a_file_of_latents_gives_the_picture_again(projection, trained):
    found, out = projection
    for one in found:
        saved = load_latents(out / f"{one.target.name}.safetensors")
        pixels = trained.kind.from_network(saved.drawn_by(trained))[0].permute(1, 2, 0).numpy()
        shown = np.array(Image.open(out / f"{one.target.name}.png"))
        assert np.abs(pixels.astype(int) - shown).max() <= 1, "alone and in a batch sums are rounded otherwise"
        facts = saved.facts
        assert (facts["class"], facts["space"], facts["checkpoint"]) == (one.label, "w", trained.digest)
        assert facts["features"]["name"] == "discriminator"
        assert facts["psnr"] == one.psnr == psnr(torch.from_numpy(shown).permute(2, 0, 1), one.target.pixels)


@pytest.mark.parametrize("options", [{"noise": "fit"}, {"space": "w+", "noise": "fit", "starts": 2}])
def test_images_of_a_batch_do_not_know_of_each_other(options, run, images, tmp_path):
    """The same latents and maps alone, in another order and in parts, up to the rounding of a few steps."""
    def latents(some: list[Path], name: str, **more) -> dict[str, list[torch.Tensor]]:
        found = project(some, run, tmp_path / name, ProjectOptions(steps=4, device="cpu", **options, **more))
        saved = {one.target.path.name: load_latents(tmp_path / name / f"{one.target.name}.safetensors") for one in found}
        return {name: [one.latents, *one.maps] for name, one in saved.items()}

    together = latents(images, "together")
    assert len(together["made0.png"]) == 6, "latents and 5 maps"
    assert not torch.allclose(together["made0.png"][0], together["made1.png"][0], atol=0.01)
    for other in (latents(images[::-1], "parts", batch=2), latents(images[1:2], "alone"), latents(images, "again", seed=0)):
        for name, values in other.items():
            for a, b in zip(values, together[name], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    otherwise = latents(images[:1], "seed", seed=1)
    assert not torch.allclose(otherwise["made0.png"][0], together["made0.png"][0], atol=2e-3), "draws"


def test_trying_every_class_ends_as_the_best_one_given(run, images, tmp_path):
    tried = project(images[:1], run, tmp_path / "tried", ProjectOptions(steps=20, device="cpu"))[0]
    given = project(images[:1], run, tmp_path / "given", ProjectOptions(steps=20, label=tried.label, device="cpu"))[0]
    assert tried.label == CLASSES[0]
    mean = [load_latents(tmp_path / name / "made0.safetensors").latents for name in ("tried", "given")]
    # More draws give the mean of one class than those of three, so that only the place is the same.
    torch.testing.assert_close(mean[0], mean[1], rtol=0, atol=0.3)
    assert abs(tried.psnr - given.psnr) < 3


@pytest.mark.full
def test_a_hole_is_completed_from_what_is_known(run, trained, images, tmp_path):
    """It comes near to what is missing, known pixels stay, and what is hidden does not matter."""
    hidden = []
    for number, image in enumerate(images):
        pixels = np.array(Image.open(image))
        pixels[:, 8:] = 255 * (number % 2)
        hidden.append(tmp_path / f"hidden{number}.png")
        Image.fromarray(pixels).save(hidden[-1])
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).resize((48, 48), Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    options = ProjectOptions(steps=80, space="w", pull=1e-3, mask=str(tmp_path / "mask.png"), device="cpu")
    found = project(hidden, run, tmp_path / "out", options)
    for one, image in zip(found, images, strict=True):
        truth, picture = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1), one.picture
        assert torch.equal(picture[..., :8], truth[..., :8]), "known pixels"
        mean = trained.population(one.label, "mean", 500).mean
        with torch.no_grad():
            middle = trained.kind.from_network(trained.generator.synthesize(mean[None], torch.tensor([one.label])))[0]
        where = torch.from_numpy(mask > 0)
        assert psnr(picture, truth, where) > psnr(middle, truth, where) + 6, "dB above the picture of the mean latent"
        assert one.hole == pytest.approx(psnr(picture, one.target.pixels, where))
    box = project(images[:1], run, tmp_path / "box", ProjectOptions(steps=2, mask_box="8,0,8,16", feather=2, device="cpu"))[0]
    changed = (box.picture != box.target.pixels).any(0).any(0)
    assert changed[6:].all(), "over 2 pixels they are mixed"
    assert not changed[:6].any()


def test_weights_of_samples_that_agree():
    """As many count as were asked for, the nearest most; the scale of distances does not matter."""
    apart = torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for effective in (10.0, 20.0, 40.0):
        weights = shares(apart * torch.tensor([[1.0], [1e-9], [1e9]], dtype=torch.float64), effective)
        assert (1 / weights.square().sum(1)).tolist() == pytest.approx([effective] * 3)
        assert torch.equal(weights.argsort(1, descending=True), apart.argsort(1))
        slope = weights.log().diff(dim=1) / apart.diff(dim=1)
        torch.testing.assert_close(slope, slope[:, :1].expand_as(slope), rtol=1e-4, atol=0)


def test_a_generator_without_w(tmp_path):
    """R3GAN: z is searched for, the class counts in the network itself."""
    run = make_run(tmp_path / "run", 3, resolution=16, knobs=R3GAN)
    images = draw(open_trained(run, "cpu"), tmp_path)
    found = project(images, run, tmp_path / "out", ProjectOptions(steps=60, device="cpu"))
    assert all(one.psnr > 20 for one in found)
    assert load_latents(tmp_path / "out" / "made0.safetensors").facts["space"] == "z"
    for options, message in (({"space": "w+"}, r"--space w\+: the generator of .* takes one latent alone: use --space w"),
                             ({"every_class": False}, "give --class K or --class all")):
        with pytest.raises(InputError, match=message):
            project(images, run, tmp_path / "out", ProjectOptions(steps=1, device="cpu", **options))


def test_tuning_comes_nearer_and_leaves_a_run(run, images, tmp_path):
    options, images = {"steps": 3, "label": 0, "device": "cpu", "batch": 1}, images[::2]
    before = project(images, run, tmp_path / "before", ProjectOptions(**options))
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    after = project(images, run, tmp_path / "after", ProjectOptions(tune=True, tune_steps=30, **options))
    assert all(b.psnr > a.psnr + 1 for a, b in zip(before, after, strict=True))
    tuned = tmp_path / "after" / "tuned"
    assert check_checkpoint(checkpoint_folder(tuned, 1000)) is None
    saved = load_latents(tmp_path / "after" / "made0.safetensors")
    again = open_trained(tuned, "cpu")
    assert saved.facts["checkpoint"] == again.digest
    shown = np.asarray(Image.open(tmp_path / "after" / "made0.png")).astype(int)
    pixels = again.kind.from_network(saved.drawn_by(again))[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - pixels).max() <= 1
    generate(tuned, tmp_path / "pictures", GenerateOptions([0]))
    assert whole == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "the run itself is as it was"
    (tuned / "derived.json").unlink()
    with pytest.raises(InputError, match="tuned is something else than a tuned or blended generator: move it away"):
        project(images, run, tmp_path / "after", ProjectOptions(tune=True, tune_steps=1, **options))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_channels(channels, mode, tmp_path):
    """Images become what the run makes, as `pack` does: grey, or with transparency. Equal names are told apart."""
    run = make_run(tmp_path / "run", 0, channels, resolution=8, knobs=SMALL)
    (tmp_path / "other").mkdir()
    for folder, colour in (("", (9, 99, 199)), ("other", (255, 0, 0))):
        Image.new("RGB", (30, 20), colour).save(tmp_path / folder / "strip.jpg")
    found = project([tmp_path / "strip.jpg", tmp_path / "other"], run, tmp_path / "out", ProjectOptions(steps=2, device="cpu"))
    assert [one.target.name for one in found] == ["strip-2", "strip-3"]
    assert Image.open(tmp_path / "out" / "strip-2.png").mode == mode
    assert Image.open(tmp_path / "out" / "strip-2.png").size == (8, 8)
    assert found[0].label is None


def test_the_search_waits_for_nobody(trained):
    """The meta device stands in for a GPU: nobody can read a number there."""
    features, meta = open_loss_features("discriminator", trained), torch.device("meta")
    assert features is not None
    features._trunk.to(meta)
    features.device = meta
    there = replace(trained, generator=copy.deepcopy(trained.generator).to(meta), device=meta)
    with meta:
        labels = torch.zeros(2, dtype=torch.int64)
        rows = Rows(torch.zeros(2, 8), torch.zeros(2, 8), torch.ones(2), torch.zeros(2, 8, 8), labels, labels,
                    [values.repeat(2, 1, 1, 1) for values in there.generator.noise_maps()]).widened(there.generator.num_ws)
        targets, missing = torch.zeros(2, 3, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    for hole in (None, missing):
        loss = Loss(targets, hole, features, 0.1)
        search(Search(there, 0), loss, rows, 1, "test")  # constants are made once
        with NobodyWaits():
            search(Search(there, 0), loss, rows, 2, "test", pull=0.1)


# The mathematics

def test_the_schedule():
    """Karras et al. 2020, appendix D: full rate from 5 % to 75 %, then a cosine; noise 0.05 of the spread at first."""
    assert learning_rate(0) == 0
    assert [learning_rate(done) for done in (0.025, 0.05, 0.5, 0.75)] == pytest.approx([0.5, 1, 1, 1])
    assert [learning_rate(done) for done in (0.875, 1)] == pytest.approx([0.5, 0])
    assert [latent_noise(done) for done in (0, 0.375, 0.75, 0.9)] == pytest.approx([0.05, 0.0125, 0, 0])


def test_the_regularisation_of_maps():
    values = torch.tensor([[1.0, -1], [-1, 1]]).repeat(8, 8)[None, None]  # a checkerboard of 16 pixels: averages are 0
    assert roughness([values]) == pytest.approx(2.0)
    random = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = []
    for values in random[:, 0].numpy().astype(np.float64):
        total = 0.0
        while True:
            size = len(values)
            for dy, dx in ((0, 1), (1, 0)):
                products = [values[y, x] * values[(y - dy) % size, (x - dx) % size] for y in range(size) for x in range(size)]
                total += (sum(products) / size**2) ** 2
            if size <= 8:
                break
            values = values.reshape(size // 2, 2, size // 2, 2).mean((1, 3))
        expected.append(total)
    assert roughness([random]).tolist() == pytest.approx(expected, rel=1e-4)
    assert normalised(3 * random + 1).mean((1, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert normalised(3 * random + 1).square().mean((1, 2, 3)).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_the_loss(trained):
    """Pixels at three sizes; in a hole nothing counts; beyond white is white."""
    generator = torch.Generator().manual_seed(0)
    made, wanted = (torch.rand(2, 3, 16, 16, generator=generator) - 0.5 for _ in range(2))
    wanted[0, :, 3, 3], made[0, :, 3, 3] = 1, 4
    difference = (made - wanted).double()
    difference[0, :, 3, 3] = 0
    sizes = [difference.unflatten(3, (16 // n, n)).unflatten(2, (16 // n, n)).mean((3, 5)) for n in (1, 2, 4)]
    expected = torch.stack([size.square().mean((1, 2, 3)) for size in sizes]).mean(0)
    torch.testing.assert_close(Loss(wanted, None, None, 0).pixels(made).double(), expected, rtol=1e-5, atol=0)
    missing = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    missing[..., 5:11, 5:11] = True
    other = torch.where(missing, torch.zeros(()), wanted)
    for features in (None, open_loss_features("discriminator", trained)):
        losses = [Loss(values, missing, features, 0.3)(made) for values in (wanted, other)]
        assert torch.equal(*losses)
        changed = made.clone().requires_grad_()
        Loss(wanted, missing, features, 0.3)(changed).sum().backward()
        assert changed.grad is not None
        if features is None:
            assert not changed.grad[..., 6:10, 6:10].any(), "no gradient in the hole"
        assert changed.grad.any()
        nothing = Loss(wanted, missing, features, 0.3)(torch.where(missing, made, wanted))
        assert nothing.abs().max() < 1e-10


def test_feathering():
    missing = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    missing[..., 4] = True
    mixed = pasted(torch.ones(1, 1, 1, 9), torch.zeros(1, 1, 1, 9), missing, 2)
    assert mixed.flatten().tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0])
    assert psnr(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 255)) == 0
    assert psnr(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)) == pytest.approx(20 * math.log10(255))


# Errors

def said(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main(["project", *map(str, arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("options", "message"), [
    (["--class", "3"], "--class 3 does not exist: {run} has classes 0 to 2"),
    (["--class", "-1"], "--class must be a class number, all or none, not '-1'"),
    (["--features", "vgg"], "there is no feature network 'vgg': choose one of"),
    (["--device", "gpu"], "--device gpu is not there: use cpu, or cuda"),
    (["--steps", "0"], "--steps must be a whole number"),
    (["--nimg", "5"], "{run} has no checkpoint at 5 images; there are: 1000"),
    (["--mask-box", "1,2,3"], "--mask-box '1,2,3' is no rectangle: write x,y,width,height"),
    (["--mask-box", "8,8,9,1"], "--mask-box '8,8,9,1' must lie inside the 16 x 16 pixels of the run"),
    (["--mask-box", "0,0,16,16"], "--mask-box 0,0,16,16 leaves nothing known: white is what is missing"),
    (["--mask", "{tmp}/none.png"], "cannot read {tmp}/none.png: No such file"),
    (["--mask", "{tmp}/black.png"], "the mask {tmp}/black.png leaves nothing to complete"),
    (["--mask", "{tmp}/wide.png"], "the mask {tmp}/wide.png has 40 x 16 pixels, {image} 16 x 16: make the mask of the size"),
    (["--mask", "{tmp}/wide.png", "--mask-box", "1,1,1,1"], "--mask and --mask-box say the same thing"),
    (["--mask-box", "1,1,1,1", "--tune"], "--tune needs whole images: leave out the mask"),
    (["--feather", "2"], "--feather mixes pixels around a hole: give --mask"),
    (["--tune-steps", "5"], "--tune-steps are steps of tuning: give --tune"),
    (["--out", "{tmp}/file"], "cannot write to {tmp}/file"),
])
def test_options_that_make_no_sense(options, message, run, images, tmp_path, capsys):
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    Image.new("L", (40, 16), 255).save(tmp_path / "wide.png")
    (tmp_path / "file").write_text("")
    names = {"run": run, "tmp": tmp_path, "image": images[0]}
    options = [option.format(**names) for option in options]
    if "--out" not in options:
        options += ["--out", str(tmp_path / "out")]
    assert "error: " + message.format(**names) in said(capsys, images[0], "--run", run, "--device", "cpu", *options)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images(run, images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for name, message in (("text.png", "text.png cannot be used: not an image"), ("empty", "there are no images in"),
                          ("absent.png", "absent.png: No such file")):
        assert message in said(capsys, tmp_path / name, "--run", run, "--out", tmp_path / "out")
    assert "is not the folder of a run: it has no config.yaml" in said(capsys, images[0], "--run", tmp_path)
    with pytest.raises(InputError, match="there are no latents"):
        load_latents(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="is damaged"):
        load_latents(shutil.copy(tmp_path / "text.png", tmp_path / "text.safetensors"))


def test_without_labels(images, tmp_path, capsys):
    run = make_run(tmp_path / "run", 0, resolution=8, knobs=SMALL)
    assert "--class has no meaning here" in said(capsys, images[0], "--run", run, "--class", "0", "--out", tmp_path / "out")
    numbers = {read_images([image], open_trained(run, "cpu"))[0].number for image in images}
    assert len(numbers) == 3, "draws of different images have different addresses"


def test_the_table(run, images, tmp_path, capsys):
    assert main(["project", str(images[0]), "--run", str(run), "--out", str(tmp_path), "--steps", "2", "--device", "cpu",
                 "--mask-box", "0,0,8,8"]) == 0
    heading, row, folder = capsys.readouterr().out.splitlines()
    assert heading.split() == ["image", "class", "PSNR", "dB", "distance", "hole", "dB", "features:", "discriminator"]
    assert row.split()[0] == "made0"
    assert len(row.split()) == 5
    assert folder == str(tmp_path)
