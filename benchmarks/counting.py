"""What a training step must at least cost: its kernels, their FLOPs and bytes, and the time below which no device can do them.

The phases run as they are, on the meta device, where tensors have no values, while every operation is written down. Nothing is
modelled but the cost of one operation: bytes are those of the distinct elements of its inputs, read once, and of its outputs,
written once; FLOPs are those of convolutions and matrix products, two a multiplication. An operator of this library is one
operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ops import native
from stylegan_dist.training.memory import _CONVOLUTIONS, _layout_of, _with_layout, planning_state
from stylegan_dist.training.rules import Resolved
from stylegan_dist.training.step import run_phase

KINDS = ("convolution", "product", "native", "draws", "other")
LOW = (torch.bfloat16, torch.float16)
_OVERWRITES = {"copy_", "fill_", "zero_"}                        # their target is not read
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh"}
_ATTENTION = {  # kernel -> place of the queries, and products: the backward pass computes the weights once more
    "_scaled_dot_product_flash_attention_for_cpu": (0, 2), "_scaled_dot_product_flash_attention_for_cpu_backward": (1, 5)}
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


@dataclass(frozen=True)
class Kernel:
    """One operation on a device.

    Attributes:
        kind: of KINDS; "draws" compute with integers or in float64, as random draws do and hardly anything else.
        flops: of convolutions and matrix products, else 0.
        low: whether these are of bfloat16 or float16.
        bytes: that must be read and written.
        shapes: of the tensors that go in.
    """

    name: str
    kind: str
    flops: float
    low: bool
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rates:
    """What a device reaches: FLOP/s in bfloat16 or float16 and in float32, bytes/s of its memory."""

    low: float
    full: float
    bandwidth: float

    def seconds(self, kernels: Iterable[Kernel]) -> float:
        """Every kernel at the rate of what it has more of, one after the other."""
        return sum(max(k.flops / (self.low if k.low else self.full), k.bytes / self.bandwidth) for k in kernels)


@dataclass(frozen=True)
class CountedPhase:
    name: str
    interval: int
    kernels: list[Kernel]

    def flops(self) -> float:
        return sum(k.flops for k in self.kernels)

    def bytes(self) -> int:
        return sum(k.bytes for k in self.kernels)


class Counter(TorchDispatchMode):
    """Writes down all operations inside as `kernels`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        result = function(*arguments, **(options or {}))
        if function in _CONVOLUTIONS and _layout_of(_tensors(arguments[:2])) == torch.channels_last:
            result = _with_layout(result, torch.channels_last)  # which kernels keep, and the meta device forgets
        name = function.overloadpacket.__name__
        inputs = _tensors((arguments, options))
        outputs = _tensors(result)
        if name.endswith("_") and not outputs:  # lists that are changed in place
            outputs = _tensors(arguments[0])
        elif name not in _FREE and not name.endswith("_") and _is_view(inputs, outputs):
            return result
        if name in _FREE or not outputs:
            return result
        if name == "convolution_backward":
            self._gradients(arguments, result)
            return result
        flops, kind = 0.0, "other"
        if name == "convolution":
            x, weight, transposed, groups = arguments[0], arguments[1], arguments[6], arguments[8]
            flops, kind = _convolution(x if transposed else result, weight, groups), "convolution"
        elif name in _PRODUCTS:
            a, b = (arguments[i] for i in _PRODUCTS[name])
            flops, kind = 2.0 * a.numel() * b.shape[-1], "product"
        elif name in _ATTENTION:
            place, products = _ATTENTION[name]
            queries = arguments[place]
            flops, kind = 2.0 * products * queries.numel() * arguments[place + 1].shape[2], "product"
        elif function.namespace == "stylegan_dist":
            kind = "native"
        elif any(not t.is_floating_point() or t.dtype == torch.float64 for t in outputs):
            kind = "draws"
        read = inputs[1:] if name in _OVERWRITES else inputs
        self._add(name, kind, flops, read, outputs)
        return result

    def _gradients(self, arguments: tuple, result: Any) -> None:
        """Those of input and weights are kernels of their own; so is that of the bias."""
        g, x, weight, transposed, groups, wanted = (arguments[i] for i in (0, 1, 2, 7, 9, 10))
        flops = _convolution(x if transposed else g, weight, groups)
        for i, (read, cost) in enumerate((((g, weight), flops), ((g, x), flops), ((g,), 0.0))):
            if wanted[i]:
                self._add("convolution_backward", "convolution", cost, list(read), [result[i]])

    def _add(self, name: str, kind: str, flops: float, read: list[Tensor], written: list[Tensor]) -> None:
        distinct = {(id(t.untyped_storage()), t.storage_offset(), t.shape, t.stride()): t for t in read}
        size = sum(map(_bytes, distinct.values())) + sum(map(_bytes, written))
        low = any(t.dtype in LOW for t in read)
        self.kernels.append(Kernel(name, kind, flops, low, size, tuple(tuple(t.shape) for t in read)))


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _bytes(t: Tensor) -> int:
    """Of its distinct elements."""
    return math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride) * t.element_size()


def _is_view(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    known = {id(t.untyped_storage()) for t in inputs}
    return bool(outputs) and all(id(t.untyped_storage()) in known for t in outputs)


def _convolution(small: Tensor, weight: Tensor, groups: int) -> float:
    """FLOPs, the same for a convolution, its transpose and both gradients: each pixel of `small` meets all weights.

    A filter of each channel for itself is no work for matrix units: it counts by its bytes.
    """
    if groups > 1 and weight.shape[1] == 1:
        return 0.0
    return 2.0 * small.shape[0] * small.shape[2] * small.shape[3] * weight.numel()


def empty_index(resolution: int, channels: int = 3, classes: int = 0) -> DatasetIndex:
    """A data set of which only shapes matter."""
    names = [str(i) for i in range(classes)] or None
    shard = Shard("none.tar", 1, 0, "", "none.npy", "")
    return DatasetIndex(resolution, channels, "png", names, [1] * classes if classes else None, [shard])


def count_step(resolved: Resolved, index: DatasetIndex, path: str) -> list[CountedPhase]:
    """The phases of one step with all images of the batch in one process, and the averaging as one more.

    Args:
        path: "reference" or "fused", of the operators.
    Raises: InputError: "fused" cannot be had.
    """
    size, pixels, meta = resolved.config.run.batch, index.resolution, torch.device("meta")
    with native.using(path, planned="cuda"):
        state = planning_state(resolved, index)
        part = MicroBatch(torch.empty(size, index.channels, pixels, pixels, device=meta),
                          torch.empty(size, dtype=torch.int64, device=meta) if resolved.conditional else None,
                          torch.empty(size, dtype=torch.int64, device=meta))
        result = []
        for phase in state.phases:
            for optimizer in state.optimizers.values():
                for group in optimizer.param_groups:
                    if "foreach" in group:  # as on a GPU
                        group["foreach"] = True
            run_phase(state, phase, [part])  # makes the optimizer's state
            with Counter() as counter:
                run_phase(state, phase, [part])
            result.append(CountedPhase(phase.name, phase.interval, counter.kernels))
        with Counter() as counter:
            state.ema.update(state.generator, 0, size)
        result.append(CountedPhase("average", 1, counter.kernels))
    return result


def forward_flops(resolved: Resolved, index: DatasetIndex) -> dict[str, float]:
    """FLOPs of one forward pass of each network, "g" and "d", for the images of a batch."""
    size = resolved.config.run.batch
    meta = torch.device("meta")
    state = planning_state(resolved, index)
    label = torch.empty(size, dtype=torch.int64, device=meta) if resolved.conditional else None
    with torch.no_grad():
        with Counter() as g:
            images = state.generator(torch.empty(size, state.generator.z_dim, device=meta), label)
        with Counter() as d:
            state.discriminator(images, label)
    return {name: sum(k.flops for k in counter.kernels) for name, counter in (("g", g), ("d", d))}
