"""Python, this program, PyTorch and the other libraries."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import stylegan_dist
from stylegan_dist.doctor.child import describe
from stylegan_dist.doctor.record import Check, Finding, Options, error, ok, warning
from stylegan_dist.machine import LIBRARIES

_MODULES = {"pillow": "PIL.Image"}  # where the name of a library is another one
_SPARED = {"wandb": "training goes on without it", "deepspeed": "ZeRO alone needs it",
           "tensorboard": "monitor.tensorboard alone needs it"}


def _python(_: Options) -> Iterator[Finding]:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield ok("Python", version, version)
    folder = Path(stylegan_dist.__file__).parent
    yield ok("stylegan_dist", f"{stylegan_dist.__version__} in {folder}", stylegan_dist.__version__)


def _torch(_: Options) -> Iterator[Finding]:
    try:
        import torch
    except Exception as wrong:
        yield error("PyTorch", f"does not load ({describe(wrong)})", "install it again: pip install --force-reinstall torch")
        return
    version, wanted = str(torch.__version__), _requirements().get("torch", "")
    text = version + (f", for CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA")
    if _fits(version, wanted):
        yield ok("PyTorch", text, version)
    else:
        yield warning("PyTorch", f"{text}; this program is made for {wanted}", f'pip install "torch{wanted}"', version)


def _libraries(_: Options) -> Iterator[Finding]:
    for name in LIBRARIES:
        if name != "deepspeed":
            yield _library(name)
    # The rest of what this program requires; that a version is there says enough.
    wrong = []
    for name, wanted in _requirements().items():
        if name not in (*LIBRARIES, "torch"):
            try:
                if not _fits(version := importlib.metadata.version(name), wanted):
                    wrong.append(f"{name}{wanted} (there is {version})")
            except importlib.metadata.PackageNotFoundError:
                wrong.append(f"{name}{wanted} (not there)")
    if wrong:
        yield warning("requirements", f"not met: {', '.join(wrong)}", "pip install --upgrade stylegan-dist, or each of them")


def _deepspeed(_: Options) -> Iterator[Finding]:
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        yield ok("deepspeed", "not there, and not needed without ZeRO (pip install 'stylegan-dist[deepspeed]')")
        return
    import torch

    from stylegan_dist.engine.deepspeed_adapter import load_deepspeed

    with contextlib.suppress(Exception):  # which the import that follows meets again; it sets what makes others succeed
        load_deepspeed(cpu=not torch.cuda.is_available())
    yield _library("deepspeed")


def _library(name: str) -> Finding:
    wanted = _requirements().get(name, "")
    make, spared = (warning, f"; {_SPARED[name]}") if name in _SPARED else (error, "")
    install = f'pip install "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return make(name, f"not there{spared}", install)
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as wrong:
        return make(name, f"{version} does not load ({describe(wrong)}){spared}",
                    f'pip install --force-reinstall "{name}{wanted}"', version)
    if not _fits(version, wanted):
        return warning(name, f"{version}; this program is made for {wanted}", install, version)
    return ok(name, version, version)


def _torchvision(_: Options) -> Iterator[Finding]:
    """It is not used here. Libraries of metrics import it."""
    if importlib.util.find_spec("torchvision") is None:
        return
    version = _version("torchvision")
    try:
        importlib.import_module("torchvision")
    except Exception as wrong:  # a RuntimeError where it is made for another PyTorch
        yield warning("torchvision", f"{version} does not load beside this PyTorch ({describe(wrong)}); libraries of metrics "
                      "use it, training does not", fitting_torchvision(_version("torch")), version)
    else:
        yield ok("torchvision", version, version)


def fitting_torchvision(torch: str) -> str:
    """What to do about a torchvision that does not fit a PyTorch, by its version: 0.(N + 15) is made for 2.N."""
    remove = "pip uninstall torchvision"
    found = re.match(r"2\.([0-9]+)[^+]*(?:\+(cpu|cu[0-9]+|rocm[0-9.]+|xpu))?", torch)
    if not found:
        return remove
    index = f" --index-url https://download.pytorch.org/whl/{found[2]}" if found[2] else ""
    return f"pip install --force-reinstall --no-deps 'torchvision==0.{int(found[1]) + 15}.*'{index}, or {remove}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _requirements() -> dict[str, str]:
    """The versions that this program needs here, such as ">=2.8", by library; empty where it is not installed."""
    found: dict[str, str] = {}
    with contextlib.suppress(Exception):
        from packaging.requirements import Requirement  # accelerate brings it

        for line in importlib.metadata.requires("stylegan-dist") or []:
            one = Requirement(line)
            needed = one.marker is None or one.marker.evaluate({"extra": ""})
            if needed or one.name == "deepspeed":
                found.setdefault(one.name.lower(), str(one.specifier))
    return found


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except Exception:  # a version that is none, as of some builds
        return True


CHECKS = (
    Check("Python", _python, 10, "run python3 by itself: it must answer"),
    Check("PyTorch", _torch, 60, "run python3 -c 'import torch': a first import from a network file system may take long"),
)
LIBRARY_CHECKS = (
    Check("libraries", _libraries, 40, f"import each of {', '.join(LIBRARIES)} by itself to see which one hangs"),
    Check("deepspeed", _deepspeed, 40, "pip uninstall deepspeed: only ZeRO needs it", ("PyTorch", "GPU"), late="warning"),
    Check("torchvision", _torchvision, 20, "pip uninstall torchvision: training does not use it", ("PyTorch",), late="warning"),
)
