"""Every transform against its definition, from the same draws."""

from __future__ import annotations

import math

import augment_reference as reference
import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.augment.bands import filter_bank
from stylegan_dist.augment.diffaugment import UNIFORMS as DIFF_UNIFORMS
from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.geometry import blit, geom
from stylegan_dist.augment.pipe import NORMALS, UNIFORMS, augmentation_of
from stylegan_dist.config.schema import AugmentConfig

SEED, PURPOSE, COUNT = 7, "d_main.augment.real", 24
INDEX = torch.arange(5000, 5000 + COUNT)


def images(size: int, channels: int = 3, count: int = COUNT) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def drawn(uniforms=UNIFORMS, normals=NORMALS) -> list[dict[str, float]]:
    """By image, the numbers of every column: "scale?" is the uniform draw of its gate, "n.scale" the normal one."""
    u = randomness.uniform(SEED, f"{PURPOSE}.uniform", INDEX, len(uniforms)).tolist()
    n = randomness.normal(SEED, f"{PURPOSE}.normal", INDEX, (max(len(normals), 1),)).tolist()
    return [dict(zip(uniforms, a, strict=True)) | {f"n.{name}": value for name, value in zip(normals, b, strict=False)}
            for a, b in zip(u, n, strict=True)]


def augmented(x: Tensor, pipe: str, p: float = 1.0) -> Tensor:
    augmentation = augmentation_of(AugmentConfig(pipe=pipe))
    return augmentation(x, SEED, PURPOSE, INDEX[:len(x)], torch.tensor(p, dtype=torch.float64))


def angle(u: float) -> float:
    return (2 * u - 1) * math.pi


def blit_forward(d: dict[str, float], p: float, size: int) -> list[np.ndarray]:
    """The matrices of the steps that take place, from input to output coordinates."""
    steps = []
    if d["xflip?"] < p and d["xflip"] >= 0.5:
        steps.append(reference.scaled(-1, 1))
    if d["rotate90?"] < p:
        steps.append(reference.rotated(math.floor(4 * d["rotate90"]) * math.pi / 2))
    if d["xint?"] < p:
        steps.append(reference.shifted(*(round((2 * d[name] - 1) * 0.125 * size) for name in ("xint.x", "xint.y"))))
    return steps


def geom_forward(d: dict[str, float], p: float, size: int) -> list[np.ndarray]:
    steps, turning = [], 1 - math.sqrt(1 - p)
    if d["scale?"] < p:
        steps.append(reference.scaled(*[2 ** (0.2 * d["n.scale"])] * 2))
    if d["rotate?"] < turning:
        steps.append(reference.rotated(angle(d["rotate"])))
    if d["aniso?"] < p:
        s = 2 ** (0.2 * d["n.aniso"])
        steps.append(reference.scaled(s, 1 / s))
    if d["rotate_after?"] < turning:
        steps.append(reference.rotated(angle(d["rotate_after"])))
    if d["xfrac?"] < p:
        steps.append(reference.shifted(*(0.125 * size * d[name] for name in ("n.xfrac.x", "n.xfrac.y"))))
    return steps


def inverse_of(steps: list[np.ndarray]) -> np.ndarray:
    total = np.eye(3)
    for step in steps:
        total = step @ total  # one after the other
    return np.linalg.inv(total)


@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize(("group", "forward"), [(blit, blit_forward), (geom, geom_forward)])
def test_geometric_matrices(group, forward, p: float):
    draws = Draws(SEED, PURPOSE, INDEX, torch.zeros((), dtype=torch.float64), UNIFORMS, NORMALS)
    found = group(draws, torch.tensor(p, dtype=torch.float64), 32)
    expected = np.stack([inverse_of(forward(d, p, 32)) for d in drawn()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_pipe_composes_them():
    x = images(4, 1, 3)
    for p in (0.5, 1.0):
        expected = [reference.warp(image, inverse_of([*blit_forward(d, p, 4), *geom_forward(d, p, 4)]))
                    for image, d in zip(x, drawn(), strict=False)]
        torch.testing.assert_close(augmented(x, "bg", p), torch.stack(expected), rtol=0, atol=1e-5)


def colored(color: np.ndarray, d: dict[str, float], p: float) -> np.ndarray:
    if d["brightness?"] < p:
        color = color + 0.2 * d["n.brightness"]
    if d["contrast?"] < p:
        color = color * 2 ** (0.5 * d["n.contrast"])
    grey = reference.GREY
    if d["lumaflip?"] < p and d["lumaflip"] >= 0.5:
        color = color - 2 * grey * (grey @ color)
    if d["hue?"] < p:
        color = reference.turned_hue(color, angle(d["hue"]))
    if d["saturation?"] < p:
        along = grey * (grey @ color)
        color = along + (color - along) * 2 ** d["n.saturation"]
    return color


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_colour(p: float):
    x = images(2)
    expected = torch.zeros_like(x)
    for n, d in enumerate(drawn()):
        for i in range(2):
            for j in range(2):
                expected[n, :, i, j] = torch.from_numpy(colored(x[n, :, i, j].numpy(), d, p))
    torch.testing.assert_close(augmented(x, "color", p), expected, rtol=0, atol=1e-5)


def test_grey_images_are_the_mean_of_coloured_ones_and_grey_stays_grey():
    x = images(4, 1)
    three = augmented(x.expand(-1, 3, -1, -1).contiguous(), "color")
    torch.testing.assert_close(augmented(x, "color"), three.mean(1, keepdim=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(three[:, :1].expand_as(three), three, rtol=0, atol=1e-5)


def test_the_filter_bank():
    found = np.array(filter_bank())
    np.testing.assert_allclose(found, reference.bank(), atol=1e-12)
    assert found.shape == (4, 43)
    np.testing.assert_allclose(found.sum(0), np.eye(43)[21], atol=1e-12)
    np.testing.assert_allclose(found.sum(1), [1, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(("size", "p"), [(8, 1.0), (32, 0.5)])
def test_filter(size: int, p: float):
    x, bank = images(size, 2, 3), reference.bank()
    expected = []
    for image, d in zip(x, drawn(), strict=False):
        g, power = np.ones(4), np.array([10, 1, 1, 1]) / 13
        for i in range(4):
            t = np.ones(4)
            if d[f"band{i}?"] < p:
                t[i] = 2 ** d[f"n.band{i}"]
            g = g * t / math.sqrt((power * t**2).sum())
        expected.append(reference.filtered(image, g @ bank))
    torch.testing.assert_close(augmented(x, "filter", p), torch.stack(expected), rtol=0, atol=1e-5)


def test_noise_and_cutout():
    x, size = images(8), 8
    noise = randomness.normal(SEED, f"{PURPOSE}.noise", INDEX, (3, size, size)).double()
    sigma = torch.tensor([0.1 * abs(d["n.noise"]) if d["noise?"] < 0.5 else 0.0 for d in drawn()]).double()
    torch.testing.assert_close(augmented(x, "noise", 0.5), x + sigma[:, None, None, None] * noise, rtol=0, atol=1e-6)
    expected = x.clone()
    for n, d in enumerate(drawn()):
        for i in range(size):
            for j in range(size):
                if (d["cutout?"] < 0.7 and abs((i + 0.5) / size - d["cutout.y"]) < 0.25
                        and abs((j + 0.5) / size - d["cutout.x"]) < 0.25):
                    expected[n, :, i, j] = 0
    assert torch.equal(augmented(x, "cutout", 0.7), expected)
    assert 0 < expected.eq(0).float().mean() < 0.7 * 0.25


@pytest.mark.parametrize("size", [8, 9])
def test_diffaugment(size: int):
    x = images(size)
    expected = torch.zeros_like(x)
    for n, d in enumerate(drawn(DIFF_UNIFORMS, ())):
        image = x[n] + d["brightness"] - 0.5
        grey = image.mean(0)
        image = (image - grey) * 2 * d["saturation"] + grey
        image = (image - image.mean()) * (d["contrast"] + 0.5) + image.mean()
        most, side = math.floor(size / 8 + 0.5), math.floor(size / 2 + 0.5)
        right, down = (math.floor(d[name] * (2 * most + 1)) - most for name in ("shift.x", "shift.y"))
        left, top = (math.floor(d[name] * (size + 1 - side % 2)) - side // 2 for name in ("cutout.x", "cutout.y"))
        for i in range(size):
            for j in range(size):
                hidden = top <= i < top + side and left <= j < left + side
                if not hidden and 0 <= i - down < size and 0 <= j - right < size:
                    expected[n, :, i, j] = image[:, i - down, j - right]
    torch.testing.assert_close(augmented(x, "diffaugment"), expected, rtol=0, atol=1e-5)


def test_how_often():
    """Each transform has probability p times its multiplier; a rotation of any kind has p."""
    index, p = torch.arange(20_000), torch.tensor(0.3)
    draws = Draws(0, "x", index, torch.zeros(()), UNIFORMS, NORMALS)
    for name in UNIFORMS:
        if name.endswith("?"):
            assert draws.gate(name, p).float().mean().item() == pytest.approx(0.3, abs=0.015), name
    turning = 1 - (1 - p).sqrt()
    either = draws.gate("rotate?", turning) | draws.gate("rotate_after?", turning)
    assert either.float().mean().item() == pytest.approx(0.3, abs=0.015)
    cut = augmentation_of(AugmentConfig(pipe="cutout:0.5"))(torch.ones(4000, 1, 4, 4), 0, "x", index[:4000], p * 2)
    assert (cut == 0).flatten(1).any(1).float().mean().item() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("pipe", ["bgcfnc", "diffaugment"])
def test_gradients(pipe: str):
    x = images(4, 3, 1).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return augmented(x, pipe, 0.8)

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("pipe", ["bgcfnc", "diffaugment"])
def test_an_image_is_augmented_alike_alone_and_in_a_batch(pipe: str):
    x = images(8).float()
    whole = augmented(x, pipe, 0.7)
    augmentation = augmentation_of(AugmentConfig(pipe=pipe))
    for i in (0, 13):
        alone = augmentation(x[i:i + 1], SEED, PURPOSE, INDEX[i:i + 1], torch.tensor(0.7))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-6)


def test_without_probability_nothing_happens():
    x = images(16).float()
    torch.testing.assert_close(augmented(x, "bgcfnc", 0.0), x, rtol=0, atol=1e-5)
    low = augmented(x.bfloat16(), "bgc", 1.0)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), augmented(x.bfloat16().float(), "bgc", 1.0), rtol=0.01, atol=0.01)
