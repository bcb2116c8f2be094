"""What `index.json` may hold: the fields of shards/FORMAT.md with their types and ranges, checked as they are read."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Array, declared
from stylegan_dist.kinds.base import RESOLUTIONS
from stylegan_dist.records import Count, Digest, parse_json, read_record, shorten

FORMAT = "stylegan-dist-shards"
VERSION = 1
_HEADER = 512         # bytes before each member of a tar file
# Bytes of a name that are not UTF-8, as Python writes them and JSON does not have them; earlier versions did.
_LONE = re.compile(rb"(?<!\\u[dD][89abAB]..)(?<!\\)\\u(dc[89a-f].)")
_Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class ShardRecord:
    """One tar file of the set."""

    name: _Text                     # file name, relative to the place of the shards
    samples: Count
    bytes: Count                    # size of the tar file
    sha256: Digest | Literal[""]    # of the tar file
    offsets: _Text                  # name of the .npy file: int64 [samples, 3] = payload offset, payload bytes, class
    offsets_sha256: Digest

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class IndexRecord:
    """The whole file. What has a default may be left out, or null."""

    format: str
    version: int
    num_samples: Count
    resolution: int
    channels: int
    encoding: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,16}$")]
    classes: list[str] | None
    class_counts: list[Count] | None
    shards: list[ShardRecord]
    packed_with: dict[str, Any] | None = None
    skipped: list[dict[str, Any]] | None = None
    shards_at: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    array: Array | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def read_index_file(text: bytes, path: str) -> IndexRecord:
    """The content of an `index.json`, all fields in range and in agreement with each other.

    Args:
        path: for messages.
    Raises:
        ValueError: one line that says what is wrong.
        InputError: it is a file of another kind or version.
    """
    if b"\\udc" in text:
        text = _LONE.sub(rb"\\\\u\1", text)
    try:
        record = read_record(IndexRecord, text)
    except ValueError:
        with contextlib.suppress(ValueError):  # not even JSON: the first error says more
            content = parse_json(text)
            if isinstance(content, dict):
                _check_kind(content.get("format"), content.get("version"), path)
        raise
    _check_kind(record.format, record.version, path)
    _check(record)
    return record


def _check_kind(format: object, version: object, path: str) -> None:
    if format != FORMAT:
        raise InputError(f"{path} is not a shard index of this program; pack the data again")
    if version != VERSION:
        raise InputError(f"{path} has format version {shorten(version)}, this program reads {VERSION}; pack the data again")


def _check(record: IndexRecord) -> None:
    """Whether the fields fit together. Raises ValueError."""
    if record.resolution not in RESOLUTIONS:
        raise ValueError(f"no samples of {shorten(record.resolution)} pixels exist here")
    declared(record.array).check(record.resolution, record.channels)
    held = sum(shard.samples for shard in record.shards)
    if record.num_samples != held or held < 1:
        raise ValueError(f"it promises {record.num_samples} samples, its shards hold {held}")
    if sum(shard.bytes for shard in record.shards) >= 2**63:
        raise ValueError("its shards promise more bytes than any storage has")
    for shard in record.shards:
        if shard.samples * _HEADER > shard.bytes:
            raise ValueError(f"{shorten(shard.name)} cannot hold {shard.samples} samples in {shard.bytes} bytes")
    classes, counts = len(record.classes or ()), len(record.class_counts or ())
    if classes != counts:
        raise ValueError(f"{classes} classes with {counts} class_counts")
