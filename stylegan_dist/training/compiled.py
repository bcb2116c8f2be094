"""torch.compile for the forward passes that are differentiated at most once.

PyTorch cannot differentiate the backward pass of a compiled network. Path lengths and the exact gradient penalty
therefore use plain networks. A whole penalty, with the gradient inside it, can be compiled
(tests/networks/test_traced.py), but only with `torch._dynamo.config.trace_autograd_ops` and another minute of
compilation. Parameters stay in the plain networks. Only the phases use the compiled ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from stylegan_dist.config import Config
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ops import resample
from stylegan_dist.ranks import Ranks
from stylegan_dist.training.state import TrainState


def why_not_compiled(config: Config, sharded_generator: bool) -> str:
    """Why networks are not compiled; empty if they are.

    Args:
        sharded_generator: whether no rank holds the whole generator.
    """
    if config.run.compile == "auto":
        return "auto: a run of minutes loses more than it gains, and GPUs are not measured yet"
    if not config.run.compile:
        return "run.compile"
    if sharded_generator:
        return "ZeRO-3 fetches parameters layer by layer"
    if config.run.recompute:
        return "run.recompute"
    return ""


def networks_to_compile(device_type: str) -> tuple[str, ...]:
    """Those that are faster for it; on CPUs the discriminator is not (docs/performance.md)."""
    return ("g", "d") if device_type == "cuda" else ("g",)


def compile_networks(state: TrainState, ranks: Ranks, networks: Sequence[str], part: MicroBatch) -> str:
    """Let the phases use compiled networks from now on, if all ranks can compile them. Changes nothing else.

    Everything is compiled at once, in a trial of the main phases. A later step must not fail, or take minutes on one rank while
    the others wait.

    Args:
        networks: "g", "d" or both.
        part: a micro-batch like those to come, down to its strides.
    Returns: a line that says how it went.
    """
    objective, began = state.objective, time.perf_counter()
    plain = dict(objective.forwards)
    failure = None
    try:
        torch.compiler.assume_constant_result(resample.low_pass)
        options: dict[str, Any] = {}
        if state.config.run.deterministic and hasattr(torch._inductor.config, "deterministic"):
            options["deterministic"] = True  # no kernels chosen by how fast they were
        for name in networks:
            objective.forwards[name] = torch.compile(plain[name], fullgraph=True, dynamic=False, options=options)
        _try(state, part)
    except Exception as error:  # of a compiler one must expect anything, and nothing depends on it
        failure = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    failures = [text for text in ranks.gather(failure) if text]
    if failures:
        objective.forwards.update(plain)
        return f"compile is off, it has failed ({failures[0]}); training goes on without it"
    return f"compiled in {time.perf_counter() - began:.0f} s"


def _try(state: TrainState, part: MicroBatch) -> None:
    """Forward and backward passes of the main phases."""
    for phase in state.phases:
        if phase.regulariser:
            continue
        for name, network in state.networks.items():
            network.requires_grad_(name == phase.network)
        # Not backward(): hooks of engines wait for gradients that arrive in parameters. The first loss is the game's.
        share = phase.losses[0](part).share
        torch.autograd.grad(share, list(state.networks[phase.network].parameters()), allow_unused=True)
