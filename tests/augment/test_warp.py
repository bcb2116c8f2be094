"""The resampling of geometric transforms, against pixel by pixel sums in float64."""

from __future__ import annotations

import augment_reference as reference
import pytest
import torch
from torch import Tensor

from stylegan_dist.augment.warp import SYM6, Warp


def some_inverse(seed: int, size: int) -> Tensor:
    """Anything affine, also far beyond the borders."""
    inverse = torch.eye(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    inverse[:2, :2] += 0.6 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
    inverse[:2, 2] = size * torch.randn(2, generator=generator, dtype=torch.float64)
    return inverse


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [4, 8])
def test_equals_the_reference(size: int):
    x, inverse = images(2, 2, size, size), torch.stack([some_inverse(seed, size) for seed in (0, 1)])
    expected = torch.stack([reference.warp(image, one.numpy()) for image, one in zip(x, inverse, strict=True)])
    torch.testing.assert_close(Warp(inverse)(x), expected, rtol=0, atol=1e-10)


def test_the_identity_and_whole_pixels_are_exact():
    x = images(1, 3, 16, 16).float()
    inverse = torch.eye(3)[None].clone()
    torch.testing.assert_close(Warp(inverse)(x), x, rtol=0, atol=1e-6)
    inverse[0, :2, 2] = torch.tensor([3.0, -2.0])  # the output at (x, y) is the input at (x + 3, y - 2)
    moved = Warp(inverse)(x)
    torch.testing.assert_close(moved[..., 2:, :-3], x[..., :-2, 3:], rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[..., 2:, -3:], x[..., :-2, 12:15].flip(-1), rtol=0, atol=1e-6)  # reflected


def test_sym6_is_orthonormal():
    line = torch.tensor(SYM6, dtype=torch.float64)
    for shift in range(0, 12, 2):
        assert float((line[shift:] * line[:12 - shift]).sum()) == pytest.approx(float(shift == 0), abs=1e-10)


def test_a_quarter_turn_of_a_smooth_image():
    """Up to the asymmetry of the filter, whose centre is 0.05 pixels off: twice that, where the slope is 0.2 a pixel."""
    line = torch.linspace(0, 3, 32, dtype=torch.float64)
    x = (line.sin()[:, None] + (2 * line).cos()[None])[None, None]
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)[None]
    turned = Warp(quarter)(x)
    torch.testing.assert_close(turned[..., 4:-4, 4:-4], x.rot90(1, (2, 3))[..., 4:-4, 4:-4], rtol=0, atol=0.02)


def test_the_adjoint_and_both_derivatives():
    inverse = torch.stack([some_inverse(seed, 5) for seed in (2, 3)])
    warp, x, y = Warp(inverse), images(2, 2, 5, 5).requires_grad_(), images(2, 2, 5, 5)
    assert float((y * warp(x.detach())).sum()) == pytest.approx(float((x.detach() * warp.adjoint(y)).sum()), rel=1e-10)
    assert torch.autograd.gradcheck(warp, (x,))
    assert torch.autograd.gradgradcheck(warp, (x,))


def test_adjoint_of_gradients_of_any_size():
    """Sums in whole numbers: relative to the largest value of the image, and not finite if a value is not."""
    warp = Warp(torch.stack([some_inverse(seed, 8) for seed in range(4)]).float())
    g = images(4, 1, 8, 8).float()
    g[1] *= 1e30
    g[2] *= 1e-30
    g[3, 0, 2, 2] = torch.nan
    found = warp.adjoint(g)
    exact = Warp(warp.inverse.double()).adjoint(g.double())
    for i in range(3):
        torch.testing.assert_close(found[i].double(), exact[i], rtol=1e-4, atol=1e-5 * float(g[i].abs().max()))
    assert not found[3].isfinite().any()
    assert Warp(warp.inverse).adjoint(torch.zeros(4, 1, 8, 8)).count_nonzero() == 0
