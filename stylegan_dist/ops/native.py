"""Which path the operators take, and why: the native library ("fused"), plain PyTorch ("reference"), or that with the
convolutions of `convolution.py` ("closed"), which are PyTorch's too, but ordered as GPUs like it.

The library is searched in this folder, where `pip install` puts it, then in the cache folder, where the first use compiles
it. The paths of PyTorch do not search for it. `STYLEGAN_DIST_BUILD=auto` (the default) goes on without a library, `require`
stops, `never` compiles nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegan_dist.errors import InputError
from stylegan_dist.ops import build, fused
from stylegan_dist.private import user_folder

DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
PATHS = ("auto", "fused", "closed", "reference", "everywhere")
OF_PYTORCH = ("closed", "reference")  # those of the paths that need no library
AUTO = ("cpu",)  # device types on which "auto" takes the native operators: where they have been seen to work, and faster


@dataclass(frozen=True)
class Native:
    """What the search for the library has found."""

    devices: tuple[str, ...]      # device types that the library serves; none: it is not there
    reason: str                   # one line: where it is, or why it is not there
    reason_no_cuda: str = ""
    promised: tuple[str, ...] = ()  # device types that it will serve once it is compiled


@dataclass(frozen=True)
class OpsPath:
    """What the operators do on a device."""

    name: str      # "fused", "closed" or "reference"
    reason: str    # one line for people

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


_found: Native | None = None  # plain, not functools.cache: torch.compile reads it as it is
_compiles = True
_selected = "auto"
_planned = ""  # the device type that meta tensors stand for; none: they take the reference


def native() -> Native:
    """Find or build the library, load it and register its operators; once in a process.

    Raises: InputError: STYLEGAN_DIST_BUILD is none of its three values, or `require` cannot be met.
    """
    global _found
    if _found is None:
        _found = _search()
    return _found


@contextlib.contextmanager
def not_compiling() -> Iterator[None]:
    """A library that is not there is only promised inside."""
    global _found, _compiles
    _compiles = False
    try:
        yield
    finally:
        _compiles = True
        if _found and _found.promised:
            _found = None


def prepare() -> None:
    """Search now if it may be used: a forward pass would wait for it, and torch.compile cannot trace it."""
    if _selected not in OF_PYTORCH:
        native()


def _search() -> Native:
    mode = os.environ.get("STYLEGAN_DIST_BUILD", "auto")
    if mode not in ("auto", "require", "never"):
        raise InputError(f"STYLEGAN_DIST_BUILD={mode}: use auto, require or never")
    try:
        found = build.Torch.at(Path(torch.__file__).parent)
        cache = user_folder("operators")
        if cache is None:
            raise build.CannotBuild("there is no private folder to keep native operators in: set XDG_CACHE_HOME or HOME")
        library = build.find(found, (Path(__file__).parent, cache), compiles=mode != "never")
        if library is None:
            if mode == "never":
                raise build.CannotBuild("not built, and STYLEGAN_DIST_BUILD=never")
            if not _compiles and build.compiler():
                devices = ("cpu", "cuda") if build.has_gpu_part(Path(build.to_build(found))) else ("cpu",)
                return Native((), "not compiled yet: a run does that at its start", build.why_no_cuda(found), devices)
            library = build.build_once(found, cache)
        torch.ops.load_library(library)
    except (build.CannotBuild, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        if mode == "require":
            raise InputError(f"STYLEGAN_DIST_BUILD=require, but there are no native operators: {reason}") from None
        return Native((), reason)
    fused.register()
    if build.has_gpu_part(library):
        return Native(("cpu", "cuda"), str(library))
    return Native(("cpu",), str(library), build.why_no_cuda(found))


def path(device_type: str, wanted: str = "auto") -> OpsPath:
    """What "auto", "fused", "closed" or "reference" come to on "cpu" or "cuda", and why. Builds the library if need be."""
    kind = device_type
    if wanted in OF_PYTORCH:
        return OpsPath(wanted, "selected")
    otherwise = "closed" if kind == "cuda" else "reference"
    if kind not in DTYPES:
        return OpsPath(otherwise, f"there are no native ones for {kind}")
    if wanted == "auto" and kind not in AUTO:
        return OpsPath(otherwise, f"the native ones are not on by themselves for {kind} yet: ops.path=fused")
    found = native()
    devices = found.devices or found.promised
    if not devices:
        return OpsPath(otherwise, found.reason)
    if kind not in devices:
        return OpsPath(otherwise, found.reason_no_cuda)
    return OpsPath("fused", found.reason)


def selected() -> str:
    """The name that was given to `select`."""
    return _selected


def device_type(x: torch.Tensor) -> str:
    """Where x is; for a tensor of the meta device, the one that it stands for."""
    return _planned if x.is_meta else x.device.type


def serves(x: torch.Tensor, faster_on_cpu: bool = True) -> bool:
    """Whether a native operator takes this tensor.

    Args:
        faster_on_cpu: whether it beats the reference there (benchmarks/ops.py); else only "everywhere" takes it.
    """
    kind = device_type(x)
    if _selected in OF_PYTORCH or x.dtype not in DTYPES.get(kind, ()):
        return False
    if _selected != "everywhere" and kind == "cpu" and not faster_on_cpu:
        return False
    devices = native().devices
    return (_selected != "auto" or kind in AUTO) and (kind in devices or (x.is_meta and bool(devices)))


def select(name: str) -> None:
    """Take a path in this process from now on.

    Args:
        name: "reference"; "closed": only its convolutions are others; "fused": these and native operators, on a CPU where
            they are the faster ones; "auto": "fused" on the device types of `AUTO`, the default; "everywhere": native
            operators even where they are slower, for tests.
    Raises: InputError: there are no native operators.
    """
    global _selected
    assert name in PATHS
    if name in ("fused", "everywhere") and not (native().devices or native().promised):
        raise InputError(f"there are no native operators: {native().reason}")
    _selected = name
    prepare()


@contextlib.contextmanager
def using(name: str, planned: str = "") -> Iterator[None]:
    """`select(name)` inside; not thread-safe.

    Args:
        planned: "cpu" or "cuda", the device type that tensors of the meta device stand for.
    """
    global _selected, _planned
    before = _selected, _planned
    select(name)
    _planned = planned
    try:
        yield
    finally:
        _selected, _planned = before
