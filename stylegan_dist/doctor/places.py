"""Disk, memory, and what the system allows to a process."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stylegan_dist.doctor.asking import TEMPORARY
from stylegan_dist.doctor.gpus import devices_of_system
from stylegan_dist.doctor.record import Check, Finding, Options, error, ok, warning

GB, GIB = 10**9, 2**30
PROBE_BYTES = 1 << 20         # that are written to a folder, to see whether that works
LITTLE_DISK = 10 * GB         # some checkpoints of 1024 pixels
NO_DISK = GB // 5             # one checkpoint of 256 pixels
LITTLE_MEMORY = 4 * GIB       # PyTorch with CUDA, and readers
NO_MEMORY = GIB // 2          # PyTorch alone
SHARED = 256 << 20            # bytes of /dev/shm that NCCL takes for some GPUs
HANDLES = 1024                # what most systems give


def _run_folder(options: Options) -> Iterator[Finding]:
    yield judge_folder("run folder", Path(options.run).absolute(), "choose another folder: run.dir=... (doctor --run)",
                       LITTLE_DISK, NO_DISK)


def judge_folder(name: str, folder: Path, remedy: str, little: int, least: int) -> Finding:
    """Whether something can be written to a folder, or to the one in which it will be made, and how much.

    Args:
        little: bytes free below which that is a warning.
        least: the same for an error.
    """
    there = folder
    while not os.path.exists(there) and there != there.parent:  # also where that may not be seen
        there = there.parent
    where = f"{folder}" if there == folder else f"{folder}, to be made in {there}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except OSError as wrong:
        return error(name, f"{where}: cannot be written ({wrong.strerror or wrong})", remedy)
    text = f"{where}: {free / GB:.1f} GB free"
    if free < least:
        return error(name, f"{text}: not enough for a checkpoint", f"make room, or {remedy}")
    if free < little:
        return warning(name, f"{text}: few checkpoints fit", f"make room, or {remedy}")
    return ok(name, text)


def _cache_folder(_: Options) -> Iterator[Finding]:
    from stylegan_dist.private import user_folder

    remedy = "set XDG_CACHE_HOME to a folder of yours that nobody else can write to"
    folder = user_folder("operators")
    if folder is None:
        yield warning("cache folder", "none that this user alone can write to, so no native operators, and no weights of "
                      "feature networks", remedy)
        return
    found = judge_folder("cache folder", folder.parent, remedy, GB // 10, 0)
    yield found if found.status != "error" else warning(found.name, found.text, remedy)


def _temporary_folder(_: Options) -> Iterator[Finding]:
    remedy, wanted = "set TMPDIR to a folder on a local disk with room", os.environ.get("TMPDIR", "")
    try:
        folder = tempfile.gettempdir()
    except OSError as wrong:
        yield error(TEMPORARY, f"none can be written: {wrong.strerror or wrong}", remedy)
        return
    found = judge_folder(TEMPORARY, Path(folder), remedy, GB, PROBE_BYTES)
    if found.status == "ok" and wanted and os.path.realpath(wanted) != os.path.realpath(folder):
        found = warning(TEMPORARY, f"TMPDIR={wanted} cannot be written, is full or is not there; instead {found.text}", remedy)
    yield found


def _shared_memory(_: Options) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    text, gpus = f"{free / GIB:.2f} GiB free", devices_of_system()
    if free < SHARED and gpus > 1:
        yield warning("/dev/shm", f"{text}: NCCL may fail with {gpus} GPUs",
                      "start a container with --shm-size=1g or --ipc=host; or mount -o remount,size=1g /dev/shm")
    else:
        yield ok("/dev/shm", text)


def _handles(_: Options) -> Iterator[Finding]:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= HANDLES:
        yield ok("file handles", "unlimited" if allowed == resource.RLIM_INFINITY else f"{allowed}")
        return
    raised = f"ulimit -n {HANDLES}" + ("" if most == resource.RLIM_INFINITY or most >= HANDLES
                                       else f", which the administrator must allow (nofile in limits.conf; now {most} at most)")
    yield warning("file handles", f"{allowed}: few for readers, shards, logs and W&B", raised)


def _memory(_: Options) -> Iterator[Finding]:
    from stylegan_dist.machine import available_cores, available_host_memory

    yield ok("CPU", f"{available_cores()} cores")
    free = available_host_memory()
    text, remedy = f"{free / GIB:.1f} GiB free", "ask the batch system or the container for more, or end other processes"
    if free < NO_MEMORY:
        yield error("memory", f"{text}: not enough for PyTorch", remedy)
    elif free < LITTLE_MEMORY:
        yield warning("memory", f"{text}: little", remedy)
    else:
        yield ok("memory", text)


def _slurm(_: Options) -> Iterator[Finding]:
    from stylegan_dist.cluster.slurm import cluster_name

    if shutil.which("sbatch") is None:
        yield ok("Slurm", "not here")
    elif name := cluster_name():
        job = os.environ.get("SLURM_JOB_ID")
        yield ok("Slurm", f"cluster {name}" + (f", inside of job {job}" if job else ""))
    else:
        yield ok("Slurm", "sbatch is here, but no cluster answers")


_MOUNT = "a disk or a network mount does not answer: leave it out, or have it mounted again"
CHECKS = (
    Check("run folder", _run_folder, 15, _MOUNT),
    Check("cache folder", _cache_folder, 15, _MOUNT),
    Check(TEMPORARY, _temporary_folder, 15, _MOUNT),
    Check("/dev/shm", _shared_memory, 5, _MOUNT),
    Check("file handles", _handles, 5, _MOUNT),
    Check("memory", _memory, 5, "see what the system says"),
    Check("Slurm", _slurm, 10, "its controller does not answer: try again later", late="ok"),
)
