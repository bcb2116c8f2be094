"""p follows the signs of the logits of real images."""

from __future__ import annotations

import math

import pytest
import torch

from stylegan_dist.augment import RUNNING, augmentation_of, check
from stylegan_dist.augment.controller import LOGITS, SIGNS, HeldOutController, SignController
from stylegan_dist.config import load_config
from stylegan_dist.config.schema import AugmentConfig
from stylegan_dist.errors import InputError

BATCH = 50


def controller(**knobs: float) -> SignController:
    return SignController(AugmentConfig(pipe="bgc", **{"target": 0.6, "kimg": 500.0, **knobs}),
                          {name: torch.zeros(()) for name in RUNNING}, BATCH)


def after(one: SignController, mean_sign: float, kimg: float) -> float:
    for _ in range(round(kimg * 1000 / BATCH)):
        one.update({SIGNS: torch.tensor(mean_sign * BATCH)})
    return one.p.item()


def test_speed_and_limits():
    one = controller()
    assert after(one, 0.8, 250) == pytest.approx(0.5, abs=1e-3)
    assert after(one, 0.8, 260) == 1, "never above"
    assert after(one, 0.2, 100) == pytest.approx(0.8, abs=1e-3)
    assert after(one, 0.2, 450) == 0, "never below"
    assert after(controller(kimg=100.0), 0.8, 10) == pytest.approx(0.1, abs=1e-3)
    assert after(controller(target=0.9), 0.8, 10) == 0


def test_it_moves_every_fourth_step_by_the_mean_of_four():
    one, move = controller(), 4 * BATCH / 500_000
    seen = []
    for signs in (50, 50, 0, 22, 0, 0, 50, 50, 50, 50, 0, 20):  # means: 30.5, 25, 30 of 50; the target is 30
        one.update({SIGNS: torch.tensor(float(signs))})
        seen.append(one.p.item())
    assert seen == pytest.approx([0, 0, 0, move, move, move, move, 0, 0, 0, 0, 0])
    assert (one.signs.item(), one.steps.item()) == (0, 0)


def test_what_is_not_finite_does_not_stay():
    one = controller()
    one.update({SIGNS: torch.tensor(math.nan)})
    assert after(one, 1.0, 5) > 0


@pytest.mark.parametrize(("real", "held_out", "fake", "moves"), [
    (2.0, 0.5, 0.0, 1),       # 1.5 of 2: held-out images look like generated ones
    (2.0, 1.5, 0.0, -1),      # 0.5 of 2: like those that D learns from
    (2.0, 1.0, 0.0, 0),       # on target
    (-3.0, -4.5, -5.0, 1),    # a number added to all logits changes nothing
    (0.0, -1.0, 0.5, 1),      # generated images look more real than real ones: the gap counts as 1e-8
    (0.0, 1.0, 0.5, -1),
    (math.nan, 1.0, 0.5, 0),
])
def test_held_out_images_move_p(real: float, held_out: float, fake: float, moves: int):
    p, shape = torch.full((), 0.5), (BATCH,)
    one = HeldOutController(AugmentConfig(pipe="bgc", target=0.5, kimg=500.0), {"augment_p": p}, BATCH)
    logits = [torch.full(shape, mean) for mean in (real, fake, held_out)]
    halves = [one.sums(*(each[part] for each in logits)) for part in (slice(0, 20), slice(20, None))]
    one.update({name: halves[0][name] + halves[1][name] for name in LOGITS})
    assert p.item() == pytest.approx(0.5 + moves * 4 * BATCH / 500_000, abs=1e-7)
    assert one.sums(*logits[:2], None) == {}
    one.update({"w": torch.zeros(8)})  # of another phase, or a step without held-out images
    assert p.item() == pytest.approx(0.5 + moves * 4 * BATCH / 500_000, abs=1e-7)


@pytest.mark.parametrize(("pipe", "groups"), [
    ("bg", {"blit": 1, "geom": 1}), ("bgcfnc", dict.fromkeys(("blit", "geom", "color", "filter", "noise", "cutout"), 1)),
    ("cutout, bg,color:0.5", {"blit": 1, "geom": 1, "color": 0.5, "cutout": 1}), ("bgc:0.25", dict.fromkeys(
        ("blit", "geom", "color"), 0.25)),
])
def test_names_of_pipes(pipe: str, groups: dict[str, float]):
    found = augmentation_of(load_config(None, [f"augment.pipe={pipe}"]).augment).multipliers
    assert list(found.items()) == list(groups.items())


@pytest.mark.parametrize("pipe", ["bgx", "", "none,color", "color:2", "color:x", "color:nan", "bgc,color", "diffaugment:0.5"])
def test_wrong_pipes_are_refused(pipe: str):
    with pytest.raises(InputError, match=r"augment\.pipe="):
        augmentation_of(AugmentConfig(pipe=pipe))


def test_what_has_no_meaning_is_refused():
    def try_(pipe: str, p: float | str = 0.5, channels: int = 3, images: bool = True, anchored: bool = True,
             **more: str) -> None:
        check(AugmentConfig(pipe=pipe, p=p, **{"controller": "r_t", **more}), channels, images, anchored, "relativistic")

    try_("bgc", "ada")
    try_("none", "ada", channels=2, images=False, anchored=False)
    try_("bg", channels=4, images=False)
    try_("diffaugment", "ada", anchored=False)
    try_("bgc", 0.3, anchored=False)
    for pipe, channels, images in (("bgc", 2, True), ("bgc", 1, False), ("diffaugment", 3, False)):
        with pytest.raises(InputError, match="changes colours"):
            try_(pipe, channels=channels, images=images)
    with pytest.raises(InputError, match=r"augment\.p=ada.*relativistic: set a fixed number"):
        try_("bgc", "ada", anchored=False)
    try_("bgc", "ada", controller="r_v", held_out="somewhere")
    try_("bgc", 0.3, controller="r_v")
    with pytest.raises(InputError, match=r"augment\.p=ada compares mean logits.*relativistic: set a fixed number"):
        try_("bgc", "ada", anchored=False, controller="r_v", held_out="somewhere")
    with pytest.raises(InputError, match=r"r_v needs held-out images: set augment\.held_out"):
        try_("bgc", "ada", controller="r_v")
    for wrong in ("1.5", "-0.1", "adaptive"):
        with pytest.raises(InputError, match=r"augment\.p"):
            load_config(None, [f"augment.p={wrong}"])
