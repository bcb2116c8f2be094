"""Tensors of constant values, made once in a process: making one on a GPU waits for the GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def constant(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`functools.cache` for a function whose result is a tensor on a device that is one of its arguments.

    Tensors are fake ones while networks are traced, exported or planned. Fake tensors are not cached, because they cannot be
    combined with real ones later. A tensor that is made in inference mode can be differentiated through like any other.
    """
    made: dict[tuple, Tensor] = {}

    @functools.wraps(make)
    def get(*arguments: P.args, **named: P.kwargs) -> Tensor:
        assert not named, "the arguments in their order are the key"
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:  # else a real one meets fake ones
            return make(*arguments, **named)
        value = made.get(arguments)
        if value is None:
            with torch.inference_mode(False):
                value = made[arguments] = make(*arguments, **named)
        return value

    return get
