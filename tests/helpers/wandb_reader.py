"""Reading back what an offline W&B run has recorded.

A `.wandb` file is a 7-byte header, then a LevelDB log: blocks of 32 KiB holding chunks of (checksum uint32, length
uint16, type uint8, bytes). A record is one chunk (type 1) or first, middle and last chunks (types 2, 3, 4); the first
block is shorter by the header; fewer than 7 bytes left in a block are padding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
FILE_HEADER = 7
CHUNK_HEADER = 7
FULL, LAST = 1, 4


@dataclass
class OfflineRun:
    """One segment of a run, that is, one process."""

    folder: Path
    run_id: str = ""
    project: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    group: str = ""
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)    # one dict a step; "_step" is W&B's step
    metrics: dict[str, str] = field(default_factory=dict)  # name or glob of define_metric -> its step metric
    summaries: dict[str, set[str]] = field(default_factory=dict)  # name -> what the summary has of it: "min", "last", ...
    artifacts: list[dict] = field(default_factory=list)  # name, aliases, references
    alerts: list[tuple[str, str]] = field(default_factory=list)  # title, text
    preempting: bool = False
    exit_code: int | None = None

    def values(self, name: str) -> dict[int, object]:
        """Step -> value of one metric, where it was logged."""
        return {row["_step"]: row[name] for row in self.history if name in row}

    def image_path(self, name: str, step: int) -> Path:
        """The file of a picture logged with `wandb.Image`."""
        return self.folder / "files" / self.values(name)[step]["path"]


def read_offline_runs(run_dir: Path) -> list[OfflineRun]:
    """All offline segments below RUN_DIR/wandb, in order of start."""
    return [read_offline_run(path) for path in sorted(Path(run_dir).glob("wandb/offline-run-*/*.wandb"))]


def read_offline_run(path: Path) -> OfflineRun:
    """Read one `.wandb` file."""
    run = OfflineRun(folder=Path(path).parent)
    for data in _records(Path(path).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
            run.tags, run.notes, run.group = list(record.run.tags), record.run.notes, record.run.run_group
            run.config.update(_items(record.run.config.update))
        elif kind == "config":
            run.config.update(_items(record.config.update))
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            run.metrics[name] = record.metric.step_metric
            run.summaries[name] = {goal.name for goal, wanted in record.metric.summary.ListFields() if wanted}
        elif kind == "artifact":
            run.artifacts.append({"name": record.artifact.name, "aliases": set(record.artifact.aliases),
                                  "references": [entry.ref for entry in record.artifact.manifest.contents]})
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text))
        elif kind == "preempting":
            run.preempting = True
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items) -> dict:
    """Key -> value; a dict that was logged, such as a picture, arrives as one item for each of its entries."""
    result: dict = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)
    return result


def _records(data: bytes) -> Iterator[bytes]:
    position, parts = FILE_HEADER, []
    while position + CHUNK_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += CHUNK_HEADER
        parts.append(data[position:position + length])
        position += length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
