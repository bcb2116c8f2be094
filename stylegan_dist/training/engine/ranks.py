"""The only place that knows Accelerate and torch.distributed.

Accelerate launches the processes and makes the process group; the engine offers the loop what it needs
of them: who am I, sum the gradients, agree on a fact. Gradients of a phase travel in one flat fp32
all-reduce, together with the phase's statistics, so a phase costs one collective.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

# Imported before there is a process group: its functions take the group of that moment as default arguments.
# Imported later, as torch's optimizers do, they would keep the group's threads alive into the interpreter's
# end, where these abort the process now and then.
import torch.distributed.nn
from accelerate import Accelerator, InitProcessGroupKwargs

from stylegan_dist.errors import InputError, RankLost
from stylegan_dist.machine import available_cores, supports_bf16
from stylegan_dist.training.launch_check import check_environment, check_joined

T = TypeVar("T")
LIMIT = 1e5  # infinite gradients become this large, as in Karras et al. 2020b


class Engine:
    """The ranks of a run.

    Args:
        device: "auto", "cuda" or "cpu".
        world_size: the promised number of processes, or "auto".
        threads: CPU threads of each process, or "auto" for an equal share of this machine's cores.
        timeout: seconds after which a rank that waits for another gives up.
    Raises:
        InputError: a launch that cannot be what was meant.
    """

    def __init__(self, device: str = "auto", world_size: int | str = "auto", threads: int | str = "auto",
                 timeout: float = 600.0):
        launched = check_environment(os.environ, world_size)
        if threads != "auto" and int(threads) < 1:
            raise InputError(f"run.threads={threads} must be at least 1, or auto")
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("run.device=cuda but PyTorch sees no GPU: install a CUDA build of PyTorch, or set run.device=cpu")
        cpu = device == "cpu" or not torch.cuda.is_available()
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not cpu and self.local_world_size > torch.cuda.device_count():
            raise InputError(f"{self.local_world_size} processes on this machine but only {torch.cuda.device_count()} GPUs: "
                             "correct --num_processes, or set run.device=cpu")
        # mixed_precision="no": the networks have a precision policy of their own.
        self._accelerator = Accelerator(
            cpu=cpu, mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes
        check_joined(launched, self.world_size)
        self.device = self._accelerator.device
        if threads == "auto":
            threads = max(1, available_cores() // self.local_world_size)
        torch.set_num_threads(int(threads))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def supports_bf16(self) -> bool:
        return supports_bf16(self.device.type)

    def describe(self) -> str:
        """One line for the header of a run."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        how = "one flat all-reduce per phase" if self.world_size > 1 else "no communication"
        return f"{self.world_size} x {name}, {how}"

    @torch.no_grad()
    def reduce(self, parameters: Sequence[torch.Tensor], means: Mapping[str, torch.Tensor]
               ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Sum gradients and statistics over the ranks, and make non-finite gradients finite.

        A parameter without a gradient takes part with zeros, so that every engine and every rank takes
        the same optimizer step. Nothing here waits for the device.

        Args:
            parameters: float32; their `.grad` (the rank's share of the global mean, or None) becomes the sum.
            means: statistics of any shape, likewise the rank's share of a global mean.
        Returns: the summed statistics; the number of non-finite gradient values before they were
            replaced (nan by 0, infinities by +-1e5); the norm of the gradient after.
        """
        pieces = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in parameters]
        extras = [value.float().reshape(-1) for value in means.values()]
        flat = torch.cat(pieces + extras)
        if self.world_size > 1:
            self._collective(dist.all_reduce, flat)
        size = sum(piece.numel() for piece in pieces)
        gradient = flat[:size]
        nonfinite = size - torch.isfinite(gradient).sum()
        torch.nan_to_num(gradient, nan=0.0, posinf=LIMIT, neginf=-LIMIT, out=gradient)
        for parameter, piece in zip(parameters, gradient.split([p.numel() for p in pieces]), strict=True):
            parameter.grad = piece.view_as(parameter)
        summed = flat[size:].clone().split([value.numel() for value in extras])
        reduced = {name: part.view_as(means[name]) for name, part in zip(means, summed, strict=True)}
        return reduced, nonfinite, torch.linalg.vector_norm(gradient)

    def together(self, function: Callable[[], T]) -> T:
        """Run `function` on every rank; if it raises InputError or OSError on any, all raise the first one's InputError."""
        result, failure = None, None
        try:
            result = function()
        except (InputError, OSError) as error:
            failure = str(error)
        if self.world_size > 1:
            first = torch.tensor(self.world_size if failure is None else self.rank, device=self.device)
            self._collective(dist.all_reduce, first, op=dist.ReduceOp.MIN)
            if int(first) < self.world_size:
                failure = self.broadcast(failure, source=int(first))
        if failure is not None:
            raise InputError(failure)
        return cast(T, result)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Run `function` on rank 0 alone while the others wait; its InputError is raised on every rank.

        Returns: what the function returned on rank 0, None elsewhere.
        """
        return self.together(lambda: function() if self.is_main else None)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """One rank's value on every rank. Anything that JSON can carry."""
        if self.world_size == 1:
            return value
        text = json.dumps(value).encode() if self.rank == source else b""
        length = torch.tensor([len(text)], device=self.device)
        self._collective(dist.broadcast, length, src=source)
        content = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == source:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._collective(dist.broadcast, content, src=source)
        return json.loads(bytes(content.tolist()))

    def agree(self, values: Sequence[float]) -> bool:
        """Whether all ranks hold the same numbers (compared as the bits of float64, so that NaN equals NaN)."""
        if self.world_size == 1:
            return True
        here = torch.tensor(values, dtype=torch.float64).view(torch.int64).to(self.device)
        low, high = here.clone(), here.clone()
        self._collective(dist.all_reduce, low, op=dist.ReduceOp.MIN)
        self._collective(dist.all_reduce, high, op=dist.ReduceOp.MAX)
        return torch.equal(low, high)

    def read_later(self, value: torch.Tensor) -> Callable[[], float]:
        """Start to fetch a number from the device; the result, when called, waits only for that number."""
        if self.device.type != "cuda":
            number = float(value)
            return lambda: number
        host = torch.empty((), pin_memory=True)
        host.copy_(value, non_blocking=True)
        fetched = torch.cuda.Event()
        fetched.record()

        def wait() -> float:
            fetched.synchronize()
            return float(host)

        return wait

    @staticmethod
    def _collective(function: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except RuntimeError as error:  # the backends have no common type for a peer that is gone
            reason = str(error).strip().splitlines()[-1]
            raise RankLost(f"lost contact with another rank, which says why above or on its own machine ({reason})") from error

    def close(self) -> None:
        """Leave the process group; without this some backends abort at exit."""
        with contextlib.suppress(Exception):
            self._accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()
