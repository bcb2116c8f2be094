"""Features and labels of the real samples, computed once for a set, a network and a count, and kept on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.evaluation.samples import BATCH, gather_rows, pictures_for
from stylegan_dist.evaluation.scores import Rows
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.files import replacing
from stylegan_dist.kinds.scores import SampleMetric
from stylegan_dist.metrics import gather_features
from stylegan_dist.private import user_folder
from stylegan_dist.ranks import Ranks

LANES, BLOCK = 64, 128  # of the order in which they are read; a part of a set is a fair sample of it


@dataclass(frozen=True)
class RealSamples:
    """The real samples of a set in a shuffled order, not flipped. All ranks must call its methods, and get all rows.

    Both raise InputError where the data cannot be read, and Stopped where a rank was asked to stop.

    Attributes:
        progress, stop: as of `gather_rows`.
    """

    index: DatasetIndex
    cache: NodeCache | None
    ranks: Ranks
    progress: Callable[[int], object]
    stop: Callable[[], bool] = lambda: False

    def features(self, count: int, network: FeatureNetwork) -> Rows:
        """Of the first n = min(count, samples of the set); on the CPU."""
        index, ranks, count = self.index, self.ranks, min(count, self.index.num_samples)
        key = {"data": index.fingerprint, "count": count, "network": network.sha256, "resize": network.resize, "version": 2}
        width = network.dimensions + 1  # the label is the last number of a row
        kept = ranks.on_main(lambda: _load(key, count, width))
        if ranks.broadcast(kept is not None):
            mine = torch.empty(0, width) if kept is None else kept
            return _rows(gather_features(mine.to(ranks.device), 0, count, ranks).cpu(), index)

        def describe(samples: Tensor, labels: Tensor) -> Tensor:
            features = network(pictures_for(network, index.kind, samples))
            return torch.cat([features, labels.to(features)[:, None]], 1)

        found = self._gather(count, width, describe)
        ranks.on_main(lambda: _save(key, found))
        return _rows(found, index)

    def rows(self, metric: SampleMetric) -> Tensor:
        """`SampleMetric.rows` of the first samples, as many as the metric needs; on the CPU."""
        index = self.index
        count, width = min(metric.most_real, index.num_samples), metric.width(index.resolution, index.channels)
        return self._gather(count, width, lambda samples, labels: metric.rows(samples))

    def _gather(self, count: int, width: int, describe: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """describe(samples in the network's range, labels) of the first samples, [count, width]."""
        kind, ranks = self.index.kind, self.ranks
        plan = StreamPlan(0, LANES, BLOCK, BATCH * ranks.world_size, ranks.rank, ranks.world_size)
        stream = BatchStream(self.index, plan, ReaderOptions(workers=0), self.cache)
        try:
            def compute(first: int, length: int) -> Tensor:
                batch = next(stream)
                return describe(kind.to_network(batch["sample"].to(ranks.device)), batch["label"])[:length]

            return gather_rows(count, width, compute, ranks, self.progress, self.stop)
        finally:
            stream.close()


def _rows(found: Tensor, index: DatasetIndex) -> Rows:
    return Rows(found[:, :-1].contiguous(), found[:, -1].long() if index.num_classes else None)


def _place(key: dict) -> Path | None:
    folder, name = user_folder("reals"), hashlib.sha256(_text(key).encode()).hexdigest()
    return folder and folder / f"{name}.safetensors"


def _text(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


def _load(key: dict, count: int, width: int) -> Tensor | None:
    path = _place(key)
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        if path and path.is_file():
            with safe_open(path, framework="pt") as file:
                if file.metadata() == {"key": _text(key)}:
                    found = file.get_tensor("rows")
                    if found.shape == (count, width) and found.dtype == torch.float32 and bool(found.isfinite().all()):
                        return found
    return None


def _save(key: dict, rows: Tensor) -> None:
    path = _place(key)
    with contextlib.suppress(OSError, SafetensorError):  # the next evaluation computes them again
        if path:
            with replacing(path) as temporary:
                save_file({"rows": rows}, temporary, {"key": _text(key)})
