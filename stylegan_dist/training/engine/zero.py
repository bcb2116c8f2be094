"""DeepSpeed ZeRO: optimizer state, gradients and parameters of one network spread over the ranks.

Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models". One DeepSpeed
engine a network, in float32, without any of DeepSpeed's own precision, clipping or checkpoints: with that it
computes what data parallel training computes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.training.engine.choice import BUCKET, Zero
from stylegan_dist.training.engine.learner import (
    Job,
    Learner,
    LossInForward,
    PhaseResult,
    Sharded,
    Sums,
    assemble,
    part_of,
    scrub,
)
from stylegan_dist.training.engine.ranks import COMMUNICATION, Ranks, lost_ranks_reported

# Optimizers that work on each number alone, so that they do not notice how parameters are cut; each is tested.
ELEMENTWISE = ("Adam", "AdamW", "SGD", "RMSprop", "Adadelta")


@dataclass
class _Piece:
    """Where this rank's part of a parameter is among the values that the optimizer works on."""

    flat: Tensor  # all parts of all parameters in a line, float32
    offset: int   # where this part begins in it
    start: int    # where this part begins in the flattened parameter
    length: int


class ZeroLearner(Learner):
    """A network under DeepSpeed.

    Raises:
        InputError: DeepSpeed is not installed, or the optimizer is not proven equal.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, zero: Zero, timeout: float):
        super().__init__(network, optimizer, ranks)
        deepspeed = load_deepspeed(cpu=ranks.device.type == "cpu")
        if type(optimizer).__name__ not in ELEMENTWISE:
            raise InputError(f"torch.optim.{type(optimizer).__name__} is not proven equal under DeepSpeed: use one of "
                             f"{', '.join(ELEMENTWISE)}, or a data parallel configuration such as launch/accelerate/8gpu.yaml")
        self.zero = zero
        self._gathered = deepspeed.zero.GatheredParameters
        self._l1 = 0.0
        self._norm2 = self._nonfinite = torch.zeros((), device=ranks.device)
        optimizer.register_step_pre_hook(self._before_update)
        if not dist.is_initialized():  # DeepSpeed wants a group even of one
            backend = "nccl" if ranks.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        network.requires_grad_(True)  # what is frozen now would never be summed
        self._module = LossInForward(network)
        self._engine, *_ = deepspeed.initialize(
            model=self._module, optimizer=optimizer, dist_init_required=False, config=_settings(zero),
        )
        self._zero = self._engine.optimizer
        _bound_waiting(timeout)

    @torch.no_grad()
    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool) -> PhaseResult:
        self._l1 = l1
        self._norm2 = self._nonfinite = torch.zeros((), device=self.ranks.device)
        hold = second_order and self.zero.stage == 3
        self._module.sums = Sums()
        with lost_ranks_reported(COMMUNICATION):
            for number, job in enumerate(jobs):
                self._engine.set_gradient_accumulation_boundary(number == len(jobs) - 1)
                with torch.enable_grad(), self._held() if hold else contextlib.nullcontext():
                    # A spread parameter that nobody has fetched cannot be touched; phases of first order use all.
                    share = self._engine(job, hold or self.zero.stage < 3)
                    # DeepSpeed divides the sum over the ranks by their number.
                    self._engine.backward(share * self.ranks.world_size, scale_wrt_gas=False)
            self._make_acceptable()
            self._engine.step()
        sums = self._module.sums
        sums.add(counts=counts)
        # The norm and the count are of this rank's part, too.
        line = self.ranks.sum(torch.cat([*sums.flat(), self._norm2.float().view(1), self._nonfinite.float().view(1)]))
        return sums.replaced(line[:-2]).result(nonfinite=line[-1], gradient_norm=line[-2].sqrt())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep all parameters fetched: DeepSpeed fetches them for a first backward pass, but not for a second one."""
        parameters: list[Any] = list(self.network.parameters())
        with self._gathered(parameters):
            for parameter in parameters:
                parameter.ds_active_sub_modules.add(-1)  # no module's number, so nobody gives it back
            try:
                yield
            finally:
                for parameter in parameters:
                    parameter.ds_active_sub_modules.discard(-1)

    def _make_acceptable(self) -> None:
        """DeepSpeed would skip an update with non-finite gradients; every engine replaces them instead."""
        if self.zero.offload:
            # It judges by these norms, taken on the way to the host. The values are scrubbed before the update.
            self._zero.norm_for_param_grads = {key: torch.zeros(()) for key in self._zero.norm_for_param_grads}
        elif self.zero.stage == 3:
            for gradients in self._zero.averaged_gradients.values():
                for gradient in gradients:
                    self._nonfinite = self._nonfinite + scrub(gradient)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Called with the summed gradients of this rank's part."""
        for group in optimizer.param_groups:
            for values in group["params"]:
                gradient = values.grad
                self._nonfinite = self._nonfinite + scrub(gradient).to(self.ranks.device)
                self._norm2 = self._norm2 + gradient.square().sum().to(self.ranks.device)
                if self._l1:
                    gradient.add_(values.sign(), alpha=self._l1)

    def parameters(self) -> dict[str, Tensor | Sharded]:
        if self.zero.stage < 3:
            return super().parameters()
        return {name: self._sharded(name, part, start) for name, part, start in self.local()}

    def optimizer_state(self) -> dict[str, Tensor | Sharded]:
        result: dict[str, Tensor | Sharded] = {}
        pieces = dict(self._pieces())
        for name in self.shapes:
            piece = pieces[name]
            for key, value in self.optimizer.state[piece.flat].items() if piece.flat in self.optimizer.state else ():
                if value is None:
                    continue
                value = torch.as_tensor(value)
                if value.shape == piece.flat.shape:
                    part = value[piece.offset:piece.offset + piece.length]
                    result[f"{name}.{key}"] = self._sharded(name, part, piece.start)
                else:  # one for all, such as the number of steps
                    result[f"{name}.{key}"] = value.clone()
        return result

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        modules: dict[str, Any] = dict(self.network.named_parameters())
        pieces = dict(self._pieces())
        for name, parameter in modules.items():
            value, piece = parameters[name].flatten(), pieces[name]
            part = value[piece.start:piece.start + piece.length]
            piece.flat[piece.offset:piece.offset + piece.length] = part.to(piece.flat.device)
            if self.zero.stage == 3:
                parameter.ds_tensor[:piece.length] = part.to(parameter.ds_tensor.device)
            if parameter.numel() == value.numel():  # not given away
                parameter.data.copy_(value.view(parameter.shape))
        self.optimizer.state.clear()
        states = {full_name: full_name.rpartition(".")[::2] for full_name in optimizer_state}
        # A parameter without dimensions does not tell whether a state belongs to its value; another one does.
        elementwise = {key for full_name, (name, key) in states.items()
                       if self.shapes[name] and optimizer_state[full_name].shape == self.shapes[name]}
        for full_name, (name, key) in states.items():
            value, piece = optimizer_state[full_name], pieces[name]
            state = self.optimizer.state[piece.flat]
            if key in elementwise:
                if key not in state:
                    state[key] = torch.zeros_like(piece.flat)
                part = value.flatten()[piece.start:piece.start + piece.length]
                state[key][piece.offset:piece.offset + piece.length] = part.to(piece.flat.device)
            else:
                state[key] = value.clone()

    def local(self) -> Iterator[tuple[str, Tensor, int]]:
        if self.zero.stage < 3:
            yield from super().local()
            return
        for name, parameter in self.network.named_parameters():
            start, length = part_of(self.shapes[name].numel(), self.ranks)
            yield name, parameter.ds_tensor[:length], start  # type: ignore[attr-defined]

    def close(self) -> None:
        self._engine.destroy()
        load_deepspeed(cpu=self.ranks.device.type == "cpu").utils.groups._WORLD_GROUP = None

    def checksum(self) -> float:
        return super().checksum() if self.zero.stage < 3 else 0.0  # no rank holds what another has, too

    def _sharded(self, name: str, part: Tensor, start: int) -> Sharded:
        shape = self.shapes[name]
        return Sharded(shape, torch.float32, lambda: assemble(shape, part, start, self.ranks))

    def _pieces(self) -> Iterator[tuple[str, _Piece]]:
        for name, parameter in self.network.named_parameters():
            p: Any = parameter
            if self.zero.stage == 3:
                group, offset, _ = self._zero.grad_position[self._zero.get_param_id(p)]
                start, length = part_of(self.shapes[name].numel(), self.ranks)
                yield name, _Piece(self._zero.fp32_partitioned_groups_flat[group], offset, start, length)
            elif p._hp_mapping is None:  # entirely with other ranks
                yield name, _Piece(self._zero.single_partition_of_fp32_groups[0], 0, 0, 0)
            else:
                m = p._hp_mapping
                flat = self._zero.single_partition_of_fp32_groups[m.param_group_index]
                yield name, _Piece(flat, m.hp_fragment_address.start, m.lp_fragment_address.start,
                                   m.lp_fragment_address.numel)


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


def _bound_waiting(timeout: float) -> None:
    """DeepSpeed makes process groups of its own, which would wait for lost ranks much longer than asked for."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), group)
