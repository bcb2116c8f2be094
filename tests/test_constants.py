"""What is kept is an ordinary tensor, whoever asked for it first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stylegan_dist.constants import constant


@pytest.fixture
def ones():
    """The function, and how often it was called."""
    calls = []

    @constant
    def ones(size: int, device: torch.device) -> Tensor:
        calls.append(size)
        return torch.ones(size, device=device)

    return ones, calls


CPU, META = torch.device("cpu"), torch.device("meta")


def test_made_once_for_each_device_and_value(ones):
    make, calls = ones
    assert make(3, CPU) is make(3, CPU)
    assert len(make(2, CPU)) == 2
    assert make(3, META).is_meta
    assert calls == [3, 2, 3]


def test_fake_ones_are_not_kept_and_do_not_meet_real_ones(ones):
    make, _ = ones
    for _ in range(2):  # before there is a real one, and after
        with FakeTensorMode() as mode:
            assert type(make(3, CPU)) is type(mode.from_tensor(torch.ones(3)))
        assert type(make(3, CPU)) is Tensor


def test_one_of_inference_mode_can_be_differentiated_through(ones):
    make, calls = ones
    with torch.inference_mode():
        make(3, CPU)
    x = torch.ones(3, requires_grad=True)
    (x * make(3, CPU)).sum().backward()
    assert x.grad is not None
    assert calls == [3]


def test_exported_first(ones):
    make, _ = ones

    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * make(3, CPU)

    program = torch.export.export(Network(), (torch.ones(3),))
    assert torch.equal(program.module()(torch.full((3,), 2.0)), torch.full((3,), 2.0))
    assert type(make(3, CPU)) is Tensor
