"""StyleGAN3: a step of both networks, its rules, and a run of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference
import torch
from launching import ROOT, TINY_STYLEGAN3
from parts import results_in_parts
from PIL import Image
from safetensors.torch import load_file
from small_families import batch_of, check_continued, index_of
from small_stylegan3 import BATCH, CPU, networks, resolved, small

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.config import load_config, schedules_of
from stylegan_dist.config.schedules import Schedule
from stylegan_dist.errors import InputError
from stylegan_dist.families.stylegan3.family import FAMILY
from stylegan_dist.families.stylegan3.objective import StyleGan3Objective, blur
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState

# The objective

@pytest.mark.parametrize("variant", ["t", "r"])
@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.full)])
def test_micro_batches_add_up(variant, parts):
    g, d = networks(variant, classes=3)
    objective = StyleGan3Objective(small(variant, classes=3).config, g, d, torch.tensor([8] * 3))
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16), 3)
    for phase in objective.phases():
        parameters = list((g if phase.network == "g" else d).parameters())
        pairs, means = results_in_parts(phase.losses[0], real, parts, parameters, unused=True)
        assert max(reference.difference(*pair) for pair in pairs if pair[1].any()) < 1e-9
        assert set(means) == ({"w", "magnitudes"} if phase.name == "d_main" else set())
        assert all(reference.difference(*pair) < 1e-6 for pair in means.values())


def test_the_phase_of_the_discriminator_moves_the_buffers():
    g, d = networks("t")
    objective = StyleGan3Objective(small("t").config, g, d, None)
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16))
    before = g.w_avg.clone(), g.synthesis.magnitudes.clone()
    objective.after_phase(objective.g_main(real).running_means)
    assert torch.equal(before[0], g.w_avg)
    objective.after_phase(objective.d_main(real).running_means)
    ws = g.styles(randomness.normal(0, "d_main.z", real.index, (8,)), None)
    g.synthesis.magnitudes.copy_(before[1]), (after := g.w_avg.clone())
    expected = g.synthesis.measured(ws)[1].mean(0)
    assert reference.difference(after, 0.998 * before[0] + 0.002 * ws[:, 0].mean(0)) < 1e-10
    objective.after_phase({"magnitudes": expected})
    decay = 0.5 ** (BATCH / 50)
    assert reference.difference(g.synthesis.magnitudes, decay * before[1] + (1 - decay) * expected) < 1e-6
    objective.after_phase({"magnitudes": torch.full_like(expected, torch.nan)})
    assert g.synthesis.magnitudes.isfinite().all()


def test_blur_is_a_gaussian_that_fades():
    image = torch.zeros(1, 2, 41, 41, dtype=torch.float64)
    image[0, 1, 20, 20] = 1
    for sigma in (4.0, 0.9):
        place = np.arange(-20, 21)
        line = np.where(abs(place) <= math.floor(3 * sigma), 2.0 ** -((place / sigma) ** 2), 0)
        blurred = blur(image, torch.tensor(sigma, dtype=torch.float64), 30)
        assert np.abs(blurred[0, 1].numpy() - np.outer(line, line) / line.sum() ** 2).max() < 1e-12
        assert not blurred[0, 0].any()
    for sigma in (0.33, 0.0):
        assert torch.equal(blur(image, torch.tensor(sigma, dtype=torch.float64), 30), image)


def test_blur_is_in_front_of_augmentation_for_all_that_the_discriminator_sees(monkeypatch):
    g, d = networks("r")
    config = small("r", "augment.pipe=color", "augment.p=1", "loss.r2_gamma=1").config
    objective, seen = StyleGan3Objective(config, g, d, None), []
    monkeypatch.setattr(objective, "augmentation", lambda images, *_: seen.append(images) or images)
    objective.move_weights(0)
    assert objective.now()["blur/sigma"] == 10
    real = batch_of(reference.normals(0, BATCH, 3, 16, 16))
    for phase in objective.phases():
        for loss in phase.losses:
            loss(real)
    assert len(seen) == 5
    assert all(images.diff(dim=3).abs().max() < 0.2 * images.abs().max() for images in seen), "smooth"
    objective.move_weights(int(1000 * 6.25 * BATCH))
    assert objective.now()["blur/sigma"] == 0
    objective.d_main(real)
    assert torch.equal(seen[-1], real.images)
    assert "blur/sigma" not in StyleGan3Objective(small("t").config, *networks("t"), None).now()


# Rules, and whole runs

def test_rules():
    for variant, factor in (("t", 1), ("r", 2)):
        config = resolved(variant, "run.batch=32", resolution=256).config
        assert (config.generator.channel_base, config.generator.channel_max) == (32768 * factor, 512 * factor)
        assert (config.discriminator.channel_base, config.discriminator.channel_max) == (32768, 512)
        assert (config.optim.g.lr, config.optim.d.lr, config.loss.r1_gamma) == (0.0025, 0.002, 2)
        assert config.loss.blur_sigma == (Schedule("linear", 10, 0, 200) if variant == "r" else 0)
    for resolution, gamma in ((128, 0.5), (512, 8), (1024, 32)):
        assert resolved("t", "run.batch=32", resolution=resolution).config.loss.r1_gamma == gamma


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "launch/presets").glob("stylegan3-*.yaml")))
def test_presets(preset):
    variant, resolution = preset[10], int(preset.rpartition("ffhq")[2])
    config = load_config(ROOT / f"launch/presets/{preset}.yaml", ["data.shards=somewhere"])
    config = resolve(config, index_of(resolution, 0)).config
    assert config.generator.family == f"stylegan3-{variant}"
    shape, meta = SampleShape(resolution, 3), torch.device("meta")
    sizes = {"t256": (23_320_443, 24_001_089), "r256": (15_779_565, 24_001_089),
             "t1024": (22_313_167, 29_012_513), "r1024": (15_093_151, 29_012_513)}
    built = build_generator(config, shape, meta), build_discriminator(config, shape, meta)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in built) == sizes[f"{variant}{resolution}"]
    settings = {256: (64, 1, 0.0025), 1024: (32, 32.8, 0.002)}
    assert (config.run.batch, config.loss.r1_gamma, config.optim.d.lr) == settings[resolution]
    assert (config.optim.g.lr, config.precision.clamp, config.loss.penalty_interval) == (0.0025, 256, 16)
    assert set(schedules_of(config)) == ({"loss.blur_sigma"} if variant == "r" else set())


@pytest.mark.parametrize(("overrides", "message"), [
    (("generator.channel_base=7",), r"generator\.channel_base=7 leaves no feature maps"),
    (("discriminator.channel_base=7",), r"discriminator\.channel_base=7 leaves no feature maps at 16 px"),
    (("loss.path_length_weight=1",), r"loss\.path_length_weight"),
    (("generator.family=stylegan3",), r"'stylegan3' is unknown; choose one of .*stylegan3-r, stylegan3-t"),
    (("generator.family=stylegan2-t",), r"'stylegan2-t' is unknown"),
])
def test_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        small("t", *overrides)


def test_small_images_are_refused():
    with pytest.raises(InputError, match="at least 8 px"):
        resolved("t", resolution=4)


def test_regularisation_is_lazy_for_the_discriminator_alone():
    found = resolved("r", *TINY_STYLEGAN3, "run.batch_gpu=2", "loss.penalty_interval=16")
    state = TrainState(found, index_of(16, 0), CPU)
    assert [(phase.name, phase.interval) for phase in state.phases] == [("g_main", 1), ("d_main", 1), ("d_penalty", 16)]
    assert state.optimizers["g"].param_groups[0]["lr"] == 0.0025
    assert state.optimizers["d"].param_groups[0]["lr"] == pytest.approx(0.002 * 16 / 17)


@pytest.mark.parametrize("variant", [pytest.param("t", marks=pytest.mark.full), "r"])
def test_a_run_is_continued_and_drawn_with(variant, small_shards, tmp_path, capsys):
    overrides = [*TINY_STYLEGAN3, f"generator.family=stylegan3-{variant}", f"data.shards={small_shards}"]
    last = check_continued(tmp_path, overrides, (0.04, 0.08))
    whole = load_file(last / "g_ema.safetensors")
    assert (whole["synthesis.magnitudes"] != 1).all()
    assert whole["synthesis.input.motion.weight"].any(), "it has learned"
    record = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/g_main", "loss/d_main", "logits/real"} <= record.keys()
    assert ("blur/sigma" in record) == (variant == "r")

    draw = ["generate", str(tmp_path / "whole"), "--seeds", "0-1", "--device", "cpu", "--trunc", "0.7", "--out"]
    assert main([*draw, str(tmp_path / "out")]) == 0
    assert main([*draw, str(tmp_path / "moved"), "--translate=0.25,0", "--rotate", "90"]) == 0
    plain, moved = (np.array(Image.open(tmp_path / name / "seed0000-class0.png")) for name in ("out", "moved"))
    assert plain.shape == moved.shape == (8, 8, 3)
    assert not np.array_equal(plain, moved)
    assert main([*draw, str(tmp_path / "moved"), "--translate=1"]) == 2
    assert "--translate must be two numbers" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["t", "r"])
def test_a_plan(variant, small_shards, capsys):
    assert main(["train", *TINY_STYLEGAN3, f"generator.family=stylegan3-{variant}", f"data.shards={small_shards}",
                 "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "peak of tensors on each rank" in text


def test_what_a_transfer_carries_over_and_freezes():
    config = small("r", "run.init_from=somewhere", "discriminator.freeze_layers=1").config
    assert config.loss.blur_sigma == 0
    family, same, larger = FAMILY["r"], SampleShape(16, 3), SampleShape(32, 3)
    name = "synthesis.layers.0.weight"
    assert family.carries_over("g", name, same, same)
    assert not family.carries_over("g", name, same, larger)
    assert family.carries_over("g", "mapping.layers.1.weight", same, larger)
    assert not family.carries_over("d", "b32.conv0.weight", same, larger)
    with pytest.raises(InputError, match=r"discriminator\.freeze_layers=99"):
        small("r", "run.init_from=somewhere", "discriminator.freeze_layers=99")
