"""Labels for a shard set: the clusters of its samples in the space of a feature network.

k-means finds the centres in the features of a sample of the set, which are kept like those of an evaluation. A second pass
over the other samples finds the nearest centre of each. The result depends on the data, the network and the options alone, and
not on the number of ranks: features by number, the centres on rank 0, all sums in a fixed order.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stylegan_dist.clusters.kmeans import Clusters, kmeans, nearest
from stylegan_dist.config.schema import DataConfig
from stylegan_dist.data.batches import BatchDataset
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.passes import new_folder
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache, working_set
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.reals import BLOCK, LANES, RealSamples
from stylegan_dist.evaluation.samples import BATCH, check_takes, gather_rows, in_memory, pictures_for
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.making.relabel import place_of_shards, write_relabelled
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.ranks import Ranks
from stylegan_dist.training.pictures import SMALL_SIDE, small_pictures

SHEET = "clusters.png"
SHEET_ROWS, SHEET_COLUMNS = 100, 10  # clusters with a row, the largest ones; samples of a row


@dataclass(frozen=True)
class LabelOptions:
    """How samples get labels.

    Attributes:
        clusters: K.
        sample: samples that decide the centres, at most.
        seed: of the first centres.
        replace: take data that has labels.
    """

    clusters: int
    sample: int = 50_000
    seed: int = 0
    replace: bool = False


class Found(NamedTuple):
    """The clusters, the largest first.

    Attributes:
        sizes: int64 [K], samples of each.
        labels: int64 [n], of each sample by its number in the order of the data; of those that decided the centres alone, where
            no more was asked for.
        distances: float32 [n], squared, from its centre.
        origin: for the record.
        explained: the share of the variance of the features that the clusters explain, of those that decided the centres.
    """

    sizes: Tensor
    labels: Tensor
    distances: Tensor
    origin: dict
    explained: float


class Labeller:
    """Finds clusters. All ranks make one, and call `find` together.

    Raises:
        InputError: the data or the network cannot be used, or not for so many clusters. All ranks raise it.
    """

    def __init__(self, data: str, network: Callable[[], FeatureNetwork], options: LabelOptions, ranks: Ranks):
        self.options, self.ranks = options, ranks
        self.index: DatasetIndex = ranks.together(lambda: _checked(data, options))
        self.network: FeatureNetwork = ranks.together(network)
        ranks.together(lambda: check_takes(self.network, self.index))
        self.plan = StreamPlan(0, LANES, BLOCK, BATCH * ranks.world_size, ranks.rank, ranks.world_size)
        size = working_set(self.index, self.plan, range(ranks.world_size), steps=1)
        self.cache: NodeCache | None = ranks.together(lambda: open_cache("auto", DataConfig().cache_gb, self.index, size))

    def find(self, everything: bool = True) -> Found | None:
        """The clusters, on rank 0.

        Args:
            everything: label all samples, not only those that decide the centres.
        Raises:
            InputError: the data cannot be read, or fewer samples differ than there are clusters.
        """
        index, ranks, options = self.index, self.ranks, self.options
        count = min(options.sample, index.num_samples)
        with self._bar(count, "features") as progress:
            features = RealSamples(index, self.cache, ranks, progress).features(count, self.network).features
        with self._bar(None, "k-means rounds") as progress:
            found: Clusters | None = ranks.on_main_at_length(lambda: in_memory(
                partial(kmeans, features.to(ranks.device), options.clusters, options.seed, progress=progress)))
        centres = torch.zeros(options.clusters, self.network.dimensions, dtype=torch.float64, device=ranks.device)
        if found is not None:
            centres.copy_(found.centres)
        ranks.sum(centres)
        rows = _nearest(features.to(ranks.device), centres).cpu()
        if everything:
            rows = torch.cat([rows, self._others(count, centres)])
        return None if found is None else self._sorted(rows, features, found)

    def _others(self, count: int, centres: Tensor) -> Tensor:
        """As `_nearest`, of all samples but the first ones in the order of the data."""
        index, ranks, network = self.index, self.ranks, self.network
        plan = replace(self.plan, start=count)
        stream = BatchStream(index, plan, ReaderOptions(workers=0), self.cache)
        try:
            def compute(first: int, length: int) -> Tensor:
                samples = index.kind.to_network(next(stream)["sample"].to(ranks.device))
                return _nearest(network(pictures_for(network, index.kind, samples)), centres)[:length]

            with self._bar(index.num_samples - count, "labels") as progress:
                return gather_rows(index.num_samples - count, 2, compute, ranks, progress)
        finally:
            stream.close()

    def _sorted(self, rows: Tensor, features: Tensor, found: Clusters) -> Found:
        """Clusters by falling size; of equal ones as k-means has found them."""
        options, network = self.options, self.network
        sizes, order = torch.bincount(rows[:, 0].long(), minlength=options.clusters).sort(descending=True, stable=True)
        variance = float(features.double().var(0, unbiased=False).sum())
        origin = {"method": "k-means", "clusters": options.clusters, "features": network.name,
                  "features_sha256": network.sha256, "resize": network.resize, "sample": len(features), "seed": options.seed,
                  "rounds": found.rounds, "mean_squared_distance": found.inertia, "data": self.index.fingerprint}
        return Found(sizes, order.argsort()[rows[:, 0].long()], rows[:, 1], origin,
                     1 - found.inertia / variance if variance else 0.0)

    @contextlib.contextmanager
    def _bar(self, total: int | None, what: str) -> Iterator[Callable[..., object]]:
        with tqdm(total=total, unit="img" if total else "", desc=what, disable=None if self.ranks.is_main else True,
                  leave=False) as bar:
            yield bar.update

    def save(self, found: Found, folder: Path) -> DatasetIndex:
        """Write the set with its new labels, and a picture of the clusters. On rank 0.

        Raises:
            InputError: the folder cannot be written.
        """
        index = self.index
        places = order_of(index, self.plan).places(np.arange(index.num_samples))
        labels = [np.empty(shard.samples, np.int64) for shard in index.shards]
        by_shard = places[:, 0].argsort(kind="stable")
        ends = np.cumsum([0, *map(len, labels)])
        for numbers, begin, end in zip(labels, ends[:-1], ends[1:], strict=True):
            numbers[places[by_shard[begin:end], 1]] = found.labels.numpy()[by_shard[begin:end]]
        self._draw(found, folder)
        return write_relabelled(index, labels, self.options.clusters, found.origin, folder)

    def _draw(self, found: Found, folder: Path) -> None:
        """A row for each cluster: the samples that are nearest to its centre, the nearest first."""
        index, images, captions = self.index, [], []
        dataset = BatchDataset(ShardReader(index, self.cache), self.plan)
        by_distance = np.lexsort((found.distances.numpy(), found.labels.numpy()))
        starts = (found.sizes.cumsum(0) - found.sizes).tolist()
        try:
            for label, (start, size) in enumerate(zip(starts, found.sizes.tolist(), strict=True)):
                if label == SHEET_ROWS or not size:
                    break
                shown = by_distance[start:start + min(size, SHEET_COLUMNS)].tolist()
                samples = index.kind.to_network(torch.stack([dataset.single(number) for number in shown]))
                pictures = small_pictures(index.kind, samples, SMALL_SIDE)
                black = torch.zeros_like(pictures[:1]).expand(SHEET_COLUMNS - len(shown), -1, -1, -1)
                images.append(torch.cat([pictures, black]))
                captions += [f"{label}: {size:,}", *[""] * (SHEET_COLUMNS - 1)]
        finally:
            dataset.reader.close()
        try:
            save_grid(folder / SHEET, torch.cat(images), SHEET_COLUMNS, captions, f"Clusters: {json.dumps(found.origin)}")
        except OSError as error:
            raise InputError(f"cannot write {folder / SHEET}: {error.strerror or error}; choose another folder with "
                             "--out") from None


def label(data: str | os.PathLike, out: str | os.PathLike | None, network: Callable[[], FeatureNetwork], options: LabelOptions,
          ranks: Ranks) -> Found | None:
    """Make a set of the same shards with other labels. All ranks must call it; returns the clusters on rank 0.

    Args:
        data: one shard set: a folder or a URL.
        out: new or empty folder of the new set; None: only find the clusters of a sample.
        network: opens the feature network on this rank's device.
    Raises:
        InputError: as `Labeller` and `new_folder`.
    """
    labeller = Labeller(os.fspath(data), network, options, ranks)
    folder = ranks.on_main(lambda: None if out is None else new_folder(Path(out), " with --out"))
    found = labeller.find(everything=out is not None)
    if out is not None:
        ranks.on_main_at_length(lambda: labeller.save(found, folder))  # type: ignore[arg-type]
    return found


def _checked(data: str, options: LabelOptions) -> DatasetIndex:
    index = load_index(data)
    if index.parts:
        raise InputError(f"{data} names several sets: label one, or pack them together")
    if index.classes and not options.replace:
        raise InputError(f"{data} has labels already, of {index.num_classes} classes: give --replace for a set with others; "
                         "this one stays as it is")
    least = min(options.sample, index.num_samples)
    if options.clusters > least:
        what = f"has {index.num_samples} samples" if least == index.num_samples else f"gives {least} to decide (--sample)"
        raise InputError(f"--clusters {options.clusters} is too many: {data} {what}")
    place_of_shards(index)
    return index


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Label and squared distance of each sample: float32 [n, 2], exact for the label."""
    labels, distances = nearest(features, centres)
    return torch.stack([labels.float(), distances.float()], 1)
