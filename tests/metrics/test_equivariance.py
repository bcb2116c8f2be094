"""EQ-T and EQ-R of generators whose equivariance is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.samples import GeneratedSamples
from stylegan_dist.metrics import equivariance_score, rotation_errors, translation_errors
from stylegan_dist.metrics.equivariance import REACH, rotate
from stylegan_dist.networks.generator import Generator, Sampling, motion

SIZE = 48


class Waves(Generator):
    """Waves below half of what the pixels can hold, in the whole plane: exactly equivariant. Or it ignores motion."""

    num_classes, z_dim = 0, 3

    def __init__(self, stays: bool = False):
        super().__init__()
        self.stays = stays
        self.places = (torch.arange(SIZE) + 0.5 - SIZE / 2) / SIZE

    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        return z.tanh() * SIZE / 5

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str = "const") -> Tensor:
        return self._paint(latents, torch.eye(3))

    def moved(self, latents: Tensor, labels: Tensor | None, transform: Tensor) -> Tensor:
        return self._paint(latents, torch.eye(3) if self.stays else transform)

    def _paint(self, latents: Tensor, matrix: Tensor) -> Tensor:
        y, x = torch.meshgrid(self.places, self.places, indexing="ij")
        points = matrix.expand(len(latents), 3, 3).double() @ torch.stack([x, y, torch.ones_like(x)]).flatten(1).double()
        a, b, c = latents.double().unbind(1)
        waves = [2 * math.pi * (one[:, None] * points[:, 0] + other[:, None] * points[:, 1])
                 for one, other in ((a, b), (b, c), (c, a))]
        return torch.stack([wave.sin() for wave in waves], 1).unflatten(2, (SIZE, SIZE)).float()


def score(metric: str, generator: Generator, numbers: range = range(8), seed: int = 0) -> float:
    return equivariance_score(GeneratedSamples(generator, seed).motion_errors(torch.tensor(list(numbers)), metric)).value


@pytest.mark.parametrize(("metric", "least"), [("eq_t", 90), ("eq_t_frac", 30), ("eq_r", 50)])
def test_an_equivariant_generator_has_a_high_score_and_another_a_low_one(metric, least):
    high, low = score(metric, Waves()), score(metric, Waves(stays=True))
    assert high > least
    assert low < 12
    assert score(metric, Waves(), seed=1) != high


def test_rows_do_not_depend_on_the_batch():
    for metric in ("eq_t", "eq_t_frac", "eq_r"):
        whole, *parts = (GeneratedSamples(Waves(stays=True), 0).motion_errors(index, metric)
                         for index in (torch.arange(5), torch.arange(2), torch.arange(2, 5)))
        assert torch.cat(parts) == pytest.approx(whole, rel=1e-6)


def test_shifts_by_whole_pixels_are_exact():
    image = torch.rand(2, 3, 20, 20)
    moved = image.roll((-2, 5), (2, 3))
    rows = translation_errors(image, moved, torch.tensor([[5.0, -2.0]]).expand(2, -1))
    assert rows[:, 0].max() < 1e-9
    assert rows[:, 1].tolist() == [3 * 18 * 15] * 2
    moved[1, 0, 3, 9] += 0.5
    assert translation_errors(image, moved, torch.tensor([[5.0, -2.0]]).expand(2, -1))[1, 0].item() == pytest.approx(0.25)


def test_noise_that_stays_has_a_score_in_closed_form():
    """The squared difference of independent values of variance v has mean 2 v."""
    images = torch.randn(40, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    rows = translation_errors(images, images, torch.tensor([[3.0, 1.0]]).expand(40, -1))
    found = equivariance_score(rows)
    assert found.value == pytest.approx(10 * math.log10(4 / (2 * 0.09)), abs=4 * found.error)
    assert 0 < found.error < 0.05
    assert equivariance_score(rows.flip(0)).value == pytest.approx(found.value, rel=1e-12)


def test_one_score_of_all_valid_pixels():
    found = equivariance_score(torch.tensor([[4.0, 100.0], [0.0, 300.0]]))
    assert found.value == pytest.approx(10 * math.log10(4 / 0.01))
    assert found.error == pytest.approx(10 / math.log(10) * math.sqrt(3**2 + 3**2) / 400 / 0.01)
    assert equivariance_score(torch.tensor([[0.0, 9.0], [0.0, 9.0]])).value == pytest.approx(306, abs=0.1)
    with pytest.raises(InputError):
        equivariance_score(torch.tensor([[1.0, 9.0]]))


def test_rotations():
    images = torch.rand(1, 2, 32, 32)
    still, valid = rotate(images, torch.zeros(1))
    quarter, also_valid = rotate(images, torch.tensor([math.pi / 2]))
    inner = (..., slice(REACH, -REACH), slice(REACH, -REACH))
    assert valid[inner].all() == also_valid[inner].all() == True  # noqa: E712 - of tensors
    assert int(valid.sum()) == (32 - 2 * REACH + 1) ** 2
    assert (quarter - still.rot90(1, (2, 3)))[inner].abs().max() < 1e-3, "counter-clockwise"
    assert rotation_errors(images, images.rot90(1, (2, 3)), torch.tensor([math.pi / 2]))[0, 0] < 1e-3
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for frequency, gain in ((0.0, 1), (0.15, 1), (0.25, 1), (0.75, 0), (0.9, 0)):  # cycles per pixel across the diagonal
        wave = torch.cos(2 * math.pi * frequency * (x - y) / math.sqrt(2))[None, None]
        if math.sqrt(0.5) * frequency < 0.5:
            passed, _ = rotate(wave, torch.zeros(1))
            assert (passed - gain * wave)[inner].abs().max() < 0.02, frequency


def test_motion_is_where_content_comes_from():
    """Rotated first, then translated; a generator without an input to move says so."""
    matrix = motion(torch.tensor([[0.25, 0.0]]), torch.tensor([math.pi / 2]))[0]
    assert matrix @ torch.tensor([0.25, 0, 1]) == pytest.approx(torch.tensor([0.0, 0, 1]), abs=1e-6)
    # A point of content to the right of the middle is now above the new middle.
    assert matrix @ torch.tensor([0.25, -0.1, 1]) == pytest.approx(torch.tensor([0.1, 0, 1]), abs=1e-6)
    generator, index = Waves(), torch.arange(2)
    moved = generator.sample(0, "x", index, None, Sampling(translation=(4 / SIZE, 0)))
    assert moved[..., 4:] == pytest.approx(generator.sample(0, "x", index, None, Sampling())[..., :-4], abs=1e-4)
    with pytest.raises(InputError, match="stylegan3-t"):
        Generator.moved(generator, index, None, matrix)
