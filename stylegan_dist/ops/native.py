"""Which path the operators take: the native library ("fused") or plain PyTorch ("reference"), and why.

The library is looked for in this folder (put there by `pip install`), then in the cache folder, where the first
use compiles it. `STYLEGAN_DIST_BUILD` says whether: `auto` (the default) goes on without it if it cannot be had, `require`
stops, `never` uses only what is already there.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegan_dist.errors import InputError
from stylegan_dist.ops import build

DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
PATHS = ("auto", "fused", "reference")
AUTO: tuple[str, ...] = ()  # device types on which "auto" takes the native operators: where all has been seen to work


@dataclass(frozen=True)
class Native:
    """What the search for the library has found."""

    devices: tuple[str, ...]      # device types that the library serves; none: it is not there
    reason: str                   # one line: where it is, or why it is not there
    reason_no_cuda: str = ""


@dataclass(frozen=True)
class OpsPath:
    """What the operators do on a device."""

    name: str      # "fused" or "reference"
    reason: str    # one line for people

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


_selected = "auto"


@torch.compiler.assume_constant_result
def native() -> Native:
    """Find or build the library, load it and register its operators; once in a process.

    Raises: InputError: STYLEGAN_DIST_BUILD is none of its three values, or `require` cannot be met.
    """
    return _native()


@functools.cache
def _native() -> Native:
    mode = os.environ.get("STYLEGAN_DIST_BUILD", "auto")
    emulate = os.environ.get("STYLEGAN_DIST_EMULATE") == "1"  # tests of the CUDA sources on a CPU
    if mode not in ("auto", "require", "never"):
        raise InputError(f"STYLEGAN_DIST_BUILD={mode}: use auto, require or never")
    try:
        found = build.Torch.at(Path(torch.__file__).parent)
        name = build.library_name(found, emulate)
        places = [folder / name for folder in (Path(__file__).parent, build.cache_folder())]
        library = next((place for place in places if place.exists()), None)
        if library is None:
            if mode == "never":
                raise build.CannotBuild("not built, and STYLEGAN_DIST_BUILD=never")
            library = build.build_once(found, build.cache_folder(), emulate)
        torch.ops.load_library(library)
    except (build.CannotBuild, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        if mode == "require":
            raise InputError(f"STYLEGAN_DIST_BUILD=require, but there are no native operators: {reason}") from None
        return Native((), reason)
    from stylegan_dist.ops import fused

    fused.register()
    why = build.why_no_cuda(found)
    return Native(("cpu",) if why or emulate else ("cpu", "cuda"), str(library), why)


def path(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> OpsPath:
    """The path of tensors of this dtype on this device, and why it is that. Builds the library if need be.

    On a CPU, "auto" leaves some calls to the reference even so: those where it is the faster one (`serves`).
    """
    kind = torch.device(device).type
    if _selected == "reference":
        return OpsPath("reference", "selected")
    if dtype not in DTYPES.get(kind, ()):
        return OpsPath("reference", f"no native operators for {dtype} on {kind}")
    if _selected == "auto" and kind not in AUTO:
        return OpsPath("reference", f"native operators are not yet switched on for {kind}")
    found = native()
    if not found.devices:
        return OpsPath("reference", found.reason)
    if kind not in found.devices:
        return OpsPath("reference", found.reason_no_cuda)
    return OpsPath("fused", found.reason)


def selected() -> str:
    """The name that `using` has set: "auto", "fused" or "reference"."""
    return _selected


def serves(x: torch.Tensor, faster_on_cpu: bool) -> bool:
    """Whether a native operator takes this tensor.

    Args:
        faster_on_cpu: whether it beats the reference there (benchmarks/ops.py); else only `using("fused")` takes it.
    """
    kind = x.device.type
    if _selected == "reference" or x.dtype not in DTYPES.get(kind, ()):
        return False
    if _selected == "auto" and (kind not in AUTO or (kind == "cpu" and not faster_on_cpu)):
        return False
    return kind in native().devices


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Take the path "fused", "reference" or "auto" inside; for tests and benchmarks, not thread-safe.

    "fused" differs from "auto" in that it also takes the native operators where they are not the faster ones.
    Raises: InputError: "fused" cannot be had.
    """
    global _selected
    assert name in PATHS
    if name == "fused" and not native().devices:
        raise InputError(f"there are no native operators: {native().reason}")
    before, _selected = _selected, name
    try:
        yield
    finally:
        _selected = before
