"""Packing a folder or a zip of images into a shard set. The format is in shards/FORMAT.md.

The result is a pure function of the source and the options: the same bytes for any number of workers and
any number of interruptions. Each worker writes whole shards. A finished shard has a small record in
`OUT/.pack/`, so that the same command continues where it was interrupted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import webdataset
from tqdm import tqdm

from stylegan_dist import __version__
from stylegan_dist.data import pool, storage
from stylegan_dist.data.images import ImageOptions, convert, encode
from stylegan_dist.data.index import INDEX_NAME, NO_LABEL, DatasetIndex, Shard, load_index, load_offsets
from stylegan_dist.data.sources import LABEL_MODES, Item, Source, open_source
from stylegan_dist.errors import InputError, Interrupted
from stylegan_dist.files import write_whole
from stylegan_dist.machine import available_cores
from stylegan_dist.randomness import SEED_LIMIT, permutation

WORK_FOLDER = ".pack"
_TAR_BLOCK = 512
_SHARD_BYTES = 64 << 20             # of raw pixels, by the automatic rule
_SHARD_SAMPLES = (256, 4096)        # least and most, by the automatic rule
_SHARD_MULTIPLE = 8                 # shards divide evenly among up to 8 readers
_LOCK_SECONDS = 2.0
_SHOWN = 5                          # unreadable files named in a message


@dataclass(frozen=True)
class PackOptions:
    """What to make of the images. The options below the line do not change the result."""

    image: ImageOptions
    labels: str = "auto"                    # "auto", "folders", "json" or "none", see open_source
    shuffle: bool = True                    # mix the samples; False: in the order of the names
    seed: int = 0                           # of the mixing
    samples_per_shard: int | None = None    # None: see shard_size
    # ---
    max_skipped: int | None = None          # unreadable files that are accepted; None: 1 %, at least 1
    workers: int | None = None              # processes; None: one a core
    overwrite: bool = False                 # remove a shard set that is in the way

    def check(self) -> None:
        """Raise InputError naming the first option with a wrong value."""
        self.image.check()
        if self.labels not in LABEL_MODES:
            raise InputError(f"labels must be one of {', '.join(LABEL_MODES)}, not {self.labels!r}")
        if not 0 <= self.seed < SEED_LIMIT:
            raise InputError(f"seed must be from 0 to 2^32 - 1, not {self.seed}")
        for name, least in (("samples_per_shard", 1), ("max_skipped", 0), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")


class _Task(NamedTuple):
    """One shard to write."""

    name: str            # without ending
    first: int           # place of its first sample in the order of the set
    items: list[Item]


class _Job(NamedTuple):
    """What all shards of a set have in common; sent to every worker once."""

    source: Source
    out: Path
    image: ImageOptions
    key_digits: int


def pack(source: str | os.PathLike, out: str | os.PathLike, options: PackOptions) -> DatasetIndex:
    """Pack the images of a folder or a zip into a shard set, or continue to.

    Args:
        source: a folder or a zip of images.
        out: the folder of the shard set; made if it is not there.

    Raises:
        InputError: a wrong option, source or `out`; too many unreadable files; the disk is full.
        Interrupted: by Ctrl-C; the finished shards are kept, the same call continues.
    """
    options.check()
    for name, place in (("SOURCE", os.fspath(source)), ("OUT", os.fspath(out))):
        if storage.is_remote(place):
            raise InputError(f"{name} of pack must be on this machine, not at {place}: fetch the images or upload the shards "
                             "with the tool of that storage, or read finished shards from there (stylegan-dist index)")
    out = Path(out)
    if os.path.realpath(source) == os.path.realpath(out):
        raise InputError(f"{out} is the source itself: choose another folder for the shards")
    opened = open_source(source, options.labels)
    tasks, record = _plan(opened, Path(source), options)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _lock(out, options.overwrite):
            if (out / INDEX_NAME).is_file():
                return _finished(out, record)
            return _pack(opened, out, options, tasks, record)
    except OSError as error:
        raise _cannot_write(out, error) from None


def shard_size(images: int, raw_bytes: int) -> int:
    """Samples of a shard by the automatic rule.

    About 64 MiB of raw pixels, but from 256 to 4096 samples; the number of shards is a multiple of 8 and
    the samples are spread evenly over them, as far as 256 samples a shard allow.

    Args:
        images: of the whole set.
        raw_bytes: of the pixels of one image.
    """
    least, most = _SHARD_SAMPLES
    samples = min(max(_SHARD_BYTES // raw_bytes, least), most)
    shards = -(-images // samples)
    shards = -(-shards // _SHARD_MULTIPLE) * _SHARD_MULTIPLE
    shards = min(shards, max(1, images // least))
    return -(-images // shards)


def _plan(source: Source, path: Path, options: PackOptions) -> tuple[list[_Task], dict]:
    """The shards to write, and the record of what decides their content."""
    count = len(source.items)
    if options.shuffle:
        order = permutation(options.seed, "pack.order", 0, count)
    else:
        order = np.arange(count)
    image = options.image
    size = options.samples_per_shard or shard_size(count, image.channels * image.resolution**2)
    digits = max(5, len(str((count - 1) // size)))
    tasks = [
        _Task(f"shard-{number:0{digits}d}", first, [source.items[i] for i in order[first : first + size]])
        for number, first in enumerate(range(0, count, size))
    ]
    decisive = {
        **asdict(image), "labels": options.labels, "shuffle": options.shuffle, "seed": options.seed,
        "samples_per_shard": size,
    }
    identity = json.dumps([decisive, source.sha256], sort_keys=True)
    record = {
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "source": Path(os.path.realpath(path)).name,
        "source_images": count,
        "source_sha256": source.sha256,
        "options": decisive,
        "versions": {"stylegan_dist": __version__, "pillow": PIL.__version__},
    }
    return tasks, record


@contextmanager
def _lock(out: Path, overwrite: bool) -> Iterator[None]:
    """Own `out`, and its work folder, against other packers.

    Workers inherit the lock, so it also holds off the shards of a killed packer whose workers are
    about to notice that it is gone.
    """
    work = out / WORK_FOLDER
    ours = work.is_dir() or (out / INDEX_NAME).is_file()
    if not ours and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no shard set: choose another folder for the shards")
    descriptor = os.open(out, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break  # a file system without locks
            if time.monotonic() > deadline:
                raise InputError(f"another process is packing into {out}: wait for it or choose another folder")
            time.sleep(0.05)
        if overwrite:
            _remove_shard_set(out)
        yield
    finally:
        os.close(descriptor)


def _remove_shard_set(out: Path) -> None:
    """Remove what `pack` writes and nothing else; the index last, because it marks the folder as ours."""
    for pattern in ("shard-*.tar", "shard-*.offsets.npy"):
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    (out / INDEX_NAME).unlink(missing_ok=True)


def _finished(out: Path, record: dict) -> DatasetIndex:
    try:
        index = load_index(out)
    except InputError as error:
        raise InputError(f"{error}; --overwrite packs everything again") from None
    if index.packed_with.get("fingerprint") != record["fingerprint"]:
        raise _other_set(out)
    print(f"{out} is already packed with these options: {_summary(index)}")
    return index


def _other_set(out: Path) -> InputError:
    return InputError(
        f"{out} holds a shard set of another source or other options: choose another folder, "
        "or pass --overwrite to replace it"
    )


def _pack(source: Source, out: Path, options: PackOptions, tasks: Sequence[_Task], record: dict) -> DatasetIndex:
    results = _resume(out, tasks, record)
    count = len(source.items)
    allowed = max(1, count // 100) if options.max_skipped is None else options.max_skipped
    skipped = [entry for result in results.values() for entry in result["skipped"]]
    if len(skipped) > allowed:
        raise _too_many(skipped, count, allowed)

    missing = [number for number in range(len(tasks)) if number not in results]
    packed = sum(len(tasks[number].items) for number in results)
    workers = options.workers or available_cores()
    print(f"packing {count} images into {len(tasks)} shards with {workers} worker{'s' * (workers > 1)}")
    if packed:
        print(f"continuing: {len(results)} shards are finished, {count - packed} images are left")
    job = _Job(source, out, options.image, max(8, len(str(count - 1))))
    # Where there is no terminal to redraw a line on, a line every half minute is enough.
    interval = 0.2 if sys.stderr.isatty() else 30
    with tqdm(total=count, initial=packed, desc="packing", unit="img", mininterval=interval) as bar:
        pending = pool.run(
            partial(_write_shard, job), [tasks[number] for number in missing], workers, bar, allowed - len(skipped)
        )
        try:
            with closing(pending):
                for slot, result in pending:
                    skipped += result["skipped"]
                    if result["finished"]:
                        results[missing[slot]] = result
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted with {len(results)} of {len(tasks)} shards finished: run the same command to continue"
            ) from None
    if len(skipped) > allowed:
        raise _too_many(skipped, count, allowed)
    return _finish(source, out, options.image, [results[number] for number in range(len(tasks))], record)


def _resume(out: Path, tasks: Sequence[_Task], record: dict) -> dict[int, dict]:
    """Prepare the work folder, and find the shards that are finished: number -> result."""
    work = out / WORK_FOLDER
    work.mkdir(exist_ok=True)
    plan = work / "plan.json"
    if not plan.is_file():
        write_whole(plan, json.dumps(record))
    elif json.loads(plan.read_text())["fingerprint"] != record["fingerprint"]:
        raise _other_set(out)
    results = {}
    for number, task in enumerate(tasks):
        try:
            result = json.loads((work / f"{task.name}.json").read_text())
            if result["shard"]:
                shard = Shard(**result["shard"])
                intact = (out / shard.name).stat().st_size == shard.bytes and (out / shard.offsets).is_file()
                if not intact:
                    continue
        except (FileNotFoundError, ValueError):  # not finished, or cut short by a power failure
            continue
        results[number] = result
    return results


def _write_shard(job: _Job, slot: int, task: _Task, progress: pool.Progress) -> dict:
    """In a worker: write one shard, its offsets and its record, the record last."""
    work = job.out / WORK_FOLDER
    temporary = work / f"{task.name}.tar.tmp"
    rows, keys, enlarged = [], [], 0
    skipped: list[dict] = []
    ending = job.image.encoding
    try:
        # Fixed times and owners: equal images make equal tar files.
        with open(temporary, "wb") as file, webdataset.TarWriter(
            file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False
        ) as writer:
            writer.tarstream.format = tarfile.USTAR_FORMAT  # the default is PAX, which is slower to write
            for position, item in enumerate(task.items, task.first):
                if progress.stopped:
                    return {"finished": False, "skipped": skipped}
                try:
                    converted = convert(job.source.read(item.name), job.image)
                except ValueError as error:
                    skipped.append({"name": item.name, "reason": str(error)})
                    progress.failed[slot] += 1
                    progress.done[slot] += 1
                    continue
                data = encode(converted.image, job.image)
                key = f"{position:0{job.key_digits}d}"
                sample = {"__key__": key, ending: data}
                if item.label is not None:
                    sample["cls"] = b"%d" % item.label
                writer.write(sample)
                # Members are sorted, and "cls" comes before every ending of an image: the image is the
                # last one, and its padding ends where the tar stream now stands.
                padded = -(-len(data) // _TAR_BLOCK) * _TAR_BLOCK
                label = NO_LABEL if item.label is None else item.label
                rows.append((writer.tarstream.offset - padded, len(data), label))
                keys.append(key)
                enlarged += converted.enlarged
                progress.done[slot] += 1
        shard = _publish(job.out, task.name, temporary, np.array(rows, np.int64), [f"{k}.{ending}" for k in keys])
        result = {"finished": True, "shard": shard and asdict(shard), "skipped": skipped, "enlarged": enlarged}
        write_whole(work / f"{task.name}.json", json.dumps(result))
        return result
    except OSError as error:
        raise _cannot_write(job.out, error) from None
    finally:
        temporary.unlink(missing_ok=True)


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


def _finish(source: Source, out: Path, image: ImageOptions, results: list[dict], record: dict) -> DatasetIndex:
    shards = [Shard(**result["shard"]).placed(str(out), str(out)) for result in results if result["shard"]]
    skipped = sorted((entry for result in results for entry in result["skipped"]), key=lambda entry: entry["name"])
    if not shards:
        raise InputError(f"none of the images can be read: {_name_some(skipped)}")
    counts = None
    if source.classes is not None:
        labels = np.concatenate([load_offsets(shard)[:, 2] for shard in shards])
        counts = np.bincount(labels, minlength=len(source.classes)).tolist()
    index = DatasetIndex(
        resolution=image.resolution, channels=image.channels, encoding=image.encoding, classes=source.classes,
        class_counts=counts, shards=shards, packed_with=record, skipped=skipped,
    )
    index.save(out)
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)

    print(f"{out}: {_summary(index)}")
    if enlarged := sum(result["enlarged"] for result in results):
        print(f"{enlarged} images were smaller than {image.resolution} pixels and have been enlarged")
    if skipped:
        print(f"{len(skipped)} files could not be read and are left out (all are listed in {INDEX_NAME}):")
        for entry in skipped[:_SHOWN]:
            print(f"  {entry['name']!r}: {entry['reason']}")
    return index


def _summary(index: DatasetIndex) -> str:
    size = sum(shard.bytes for shard in index.shards)
    classes = f", {index.num_classes} classes" if index.num_classes else ""
    return f"{index.num_samples} samples{classes} in {len(index.shards)} shards, {size / 1e6:.1f} MB"


def _name_some(skipped: list[dict]) -> str:
    shown = sorted(skipped, key=lambda entry: entry["name"])[:_SHOWN]
    return "; ".join(f"{entry['name']!r} ({entry['reason']})" for entry in shown)


def _too_many(skipped: list[dict], count: int, allowed: int) -> InputError:
    return InputError(
        f"at least {len(skipped)} of {count} files cannot be read, {allowed} are allowed: {_name_some(skipped)}. "
        "To go on without them, run again with a larger --max-skipped (finished shards are kept); "
        "after repairing them, run again with --overwrite"
    )


def _cannot_write(out: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write to {out} ({error.strerror or error}): free space or correct the permissions, then run the "
        "same command again to continue"
    )
