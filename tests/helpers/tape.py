"""Watching every operation of training: a tape that stands in for a CUDA graph, and a device that nobody may wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a graph cannot hold: the host reads from the device or sends to it; ranks speak to each other.
FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "repeat_interleave.Tensor", "aten.equal",
             "c10d")
# On a CPU one_hot looks whether the labels are in range; on a GPU it does not.
ONLY_ON_CPUS = ("_local_scalar_dense",)


class Tape(TorchDispatchMode):
    """Records every operation, and does it again on the same memory, as a CUDA graph does: Python takes no part."""

    def __init__(self, forbidden: Sequence[str]) -> None:
        super().__init__()
        self.forbidden = forbidden
        self.operations: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        assert not any(name in str(function) for name in self.forbidden), f"{function} cannot be part of a graph"
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, tensors(result)))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for function, arguments, options, results in self.operations:
                for old, new in zip(results, tensors(function(*arguments, **options)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or in place
                        old.copy_(new)


def tensors(tree: object) -> list[Tensor]:
    return [x.detach() for x in tree_leaves(tree) if isinstance(x, Tensor)]


class TapeRecorder:
    """As with a CUDA graph, the results of recorded work are there only after a replay."""

    def __init__(self, forbidden: Sequence[str] = FORBIDDEN) -> None:
        self.forbidden = forbidden
        self.records = self.replays = 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def forget(self) -> None:
        pass

    def record(self, work: Callable) -> tuple[Callable[[], None], Any]:
        with Tape(self.forbidden) as tape:
            result = work()
        for x in tensors(result):
            if x.is_floating_point():
                x.fill_(torch.nan)
        self.records += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, result


class NobodyWaits(TorchDispatchMode):
    """Fails where the host would wait for a GPU. The meta device stands in for it: there nobody can read a number."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        options = options or {}
        result = function(*arguments, **options)
        touched = tree_leaves((arguments, options, result))
        # A number of the host is an argument of the kernel, and costs nothing, unless it is copied.
        moves = "copy" in str(function)
        devices = {x.device.type for x in touched if isinstance(x, Tensor) and (x.ndim or x.is_meta or moves)}
        if "meta" in devices:
            assert not any(name in str(function) for name in FORBIDDEN), f"{function} waits for the device"
            assert len(devices) == 1 or options.get("non_blocking"), f"{function} waits for {devices}"
        return result


class NothingIsSent(TorchFunctionMode):
    """Fails where numbers of Python's are sent to the meta device as a tensor, which is no operation there."""

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        result = function(*arguments, **(options or {}))
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            assert not result.is_meta, f"{function} waits for the device"
        return result
