"""DeepSpeed for one network. No other file touches what DeepSpeed does not document.

Its public interface neither holds the parameters of a whole loss, nor gives the part of each parameter that a rank
updates, nor leaves updates with non-finite gradients to us. Whether the private attributes are as they were is looked at
when a network is handed over, so that a new version is refused by name and does not train something else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylegan_dist.engine.choice import BUCKET, Zero
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.ranks import Ranks, part_of

# Private attributes of DeepSpeed's optimizer and of each parameter, by whether parameters are cut (stage 3).
OPTIMIZER = {
    True: ("averaged_gradients", "fp32_partitioned_groups_flat", "get_param_id", "grad_position"),
    False: ("single_partition_of_fp32_groups",),
}
OFFLOADING = ("norm_for_param_grads",)  # of an optimizer on the host
PARAMETER = {True: ("ds_active_sub_modules", "ds_tensor"), False: ("_hp_mapping",)}
_HELD = -1  # the number of no module


@dataclass
class Fragment:
    """Where this rank's part of a parameter is among the values that the optimizer works on."""

    flat: Tensor  # all parts of all parameters in a line, float32
    offset: int   # where this part begins in it
    start: int    # where this part begins in the flattened parameter
    length: int

    def of(self, line: Tensor) -> Tensor:
        """This part of a line like `flat`."""
        return line[self.offset:self.offset + self.length]


class DeepSpeedNetwork:
    """A module whose optimizer state, gradients or parameters DeepSpeed spreads over the ranks.

    Args:
        module: in float32.
        optimizer: of its parameters; DeepSpeed replaces these by lines of the rank's parts.
    Raises:
        InputError: DeepSpeed is not installed, or this version is another than this file knows.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, zero: Zero, ranks: Ranks):
        self._library = load_deepspeed(cpu=ranks.device.type == "cpu")
        self._zero, self._ranks = zero, ranks
        self._cut = zero.stage == 3
        if not dist.is_initialized():  # DeepSpeed wants a group even of one
            backend = "nccl" if ranks.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self._engine, *_ = self._library.initialize(
            model=module, optimizer=optimizer, dist_init_required=False, config=_settings(zero))
        self._optimizer = self._engine.optimizer
        expect(self._library.utils.groups, ("_WORLD_GROUP",))
        expect(self._optimizer, OPTIMIZER[self._cut] + OFFLOADING * zero.offload)
        for parameter in module.parameters():
            expect(parameter, PARAMETER[self._cut])

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed divides the sum over the ranks by their number.
        self._engine.backward(loss * self._ranks.world_size, scale_wrt_gas=False)

    def forward(self, last: bool, *arguments: Any) -> Tensor:
        """The module's forward, before a backward pass; gradients are summed over the ranks in the last one of a phase."""
        self._engine.set_gradient_accumulation_boundary(last)
        return self._engine(*arguments)

    def update(self) -> None:
        """The optimizer step."""
        if self._zero.offload:
            # DeepSpeed would skip an update with non-finite gradients. It judges by norms taken on the way to the host.
            self._optimizer.norm_for_param_grads = dict.fromkeys(self._optimizer.norm_for_param_grads, torch.zeros(()))
        self._engine.step()

    def gradients_before_update(self) -> Iterator[Tensor]:
        """The summed gradients of this rank's parts where DeepSpeed skips the update if one of them is not finite."""
        if self._cut and not self._zero.offload:
            for gradients in self._optimizer.averaged_gradients.values():
                yield from gradients

    def gradients_in_update(self) -> list[Tensor]:
        """The gradients of all calls of the optimizer in an update that has begun, where that takes several calls.

        None where `gradients_before_update` has given them.
        """
        if not (self._cut and self._zero.offload):
            return []
        return [line.grad for line in self._optimizer.fp32_partitioned_groups_flat]

    @contextlib.contextmanager
    def whole(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Keep cut parameters fetched: DeepSpeed fetches them for a first backward pass, but not for a second one."""
        held: list[Any] = list(parameters)
        with self._library.zero.GatheredParameters(held):
            for parameter in held:
                parameter.ds_active_sub_modules.add(_HELD)  # nobody gives back what is in use
            try:
                yield
            finally:
                for parameter in held:
                    parameter.ds_active_sub_modules.discard(_HELD)

    def cut_part(self, parameter: Any) -> Tensor:
        """This rank's part of a cut parameter, flat, perhaps with padding after it."""
        return parameter.ds_tensor

    def fragment(self, parameter: Any, shape: torch.Size) -> Fragment:
        """This rank's part of a parameter of that whole shape."""
        if self._cut:
            group, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
            return Fragment(self._optimizer.fp32_partitioned_groups_flat[group], offset, *part_of(shape.numel(), self._ranks))
        lines, mapping = self._optimizer.single_partition_of_fp32_groups, parameter._hp_mapping
        if mapping is None:  # entirely with other ranks
            return Fragment(lines[0], 0, 0, 0)
        part = mapping.lp_fragment_address
        return Fragment(lines[mapping.param_group_index], mapping.hp_fragment_address.start, part.start, part.numel)

    def close(self) -> None:
        self._engine.destroy()
        self._library.utils.groups._WORLD_GROUP = None  # else it keeps the process group alive


def expect(thing: object, names: Iterable[str]) -> None:
    """Raise InputError where something of DeepSpeed lacks an attribute that this file uses."""
    for name in names:
        if not hasattr(thing, name):
            from deepspeed import __version__
            raise InputError(f"DeepSpeed {__version__} is not a version that this program knows: {type(thing).__name__} has no "
                             f"{name}; pip install 'stylegan-dist[deepspeed]' installs one that it knows")


def load_deepspeed(cpu: bool) -> Any:
    """The library, quiet, and without building any of its own kernels.

    To be loaded before there is a process group: some of its functions take the group of that moment as default
    arguments, which keeps the group's threads alive into the interpreter's end, where these may abort the process.

    Args:
        cpu: whether the run is on the CPU though there may be a GPU.
    Raises:
        InputError: it is not there or not of a version that this code knows.
    """
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise LocalInputError(f"this accelerate configuration needs DeepSpeed, which cannot be imported ({error}): "
                              "pip install 'stylegan-dist[deepspeed]'") from None
    # It still uses older names of collectives, which torch announces each time.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Compiled when its communication starts, needs a compiler, and only speeds up inference on CPUs.
    expect(deepspeed.ops, ("__compatible_ops__",))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _settings(zero: Zero) -> dict:
    """DeepSpeed's configuration: everything that it would do beyond spreading is off."""
    spreading: dict[str, Any] = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET, **zero.buffers,
                                 "stage": zero.stage}
    if zero.offload:
        spreading["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    elif zero.stage < 3:
        spreading["compute_grad_norm"] = False  # we do, and do not skip updates
    return {
        "train_micro_batch_size_per_gpu": 1,  # is only used in its reports
        "gradient_accumulation_steps": 2,     # of more than one, so that it has buffers to accumulate; we set the boundary
        "gradient_clipping": 0.0,             # its default, 1.0, would change every update
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": spreading,
        "steps_per_print": 1 << 60,
    }
