"""p follows the signs of the logits of real images."""

from __future__ import annotations

import math

import pytest
import torch

from stylegan_dist.augment import RUNNING, Controller, augmentation_of, check
from stylegan_dist.config import load_config
from stylegan_dist.config.schema import AugmentConfig
from stylegan_dist.errors import InputError

BATCH = 50


def controller(**knobs: float) -> Controller:
    return Controller(AugmentConfig(pipe="bgc", **{"kimg": 500.0, **knobs}), {name: torch.zeros(()) for name in RUNNING}, BATCH)


def after(one: Controller, mean_sign: float, kimg: float) -> float:
    for _ in range(round(kimg * 1000 / BATCH)):
        one.update(torch.tensor(mean_sign * BATCH))
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
        one.update(torch.tensor(float(signs)))
        seen.append(one.p.item())
    assert seen == pytest.approx([0, 0, 0, move, move, move, move, 0, 0, 0, 0, 0])
    assert (one.signs.item(), one.steps.item()) == (0, 0)


def test_what_is_not_finite_does_not_stay():
    one = controller()
    one.update(torch.tensor(math.nan))
    assert after(one, 1.0, 5) > 0


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
    def try_(pipe: str, p: float | str = 0.5, channels: int = 3, images: bool = True, anchored: bool = True) -> None:
        check(AugmentConfig(pipe=pipe, p=p), channels, images, anchored, "relativistic")

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
    for wrong in ("1.5", "-0.1", "adaptive"):
        with pytest.raises(InputError, match=r"augment\.p"):
            load_config(None, [f"augment.p={wrong}"])
