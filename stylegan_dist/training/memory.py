"""An estimate of the memory that training takes on each rank, and of the micro-batch that fits.

The phases of one micro-batch run on the meta device, where tensors have shapes and no values. Every storage that is
made or freed is counted. Activations, double backward passes and recomputation are therefore executed, not modelled.
The bytes that an engine holds of each network are computed (`Resident`).
"""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.engine.choice import BUCKET, DATA_PARALLEL, NETWORKS, Choice, Zero
from stylegan_dist.objective.phases import MicroBatch, Phase
from stylegan_dist.ops import native
from stylegan_dist.training.rules import Resolved, micro_batch_sizes
from stylegan_dist.training.state import TrainState

# What a process needs beside its tensors: bytes for libraries and work space, and the factor by which gaps between
# tensors make it larger. The C library's heap leaves gaps of up to half of the tensors if these are below 32 MiB.
_AROUND = {"cuda": (2**28, 1.1), "cpu": (150 * 2**20, 1.6)}
_FLOAT = 4  # bytes
RECOMPUTE_MOST = 8  # run.recompute of all blocks that can
_LIVE = 1_000_000_000  # DeepSpeed's own stage3_max_live_parameters, in numbers
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@dataclass(frozen=True)
class Resident:
    """Bytes of one network that a rank holds during the whole run.

    Attributes:
        parameters: with those that stay fetched under ZeRO-3, and with an engine's own copy.
        optimizer: state of the optimizer.
        gradients: summed gradients, from one step of this network to the next.
        buffers: of the engine, for communication.
        update: needed for a moment between the last backward pass and the end of the optimizer step.
        streamed: whether gradients leave their parameters while the backward pass still runs.
    """

    parameters: float
    optimizer: float
    gradients: float
    buffers: float = 0.0
    update: float = 0.0
    streamed: bool = False


def resident_in_data_parallel(parameters: int, optimizer: int, step: int, buckets: bool) -> Resident:
    """Every rank holds everything.

    Args:
        parameters, optimizer: bytes of the parameters and of the optimizer's state.
        step: bytes that the optimizer needs for a moment.
        buckets: whether DDP sums the gradients. It holds a copy of them all the time.
    """
    # The gradients of the parameters live on while their flat sum is used; the mask of finite values has a byte a number.
    update = parameters + max(parameters // _FLOAT, step)
    return Resident(parameters, optimizer, parameters, parameters if buckets else 0, update)


def resident_in_zero(parameters: int, optimizer: int, step: int, zero: Zero, ranks: int, host: bool) -> Resident:
    """DeepSpeed (Rajbhandari et al. 2020, section 5), in float32.

    Args:
        ranks: over which the network is distributed.
        host: whether offloaded state counts, because the networks themselves are in the memory of the host.
    """
    part = parameters / ranks
    on_device = host or not zero.offload
    copies = part * on_device  # that the optimizer works on
    buffers = float(_FLOAT * zero.buffers.get("reduce_bucket_size", BUCKET))
    if zero.buffers.get("overlap_comm", zero.stage == 3) and zero.stage < 3:
        buffers *= 2
    if not zero.buffers.get("contiguous_gradients", True):
        buffers = 0.0
    if zero.stage == 3:
        fetched = min(parameters, _FLOAT * zero.buffers.get("stage3_max_live_parameters", _LIVE))
        copies += fetched
    return Resident(
        parameters=copies + (part if zero.stage == 3 else parameters),
        optimizer=optimizer / ranks * on_device,
        gradients=parameters if zero.stage == 1 else part * on_device,
        buffers=buffers,
        update=(part + step / ranks) * on_device,
        streamed=zero.stage > 1,
    )


@dataclass(frozen=True)
class Estimate:
    """Peak memory of one rank, in bytes, without what Python, PyTorch and the driver take for themselves.

    Attributes:
        resident: what -> bytes that are there all the time.
        phases: phase -> bytes that it needs on top at its worst moment.
    """

    resident: Mapping[str, float]
    phases: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The phase in which the peak occurs."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> float:
        return sum(self.resident.values()) + self.phases[self.worst]

    def lines(self) -> list[str]:
        """One for each contribution in GiB, and the peak."""
        rows = [*self.resident.items(), *((f"{name} on top, at its worst moment", size) for name, size in self.phases.items()),
                (f"peak of tensors on each rank, in {self.worst}", self.peak)]
        return [f"{size / 2**30:8.3f} GiB  {what}" for what, size in rows]


def estimate_memory(resolved: Resolved, index: DatasetIndex, world_size: int = 1, device_type: str = "cpu",
                    choice: Choice = DATA_PARALLEL) -> Estimate:
    """The memory of training with this configuration on each rank. Takes a second or two, and little memory.

    Args:
        device_type: "cuda" or "cpu".
        choice: how each network is distributed over the ranks.
    """
    config = resolved.config
    tracker, meta = StorageTracker(), torch.device("meta")
    with tracker:
        state = planning_state(resolved, index)
    sizes = {name: _bytes(network.parameters()) for name, network in state.networks.items()}
    buffers = sum(_bytes(network.buffers()) for network in state.networks.values())
    average: float = _bytes(state.ema.network.parameters()) + _bytes(state.ema.network.buffers())
    rest = tracker.alive - sum(sizes.values()) - buffers - average

    if config.ema.placement != "device":
        average = average / world_size if config.ema.placement == "sharded" or device_type == "cpu" else 0
    buckets = world_size > 1 and (config.run.reduction == "buckets" or
                                  (config.run.reduction == "auto" and device_type == "cuda"))
    resident = {}
    for name, network in state.networks.items():
        optimizer, step = _measure_optimizer(tracker, network, state.optimizers[name], device_type)
        if getattr(config.optim, name).l1:
            step = max(step, sizes[name])
        zero = choice[name]
        resident[name] = (resident_in_zero(sizes[name], optimizer, step, zero, world_size, device_type == "cpu") if zero
                      else resident_in_data_parallel(sizes[name], optimizer, step, buckets))

    images = config.run.batch // world_size
    pixels = index.channels * index.resolution**2 * (2 if config.augment.held_out else 1)
    contributions: dict[str, float] = {"averaged generator": average, "real images of a step": images * pixels * _FLOAT,
                                       "buffers, noise addresses": buffers + rest}
    for name, k in resident.items():
        contributions |= {f"{NETWORKS[name]}: parameters": k.parameters, f"{NETWORKS[name]}: optimizer state": k.optimizer,
                          f"{NETWORKS[name]}: gradients": k.gradients}
        if k.buffers:
            contributions[f"{NETWORKS[name]}: buffers for communication"] = k.buffers

    size = config.run.batch_gpu
    part = MicroBatch(torch.empty(size, index.channels, index.resolution, index.resolution, device=meta),
                      torch.empty(size, dtype=torch.int64, device=meta) if resolved.conditional else None,
                      torch.empty(size, dtype=torch.int64, device=meta))
    if config.augment.held_out:
        part = replace(part, held_out=part.images, held_out_labels=part.labels)
    phases: dict[str, float] = {}
    for phase in state.phases:
        k = resident[phase.network]
        with native.using(config.ops.path, planned=device_type):
            backward: float = _measure_phase(tracker, state, phase, part, accumulated=images > size, streamed=k.streamed)
        if not k.streamed:
            backward -= k.gradients
        phases[phase.name] = max(backward, k.update, 0.0)
    return Estimate(contributions, phases)


def planning_state(resolved: Resolved, index: DatasetIndex) -> TrainState:
    """Networks, optimizers and phases without values, every network whole."""
    resolved = replace(resolved, config=copy.deepcopy(resolved.config))
    resolved.config.ema.placement = "device"  # what has no values cannot be copied to the host
    return TrainState(resolved, index, torch.device("meta"))


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside and are still alive.

    Attributes:
        alive: bytes now.
        peak: the most that there was; may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        result = function(*arguments, **(options or {}))
        scratch = 0
        if function in _CONVOLUTIONS:
            inputs = [x for x in arguments[:3] if isinstance(x, Tensor)]
            layout = _layout_of(inputs[:-1] if function is _CONVOLUTIONS[1] else inputs)
            if layout == torch.channels_last:  # which kernels keep, and the meta device forgets
                result = _with_layout(result, layout)
            # Kernels copy what lies in memory in another way; results and copies exist together.
            scratch = _bytes(x for x in inputs if not x.is_contiguous(memory_format=layout))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_meta:
                storage = x.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.alive + scratch)
        return result

    def _freed(self, size: int) -> None:
        self.alive -= size


def _layout_of(tensors: list[Tensor]) -> torch.memory_format:
    """The memory format that a convolution of these works in: channels_last if one of them has it and no other."""
    last = any(x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in tensors)
    return torch.channels_last if last else torch.contiguous_format


def _with_layout(result: Any, layout: torch.memory_format) -> Any:
    if isinstance(result, Tensor):
        return torch.empty_like(result, memory_format=layout) if result.ndim == 4 else result
    return tuple(_with_layout(x, layout) for x in result) if isinstance(result, tuple) else result


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _measure_optimizer(tracker: StorageTracker, network: nn.Module, optimizer: torch.optim.Optimizer,
                       device_type: str) -> tuple[int, int]:
    """Bytes of the optimizer's state, and what a step needs for a moment."""
    for group in optimizer.param_groups:
        if "foreach" in group:  # what it chooses by itself, but not for the meta device
            group["foreach"] = device_type == "cuda"
    network.requires_grad_(True)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    before = tracker.alive
    try:
        with tracker:
            optimizer.step()
            state = tracker.alive - before
            tracker.peak = tracker.alive
            optimizer.step()
        return state, tracker.peak - tracker.alive
    except (RuntimeError, TypeError):  # a few optimizers read numbers from the device: assume two moments
        return 2 * _bytes(network.parameters()), 0
    finally:
        optimizer.zero_grad(set_to_none=True)


def _measure_phase(tracker: StorageTracker, state: TrainState, phase: Phase, part: MicroBatch, accumulated: bool,
                   streamed: bool) -> int:
    """The most that one micro-batch needs, gradients of the network included unless `streamed`.

    Args:
        accumulated: whether gradients of another micro-batch are there already.
        streamed: whether gradients are taken away as they are made.
    """
    for name, other in state.networks.items():
        other.requires_grad_(name == phase.network)
    network = state.networks[phase.network]
    hooks = []
    before = tracker.alive
    with tracker:
        for parameter in network.parameters():
            if streamed:
                hooks.append(parameter.register_post_accumulate_grad_hook(_forget_gradient))
            elif accumulated:
                parameter.grad = torch.empty_like(parameter)
        tracker.peak = tracker.alive
        for loss in phase.losses:
            loss(part).share.backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    return tracker.peak - before


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed. PyTorch has a type for this on GPUs only, and oneDNN gives no reason."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory",
                                           "could not create a primitive")
    )


def propose_batch_gpu(resolved: Resolved, index: DatasetIndex, world_size: int, device_type: str, free: int,
                      choice: Choice = DATA_PARALLEL) -> str:
    """What to do about a training that did not fit into memory: a sentence.

    Args:
        resolved: the configuration that did not fit.
        device_type: "cuda" or "cpu".
        free: bytes that this rank had before it built anything.
    """
    now = resolved.config.run
    fixed, factor = _AROUND[device_type]

    def needed(recompute: int, size: int) -> float:
        changed = replace(resolved, config=copy.deepcopy(resolved.config))
        changed.config.run.batch_gpu, changed.config.run.recompute = size, recompute
        return fixed + factor * estimate_memory(changed, index, world_size, device_type, choice).peak

    least = float("inf")
    for recompute in (now.recompute,) if now.recompute else (0, RECOMPUTE_MOST):
        sizes = [size for size in micro_batch_sizes(resolved.config, world_size)
                 if size < now.batch_gpu or (size == now.batch_gpu and recompute != now.recompute)]
        if not sizes:
            continue
        bytes_of = cache(partial(needed, recompute))  # an estimate takes a second or two
        # The largest by itself: more images need more memory, except that a rank's whole batch adds up no gradients.
        fitting = sizes if bytes_of(sizes[-1]) <= free else sizes[:bisect_right(sizes[:-1], float(free), key=bytes_of)]
        if fitting:
            also = f" and run.recompute={recompute}" if recompute != now.recompute else ""
            return (f"set run.batch_gpu={fitting[-1]}{also}: that needs at most about {_gib(bytes_of(fitting[-1]))} of the "
                    f"{_gib(free)} that were free, and does not change the result")
        least = min(least, bytes_of(sizes[0]), bytes_of(sizes[-1]))
    knob = "channel_base" if hasattr(resolved.config.generator, "channel_base") else "width"
    remedies = f"set smaller generator.{knob} and discriminator.{knob}, which is another network"
    if world_size > 1 and not choice.zero:
        remedies = f"train with ZeRO, for example launch/accelerate/zero2.yaml, or {remedies}"
    amount = f" (at least {_gib(least)})" if least < float("inf") else ""
    return (f"no smaller run.batch_gpu fits into the {_gib(free)} that were free, not even with "
            f"run.recompute={RECOMPUTE_MOST}{amount}: {remedies}")


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
