"""Writing one shard of a set that is packed: in a worker process, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stylegan_dist.data.index import NO_LABEL, Shard
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.kinds.base import Packing
from stylegan_dist.kinds.values import Values, added
from stylegan_dist.making import pool
from stylegan_dist.making.account import printable
from stylegan_dist.making.sources import Item, Source
from stylegan_dist.records import Count

WORK_FOLDER = ".pack"
_TAR_BLOCK = 512
_MISSING = b"missing"  # in the place of the CRC-32 of a file that cannot be read


class Task(NamedTuple):
    """One shard to write."""

    name: str            # without ending
    first: int           # place of its first sample in the order of the set
    items: list[Item]


class Job(NamedTuple):
    """What all shards of a set have in common; sent to every worker once."""

    source: Source
    out: Path
    packing: Packing
    key_digits: int
    state: str = ""      # of the source as the shards are written, see Source.state


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Written:
    """What came of a shard; kept in the work folder as its record."""

    finished: bool
    shard: Shard | None           # None: not one of its files could be read
    skipped: list[Skipped]
    enlarged: Count               # images that had fewer pixels
    values: Values | None         # of arrays
    content: str = ""             # over the bytes of its files, see content_of
    state: str = ""               # of the source when it was written, or when its files were compared last
    cut: Count = 0                # sounds that were longer


def write_shard(job: Job, slot: int, task: Task, progress: pool.Progress) -> Written:
    """In a worker: write one shard, its offsets and its record, the record last.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    work = job.out / WORK_FOLDER
    temporary = work / f"{task.name}.tar.tmp"
    rows, members, enlarged, cut = [], [], 0, 0
    skipped: list[Skipped] = []
    content = hashlib.sha256()
    values: Values | None = None
    try:
        with open(temporary, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for position, item in enumerate(task.items, task.first):
                if progress.stopped:
                    return Written(False, None, skipped, 0, None)
                try:
                    sample = job.packing.sample(_read(job, item, content))
                except ValueError as error:
                    skipped.append(Skipped(printable(item.name), printable(str(error))))
                    progress.failed[slot] += 1
                    progress.done[slot] += 1
                    continue
                key = f"{position:0{job.key_digits}d}"
                if item.label is not None:
                    _add(archive, f"{key}.cls", b"%d" % item.label)
                members.append(f"{key}.{job.packing.encoding}")
                offset = _add(archive, members[-1], sample.data)
                rows.append((offset, len(sample.data), NO_LABEL if item.label is None else item.label))
                enlarged += sample.enlarged
                cut += sample.cut
                values = added(values, sample.values)
                progress.done[slot] += 1
        shard = _publish(job.out, task.name, temporary, np.array(rows, np.int64), members)
        result = Written(True, shard, skipped, enlarged, values, content.hexdigest(), job.state, cut)
        write_whole(work / f"{task.name}.json", json.dumps(asdict(result)))
        return result
    except OSError as error:
        raise cannot_write(job.out, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Write a member without time and owner, so that equal samples make equal files. Returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    begin = archive.offset + _TAR_BLOCK
    archive.addfile(member, io.BytesIO(data))
    return begin


def content_of(job: Job, slot: int, task: Task, progress: pool.Progress) -> str:
    """In a worker: the digest of the bytes of the files of a shard, as `write_shard` computes it; "" when it was stopped."""
    content = hashlib.sha256()
    for item in task.items:
        if progress.stopped:
            return ""
        with contextlib.suppress(ValueError):  # it is part of the digest
            _read(job, item, content)
        progress.done[slot] += 1
    return content.hexdigest()


def _read(job: Job, item: Item, content) -> bytes:
    """The bytes of a file, which is added to the digest. CRC-32 runs at the speed of memory, and no one is to be kept out."""
    try:
        data = job.source.read(item.name)
    except ValueError:
        content.update(_MISSING)
        raise
    content.update(zlib.crc32(data).to_bytes(4, "little"))
    return data


def _publish(out: Path, name: str, temporary: Path, table: np.ndarray, members: list[str]) -> Shard | None:
    """Give a written shard its final name, with its offsets; None when it holds no sample."""
    if not len(table):
        return None
    with open(temporary, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        os.fsync(file.fileno())
        for member, (offset, size, _) in zip(members, table.tolist(), strict=True):
            header = content[offset - _TAR_BLOCK : offset]
            assert header[:100].rstrip(b"\0") == member.encode(), (member, offset)
            assert int(header[124:135], 8) == size, (member, offset)
        checksum = hashlib.sha256(content).hexdigest()
        total = len(content)
    offsets = out / f"{name}.offsets.npy"
    temporary_offsets = out / WORK_FOLDER / f"{name}.npy.tmp"
    with open(temporary_offsets, "wb") as target:
        np.save(target, table)
        target.flush()
        os.fsync(target.fileno())
    offsets_checksum = hashlib.sha256(temporary_offsets.read_bytes()).hexdigest()
    temporary_offsets.replace(offsets)
    temporary.replace(out / f"{name}.tar")
    return Shard(f"{name}.tar", len(table), total, checksum, offsets.name, offsets_checksum)


def cannot_write(out: Path, error: OSError) -> InputError:
    """The error for a folder that cannot be written."""
    return InputError(
        f"cannot write to {out} ({error.strerror or error}): free space or correct the permissions, then run the "
        "same command again to continue"
    )
