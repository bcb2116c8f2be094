"""Linear maps of images whose derivatives of every order are the map and its adjoint.

Nothing but the map itself is saved for the backward pass, and both directions compute without TF32.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from stylegan_dist.networks.layers import Arithmetic


class Linear(abc.ABC):
    """A map y = A x. Calling it is differentiable in x; what A depends on is a constant."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abc.abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, for which <y, A x> = <A^T y, x>."""

    def __call__(self, x: Tensor) -> Tensor:
        return _Apply.apply(x, self, False)


class _Apply(torch.autograd.Function):
    """A x, or A^T x if `transposed`. The derivative of each is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, transposed: bool) -> Tensor:
        ctx.constants = linear, transposed
        with Arithmetic(tf32=False):
            return linear.adjoint(x) if transposed else linear.forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        linear, transposed = ctx.constants
        return _Apply.apply(g, linear, not transposed), None, None
