"""Packing a folder, a zip or a tar of samples into a shard set. The format is in shards/FORMAT.md.

The result is a pure function of the source and the options: the same bytes for any number of workers and
any number of interruptions. Each worker writes whole shards. A finished shard has a small record in
`OUT/.pack/`, so that the same command continues where it was interrupted. So several machines can pack parts of one set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from pathlib import Path

import numpy as np

from stylegan_dist import __version__
from stylegan_dist.data import storage
from stylegan_dist.data.index import INDEX_NAME, DatasetIndex, load_index, load_offsets, read_index
from stylegan_dist.errors import InputError, Interrupted
from stylegan_dist.files import try_lock, write_whole
from stylegan_dist.kinds import Array, Clip, ClipOptions, Packing
from stylegan_dist.kinds.values import added
from stylegan_dist.machine import available_cores
from stylegan_dist.making import pool
from stylegan_dist.making.changes import STATE_NAME, combined, contents_of, keep_state, kept_state
from stylegan_dist.making.clips import cut
from stylegan_dist.making.shard_writer import (
    WORK_FOLDER,
    Job,
    Skipped,
    Task,
    Written,
    cannot_write,
    write_shard,
)
from stylegan_dist.making.sources import Listing, Source, open_source
from stylegan_dist.randomness import permutation
from stylegan_dist.records import Digest, read_record

_SHARD_BYTES = 64 << 20             # of raw pixels or values, by the automatic rule
_SHARD_SAMPLES = (256, 4096)        # least and most, by the automatic rule
_SHARD_MULTIPLE = 8                 # shards divide evenly among up to 8 readers
_LOCK_SECONDS = 2.0
_SHOWN = 5                          # unreadable files named in a message
_LISTED = 1000                      # and in the index
_NUMBERS = 4                        # of offsets and scales, shown


@dataclass(frozen=True)
class PackOptions:
    """What to make of the source. The options below the line do not change the result."""

    packing: Packing                        # of `PACKINGS`
    labels: str = "auto"                    # see open_source
    shuffle: bool = True                    # mix the samples; False: in the order of the names
    seed: int = 0                           # of the mixing
    samples_per_shard: int | None = None    # None: see shard_size
    # ---
    max_skipped: int | None = None          # unreadable files that are accepted; None: 1 %, at least 1
    workers: int | None = None              # processes; None: one a core
    overwrite: bool = False                 # remove a shard set that is in the way
    part: tuple[int, int] | None = None     # (K, N): shards K, K + N, ... only, and no index; for N processes, then one without


@dataclass(frozen=True)
class _Plan:
    """What the shards in the work folder are made of."""

    fingerprint: Digest


def pack(source: str | os.PathLike, out: str | os.PathLike, options: PackOptions,
         listing: Listing | None = None) -> DatasetIndex | None:
    """Pack the samples of a folder, a zip or a tar into a shard set, or continue to. Returns None after a part of it.

    Args:
        source: a folder, a zip or a tar of images, arrays or sound files, or WebDataset shards.
        out: the folder of the shard set; made if it is not there.
        listing: of the source, where it is known already.

    Raises:
        InputError: a wrong option, source or `out`; too many unreadable files; the disk is full.
        Interrupted: by Ctrl-C; the finished shards are kept, the same call continues.
    """
    options.packing.check()
    if options.part and options.overwrite:
        raise InputError("--overwrite would remove what other parts have packed: leave it out, or empty the folder first")
    storage.check_is_local("OUT", out)
    out = Path(out)
    if os.path.realpath(source) == os.path.realpath(out):
        raise InputError(f"{out} is the source itself: choose another folder for the shards")
    opened = open_source(source, options.labels, type(options.packing), listing)
    if isinstance(options.packing, ClipOptions):
        opened, clips = cut(opened, options.packing)
        options = replace(options, packing=clips)
    files = ((item.name, partial(opened.read, item.name)) for item in opened.items)
    options = replace(options, packing=options.packing.completed(files))
    tasks, record = _plan(opened, Path(source), options)
    job = Job(opened, out, options.packing, max(8, len(str(len(opened.items) - 1))), opened.state())
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _lock(out, options):
            if (out / INDEX_NAME).is_file():
                return _finished(job, options, tasks, record)
            return _pack(job, options, tasks, record)
    except OSError as error:
        raise cannot_write(out, error) from None


def shard_size(images: int, raw_bytes: int) -> int:
    """Samples of a shard by the automatic rule.

    About 64 MiB of raw pixels or values, but from 256 to 4096 samples; the number of shards is a multiple of 8 and
    the samples are spread evenly over them, as far as 256 samples a shard allow.

    Args:
        images: samples of the whole set.
        raw_bytes: of one sample, decoded.
    """
    least, most = _SHARD_SAMPLES
    samples = min(max(_SHARD_BYTES // raw_bytes, least), most)
    shards = -(-images // samples)
    shards = -(-shards // _SHARD_MULTIPLE) * _SHARD_MULTIPLE
    shards = min(shards, max(1, images // least))
    return -(-images // shards)


def _plan(source: Source, path: Path, options: PackOptions) -> tuple[list[Task], dict]:
    """The shards to write, and the record of what decides their content."""
    count = len(source.items)
    if options.shuffle:
        order = permutation(options.seed, "pack.order", 0, count)
    else:
        order = np.arange(count)
    packing = options.packing
    size = options.samples_per_shard or shard_size(count, packing.raw_bytes)
    digits = max(5, len(str((count - 1) // size)))
    tasks = [
        Task(f"shard-{number:0{digits}d}", first, [source.items[i] for i in order[first : first + size]])
        for number, first in enumerate(range(0, count, size))
    ]
    decisive = {
        **packing.decisive(), "labels": options.labels, "shuffle": options.shuffle, "seed": options.seed,
        "samples_per_shard": size,
    }
    identity = json.dumps([decisive, source.sha256], sort_keys=True)
    record = {
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "source": Path(os.path.realpath(path)).name,
        f"source_{packing.noun.replace(' ', '_')}": count,
        "source_sha256": source.sha256,
        "options": decisive,
        "versions": {"stylegan_dist": __version__, **packing.libraries()},
    }
    return tasks, record


@contextmanager
def _lock(out: Path, options: PackOptions) -> Iterator[None]:
    """Own `out`, and its work folder, against other packers: the whole of it, or one part beside others of the same number.

    Workers inherit the lock, so it also holds off the shards of a killed packer whose workers are
    about to notice that it is gone.
    """
    work = out / WORK_FOLDER
    there = any(out.iterdir())  # looked for first: another part may be about to begin
    if there and not (work.is_dir() or (out / INDEX_NAME).is_file()):
        raise InputError(f"{out} is not empty and holds no shard set: choose another folder for the shards")
    with contextlib.ExitStack() as held:
        _hold(held, out, out, shared=options.part is not None)
        if options.part and not (out / INDEX_NAME).is_file():
            number, parts = options.part
            work.mkdir(exist_ok=True)
            _hold(held, out, work / f"of-{parts}.lock", shared=True)
            for other in work.glob("of-*.lock"):  # shards would be written twice at a time
                if other.name != f"of-{parts}.lock":
                    with contextlib.ExitStack() as briefly:
                        _hold(briefly, out, other)
            _hold(held, out, work / f"part-{number}.lock")
        if options.overwrite:
            _remove_shard_set(out)
        yield


def _hold(held: contextlib.ExitStack, out: Path, path: Path, shared: bool = False) -> None:
    """Lock a file, made if it is not there, or a folder, for as long as `held`."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    held.callback(os.close, descriptor)
    deadline = time.monotonic() + _LOCK_SECONDS
    while not try_lock(descriptor, needed=False, shared=shared):
        if time.monotonic() > deadline:
            what = "another process" if path == out else "another process, of this part or of another number of parts,"
            raise InputError(f"{what} is packing into {out}: wait for it or choose another folder")
        time.sleep(0.05)


def _remove_shard_set(out: Path) -> None:
    """Remove what `pack` writes and nothing else; the index last, because it marks the folder as ours."""
    packed_with: dict | None = None
    with contextlib.suppress(InputError):  # there is none, or it is damaged
        packed_with = read_index(out).packed_with
    if packed_with is not None and "fingerprint" not in packed_with:
        raise InputError(f"{out} holds an index of shards that other tools made, which are not removed: choose another folder")
    for pattern in ("shard-*.tar", "shard-*.offsets.npy"):
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    (out / STATE_NAME).unlink(missing_ok=True)
    (out / INDEX_NAME).unlink(missing_ok=True)


def _finished(job: Job, options: PackOptions, tasks: Sequence[Task], record: dict) -> DatasetIndex:
    """The index of a finished set, after a look whether it is of this source, as it is now."""
    out = job.out
    try:
        index = load_index(out)
    except InputError as error:
        raise InputError(f"{error}; --overwrite packs everything again") from None
    if index.packed_with.get("fingerprint") != record["fingerprint"]:
        raise _other_set(out)
    known, state = index.packed_with.get("source_content"), job.source.state()
    told = ""
    if not known:
        told = " (an earlier version packed it: only names and sizes of the files were compared)"
    elif kept_state(out) != state:  # perhaps it is only a copy
        if combined(contents_of(job, tasks, options.workers)) != known:
            raise InputError(f"{out} was packed when files of the source held something else, under the same names and sizes: "
                             "pass --overwrite to replace it, or choose another folder for the shards")
        keep_state(out, state)
    print(f"{out} is already packed with these options: {_summary(index)}{told}")
    return index


def _other_set(out: Path) -> InputError:
    return InputError(
        f"{out} holds a shard set of another source or other options: choose another folder, "
        "or pass --overwrite to replace it"
    )


def _pack(job: Job, options: PackOptions, tasks: Sequence[Task], record: dict) -> DatasetIndex | None:
    source, state = job.source, job.state
    number, parts = options.part or (1, 1)
    shards, whole, tasks = len(tasks), sum(len(task.items) for task in tasks), tasks[number - 1::parts]
    results = _resume(job, options, tasks, record["fingerprint"])
    count = sum(len(task.items) for task in tasks)
    # Of the whole set, also where this is a part: whether a set can be packed must not depend on the number of parts.
    allowed = max(1, whole // 100) if options.max_skipped is None else options.max_skipped
    skipped = [entry for result in results.values() for entry in result.skipped]
    if len(skipped) > allowed:
        raise _too_many(skipped, whole, allowed)

    missing = [number for number in range(len(tasks)) if number not in results]
    packed = sum(len(tasks[number].items) for number in results)
    workers = options.workers or available_cores()
    noun = options.packing.noun
    print(f"packing {count} {noun} into {len(tasks)} shards with {workers} worker{'s' * (workers > 1)}" +
          (f" (part {number} of {parts}; the whole has {shards})" if options.part else ""))
    if packed:
        print(f"continuing: {len(results)} shards are finished, {count - packed} {noun} are left")
    with pool.progress_bar(count, "packing", noun, packed) as bar:
        pending = pool.run(
            partial(write_shard, job), [tasks[number] for number in missing], workers, bar, allowed - len(skipped)
        )
        try:
            with closing(pending):
                for slot, result in pending:
                    skipped += result.skipped
                    if result.finished:
                        results[missing[slot]] = result
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted with {len(results)} of {len(tasks)} shards finished: run the same command to continue"
            ) from None
    if len(skipped) > allowed:
        raise _too_many(skipped, whole, allowed)
    if source.state() != state:
        raise InputError("files of the source have changed while it was packed: run the same command again (shards whose files "
                         "are as they were are kept)")
    if options.part:
        print(f"part {number} of {parts} is packed; after all parts, the same command without --part makes the index")
        return None
    return _finish(job, [results[number] for number in range(len(tasks))], record, state)


def _resume(job: Job, options: PackOptions, tasks: Sequence[Task], fingerprint: str) -> dict[int, Written]:
    """Prepare the work folder, and find the shards that are finished, and of the source as it is now: number -> result."""
    work = job.out / WORK_FOLDER
    work.mkdir(exist_ok=True)
    path = work / "plan.json"
    with contextlib.ExitStack() as held:
        _hold(held, job.out, work / "plan.lock")  # parts begin at the same time
        if path.is_file():
            try:
                former = read_record(_Plan, path.read_bytes())
            except ValueError as error:
                raise InputError(f"{path} is damaged ({error}): pass --overwrite to pack everything again") from None
            if former.fingerprint != fingerprint:
                raise _other_set(job.out)
        else:
            write_whole(path, json.dumps(asdict(_Plan(fingerprint))))
    results = {}
    for number, task in enumerate(tasks):
        try:
            result = read_record(Written, (work / f"{task.name}.json").read_bytes())
            if result.shard:
                intact = (job.out / result.shard.name).stat().st_size == result.shard.bytes
                if not intact or not (job.out / result.shard.offsets).is_file():
                    continue
        except (FileNotFoundError, ValueError):  # not finished, or cut short by a power failure
            continue
        if result.content and (result.values is None or result.values.fits):
            results[number] = result
    if doubtful := [number for number, result in results.items() if result.state != job.state]:
        contents = contents_of(job, [tasks[number] for number in doubtful], options.workers)
        lost = 0
        for number, content in zip(doubtful, contents, strict=True):
            record = work / f"{tasks[number].name}.json"
            if results[number].content == content:
                results[number] = replace(results[number], state=job.state)
                write_whole(record, json.dumps(asdict(results[number])))
            else:
                lost += 1
                record.unlink()
                del results[number]
        if lost:
            print(f"{lost} finished shards are packed again, because their files have changed")
    return results


def _finish(job: Job, results: list[Written], record: dict, state: str) -> DatasetIndex:
    out, source, packing = job.out, job.source, job.packing
    shards = [result.shard.placed(str(out), str(out)) for result in results if result.shard]
    skipped = sorted((entry for result in results for entry in result.skipped), key=lambda entry: entry.name)
    if not shards:
        raise InputError(f"none of the {packing.noun} can be read: {_name_some(skipped)}")
    account = deepcopy(source.account)
    account.samples = sum(shard.samples for shard in shards)
    account.leave_out("cannot be read", [entry.name for entry in skipped])
    account.check()
    values = reduce(added, (result.values for result in results))
    counts = None
    if source.classes is not None:
        labels = np.concatenate([load_offsets(shard)[:, 2] for shard in shards])
        counts = np.bincount(labels, minlength=len(source.classes)).tolist()
    resolution, channels = packing.shape
    index = DatasetIndex(
        resolution=resolution, channels=channels, encoding=packing.encoding, classes=source.classes,
        class_counts=counts, shards=shards, skipped=[asdict(entry) for entry in skipped[:_LISTED]], kind=packing.kind(values),
        packed_with={**record, "source_content": combined([result.content for result in results]), "account": account.record()},
    )
    index.save(out)
    keep_state(out, state)
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)

    print(f"{out}: {_summary(index)}")
    print("\n".join(account.lines()))
    if enlarged := sum(result.enlarged for result in results):
        print(f"{enlarged} images were smaller than {packing.resolution} pixels and have been enlarged")
    if cut := sum(result.cut for result in results):
        print(f"sounds that were longer than a clip and have been cut off: {cut}")
    if values and isinstance(index.kind, Array) and not isinstance(index.kind, Clip):
        print(f"values from {min(values.least):g} to {max(values.greatest):g}; training sees (x - offset) / scale with "
              f"offset {_numbers(index.kind.offset)}, scale {_numbers(index.kind.scale)}")
    if skipped:
        print(f"{len(skipped)} files could not be read and are left out ({_LISTED} at most are listed in {INDEX_NAME}):")
        for entry in skipped[:_SHOWN]:
            print(f"  {entry.name!r}: {entry.reason}")
    return index


def _summary(index: DatasetIndex) -> str:
    size = sum(shard.bytes for shard in index.shards)
    classes = f", {index.num_classes} classes" if index.num_classes else ", no classes,"
    return f"{index.num_samples} samples{classes} in {len(index.shards)} shards, {size / 1e6:.1f} MB"


def _numbers(values: Sequence[float]) -> str:
    """The first ones."""
    more = f", ... ({len(values)} numbers)" if len(values) > _NUMBERS else ""
    return ", ".join(f"{value:.6g}" for value in values[:_NUMBERS]) + more


def _name_some(skipped: list[Skipped]) -> str:
    shown = sorted(skipped, key=lambda entry: entry.name)[:_SHOWN]
    return "; ".join(f"{entry.name!r} ({entry.reason})" for entry in shown)


def _too_many(skipped: list[Skipped], count: int, allowed: int) -> InputError:
    return InputError(
        f"at least {len(skipped)} of {count} files cannot be read, {allowed} are allowed: {_name_some(skipped)}. "
        "To go on without them, run again with a larger --max-skipped (finished shards are kept); "
        "after repairing them, run again with --overwrite"
    )
