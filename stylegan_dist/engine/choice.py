"""Which engine trains: read from what `accelerate launch` has put into the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stylegan_dist.errors import InputError
from stylegan_dist.paths import user_path
from stylegan_dist.records import parse_json, shorten

NETWORKS = {"g": "generator", "d": "discriminator"}
# Settings of zero_optimization that change buffers and timing, and not what is computed.
HARMLESS: dict[str, type] = {
    "overlap_comm": bool, "contiguous_gradients": bool, "reduce_scatter": bool, "reduce_bucket_size": int,
    "allgather_bucket_size": int, "allgather_partitions": bool, "sub_group_size": int, "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int, "stage3_max_live_parameters": int, "stage3_max_reuse_distance": int,
}
BUCKET = 1 << 24  # numbers that are summed or gathered at a time; DeepSpeed would keep 2 GB for each network
MOST_NUMBERS = 10**12  # of a buffer
MAX_FILE = 1 << 16     # bytes of a deepspeed_config_file; those of launch/deepspeed have 200
_PREFIX = "ACCELERATE_DEEPSPEED_"


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed spreads one network over the ranks.

    stage 1: optimizer state; 2: and gradients; 3: and parameters (Rajbhandari et al. 2020, section 5).
    """

    stage: int
    offload: bool = False  # optimizer state and step on the host
    buffers: Mapping[str, Any] = field(default_factory=dict)  # settings out of HARMLESS


@dataclass(frozen=True)
class Choice:
    """The engine of each network: Zero, or None for data parallel."""

    zero: Mapping[str, Zero]

    def __getitem__(self, network: str) -> Zero | None:
        return self.zero.get(network)

    def describe(self) -> str:
        """For the header of a run."""
        if not self.zero:
            return "data parallel"
        parts = [f"{NETWORKS[n]} ZeRO-{z.stage}" + (", optimizer on the host" if z.offload else "")
                 for n, z in self.zero.items()]
        return "DeepSpeed, " + "; ".join(parts)


DATA_PARALLEL = Choice({})


def choose_engine(env: Mapping[str, str]) -> Choice:
    """The engine that the accelerate configuration file asks for.

    A configuration of `distributed_type: DEEPSPEED` gives `zero_stage` and `offload_optimizer_device`, or a
    `deepspeed_config_file`: a JSON file with `zero_optimization`, or with one such object for each of
    "generator" and "discriminator".

    Raises:
        InputError: settings that would change what is computed, or that are not proven equal to data parallel.
    """
    if env.get("ACCELERATE_USE_DEEPSPEED", "false").lower() not in ("true", "1"):
        return DATA_PARALLEL
    clipping = env.get("ACCELERATE_GRADIENT_CLIPPING", "0")
    if clipping not in ("none", "", "0", "0.0"):
        raise InputError(f"gradient_clipping: {clipping[:40]} in the accelerate configuration would change every update: "
                         "remove it")
    if env.get(_PREFIX + "OFFLOAD_PARAM_DEVICE", "none") not in ("none", ""):
        raise InputError("offload_param_device is not supported, only offload_optimizer_device: remove it")
    if path := env.get(_PREFIX + "CONFIG_FILE", ""):
        return _from_file(Path(user_path(path, "deepspeed_config_file")))
    stage = env.get(_PREFIX + "ZERO_STAGE", "")
    if not re.fullmatch("[0-9]{1,9}", stage):
        raise InputError("the accelerate configuration is of type DEEPSPEED but has no zero_stage: add "
                         "`deepspeed_config: {zero_stage: 2}`, as in launch/accelerate/zero2.yaml")
    device = env.get(_PREFIX + "OFFLOAD_OPTIMIZER_DEVICE", "none")
    zero = _zero({"stage": int(stage), "offload_optimizer": {"device": device}}, "the accelerate configuration")
    return Choice(dict.fromkeys(NETWORKS, zero))


def forget_plugin(env: MutableMapping[str, str]) -> None:
    """Keep Accelerate from making its own DeepSpeed plugin, which knows one network only."""
    env.pop("ACCELERATE_USE_DEEPSPEED", None)


def _from_file(path: Path) -> Choice:
    try:
        with open(path, "rb") as file:
            content = parse_json(file.read(MAX_FILE + 1), MAX_FILE)
    except OSError as error:
        raise InputError(f"cannot read deepspeed_config_file {path} ({error.strerror}); a relative path is looked up in "
                         f"{os.getcwd()}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must be an object with zero_optimization, or with generator and discriminator")
    names = set(NETWORKS.values())
    if not names & content.keys():
        content = dict.fromkeys(names, content)
    if content.keys() != names:
        raise InputError(f"{path} must have {' and '.join(sorted(names))}, and nothing else; it has "
                         f"{shorten(', '.join(map(str, content)))}")
    zero = {}
    for short, name in NETWORKS.items():
        where = f"{path}, {name}"
        if not isinstance(content[name], dict) or set(content[name]) != {"zero_optimization"}:
            raise InputError(f"{where}: only zero_optimization may be set; everything else comes from the run's configuration "
                             "(batch, optimizer, precision) or would change what is computed")
        zero[short] = _zero(content[name]["zero_optimization"], where)
    return Choice(zero)


def _zero(settings: object, where: str) -> Zero:
    if not isinstance(settings, dict) or type(settings.get("stage")) is not int or settings["stage"] not in (1, 2, 3):
        raise InputError(f"{where}: zero_optimization needs a stage of 1, 2 or 3; for none of them use a configuration of "
                         "distributed_type MULTI_GPU, as launch/accelerate/8gpu.yaml")
    buffers: dict[str, Any] = {key: value for key, value in settings.items() if key not in ("stage", "offload_optimizer")}
    if unknown := [key for key in buffers if key not in HARMLESS]:
        raise InputError(f"{where}: zero_optimization.{unknown[0][:80]} is not proven to leave the training unchanged: remove "
                         f"it; allowed are stage, offload_optimizer, {', '.join(HARMLESS)}")
    for key, value in buffers.items():
        least = 0 if key.startswith("stage3") or HARMLESS[key] is bool else 1
        fits = type(value) is HARMLESS[key]  # not isinstance: true is not a number here
        if not fits or not least <= value <= MOST_NUMBERS:
            kind = "true or false" if HARMLESS[key] is bool else f"a whole number from {least} to {MOST_NUMBERS}"
            raise InputError(f"{where}: zero_optimization.{key}={shorten(value)} must be {kind}")
    offload = settings.get("offload_optimizer") or {}
    if not isinstance(offload, dict) or offload.keys() - {"device", "pin_memory"}:
        raise InputError(f"{where}: offload_optimizer={shorten(offload)} must be an object with device, cpu or none")
    device = offload.get("device", "none")
    if device not in ("none", "cpu"):
        raise InputError(f"{where}: offload to {shorten(device)} is not supported: use cpu or none")
    return Zero(settings["stage"], device == "cpu", buffers)
