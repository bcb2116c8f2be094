"""Compile the native operators of csrc/ against an installed PyTorch. Imports neither torch nor this package: setup.py runs it.

A library is named after everything that it depends on, `native-<key>-<cpu or cuda13>.so`, so that a stale one is never loaded.
The version of PyTorch is no part of that: the stable ABI is what the library is compiled for, and later versions keep it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
CUDA_TARGETS = ("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90")
OLDEST_TORCH = (2, 11)          # of the stable ABI that is used; the same as in TORCH_TARGET
TORCH_TARGET = "0x020b000000000000"
RETRY_AFTER = 600               # seconds that a failed compilation is remembered: other ranks need not repeat it
LIMIT = 900                     # seconds for one compiler
EMULATE = os.environ.get("STYLEGAN_DIST_EMULATE") == "1"  # tests: the CUDA sources become loops on the CPU

# Floating-point errors and traps are not looked at; without this the compiler vectorises less.
CXX_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden")


class CannotBuild(Exception):
    """Why there is no native library, in one line."""


@dataclass(frozen=True)
class Torch:
    """An installed PyTorch, known by its files."""

    root: Path           # the package's folder
    version: str
    cuda: str | None     # the CUDA that it was built with

    @staticmethod
    def at(root: Path) -> Torch:
        """Raises: CannotBuild: there is no PyTorch in `root`, or it is too old."""
        try:
            text = (root / "version.py").read_text()
        except OSError:
            raise CannotBuild(f"no PyTorch in {root.parent}") from None
        found = dict(re.findall(r"^(__version__|cuda)\b[^=]*= '([^']*)'", text, re.MULTILINE))
        torch = Torch(root, found["__version__"], found.get("cuda"))
        if tuple(map(int, torch.version.split(".")[:2])) < OLDEST_TORCH:
            raise CannotBuild(f"PyTorch {torch.version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
        if platform.system() != "Linux":
            raise CannotBuild(f"native operators are for Linux, this is {platform.system()}")
        return torch


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual names."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")))), None)


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


def why_no_cuda(torch: Torch) -> str:
    """Why a library for this PyTorch has no GPU part; empty if it has one."""
    if torch.cuda is None:
        return "this PyTorch has no CUDA"
    path = nvcc()
    if path is None:
        return "no nvcc (set CUDA_HOME)"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if not release:
        return f"{path} does not work"
    if int(release[1]) != int(torch.cuda.split(".")[0]):
        return f"nvcc {release[1]}.{release[2]} does not fit a PyTorch for CUDA {torch.cuda}"
    return ""


def cpu_flags() -> tuple[str, ...]:
    """Instruction sets of this processor that are worth having."""
    try:
        words = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]
    except (OSError, TypeError):
        return ()
    return ("-mavx2", "-mfma", "-mf16c") if {"avx2", "fma", "f16c"} <= words else ()


def library_name(part: str) -> str:
    """part: "cuda13" for example, "cpu", or "emulated"."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(repr((TORCH_TARGET, CUDA_TARGETS, platform.machine(), *CXX_FLAGS, *NVCC_FLAGS, *cpu_flags())).encode())
    return f"native-{digest.hexdigest()[:16]}-{part}.so"


def gpu_part(torch: Torch) -> str:
    """That of the best library for this PyTorch."""
    return f"cuda{torch.cuda.split('.')[0]}" if torch.cuda else "cpu"


def to_build(torch: Torch) -> str:
    """The name of the best library that this machine can compile for this PyTorch."""
    return library_name("emulated" if EMULATE else "cpu" if why_no_cuda(torch) else gpu_part(torch))


def find(torch: Torch, folders: Sequence[Path], compiles: bool = True) -> Path | None:
    """The best library that is there: one with a GPU part may have been compiled where there is an nvcc, and serves a PyTorch
    without CUDA as well.

    Args:
        compiles: leave out one without a GPU part where a better one can be compiled.
    """
    names = [to_build(torch)]
    if not EMULATE:
        names.insert(0, library_name(gpu_part(torch)))
        names += [library_name("cpu")] * (not compiles) + [library_name("cuda*")] * (torch.cuda is None)
    return next((library for name in names for folder in folders for library in sorted(folder.glob(name))), None)


def has_gpu_part(library: Path) -> bool:
    return "-cuda" in library.name


def build_once(torch: Torch, folder: Path) -> Path:
    """The library in `folder`, compiled by one process while all others of this machine wait. Raises: CannotBuild."""
    library = folder / to_build(torch)
    if library.exists():
        return library
    if compiler() is None:
        raise CannotBuild("no C++ compiler (install g++ or set CXX)")
    failure = library.with_suffix(".failed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(library.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if library.exists():
                return library
            if failure.exists() and time.time() - failure.stat().st_mtime < RETRY_AFTER:
                raise CannotBuild(failure.read_text())
            print("compiling the native operators, once for this machine ...", file=sys.stderr, flush=True)
            try:
                compile_library(torch, library)
            except CannotBuild as error:
                failure.write_text(str(error))
                raise
            return library
    except OSError as error:
        raise CannotBuild(f"cannot write {folder} ({error.strerror})") from None


def compile_library(torch: Torch, library: Path) -> None:
    """Compile into a temporary folder, all sources at once, and move the library to its place.

    Raises: CannotBuild: with the compiler's first complaint.
    """
    cxx, cuda = compiler(), not EMULATE and not why_no_cuda(torch)
    if cxx is None:
        raise CannotBuild("no C++ compiler (install g++ or set CXX)")
    flags = [*CXX_FLAGS, *cpu_flags(), f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # What is emulated need not be fast, and is compiled in half the time.
    flags += ["-DSTYLEGAN_DIST_CUDA"] * cuda + ["-DSTYLEGAN_DIST_EMULATE", "-O1"] * EMULATE
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as name:
        commands, objects = [], []
        for source in sorted(SOURCES.glob("*.c*")):
            target = str(Path(name, source.stem + ".o"))
            if source.suffix == ".cpp" and not (EMULATE and source.stem.endswith("_cpu")):
                commands.append([cxx, *flags, "-isystem", str(torch.root / "include"), "-c", str(source), "-o", target])
            elif source.suffix == ".cu" and EMULATE:
                commands.append([cxx, *flags, "-Wno-unknown-pragmas", "-x", "c++", "-c", str(source), "-o", target])
            elif source.suffix == ".cu" and cuda:
                commands.append(cuda_command(source, Path(target)))
            else:
                continue
            objects.append(target)
        run_all(commands)
        result = str(Path(name, library.name))
        libraries = [f"-L{torch.root / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        # PyTorch has loaded its libraries before this one, and is in one process with one CUDA driver: the runtime
        # may be linked statically, and libtorch_cuda, which need not exist, is asked for by name (tensor.h).
        run_all([[nvcc() or "", "-shared", "-cudart", "static", "-ccbin", cxx, *objects, *libraries, "-o", result]
                 if cuda else [cxx, "-shared", *objects, *libraries, "-ldl", "-o", result]])
        os.replace(result, library)


def cuda_command(source: Path, target: Path) -> list[str]:
    architectures = [part for one in CUDA_TARGETS for part in ("-gencode", one)]
    return [nvcc() or "nvcc", *NVCC_FLAGS, "-ccbin", compiler() or "g++", "-DSTYLEGAN_DIST_CUDA", *architectures,
            "-c", str(source), "-o", str(target)]


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """All at the same time. Raises: CannotBuild."""
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
               for command in commands]
    failed = None
    for command, process in zip(commands, running, strict=True):
        try:
            said = process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"error: longer than {LIMIT} s"
            process.communicate()
        if process.returncode and failed is None:
            lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines() or ["no message"]
            failed = f"{Path(command[0]).name} failed: {lines[0].strip()[:200]}"
    if failed:
        raise CannotBuild(failed)
