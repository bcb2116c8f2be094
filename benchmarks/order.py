"""The order of samples: what finding a sample costs, how well it mixes, and what a cluster fetches for it.

    python benchmarks/order.py [--nodes 64] [--out FILE]

Three tables: the time of a seek and of a sample; correlations between neighbours in the order, for several
blocks and lanes, beside those of a true permutation; and the shards that the nodes of a cluster fetch in an
epoch, counted with real node caches and real (tiny) files, beside the formulas of docs/streaming.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from tqdm import tqdm

from stylegan_dist.data.cache import Blob, NodeCache
from stylegan_dist.data.order import GlobalOrder

SHARDS, LANES, BLOCK = 100_000, 64, 4096


def speed() -> list[str]:
    """CPU time of a seek to image 10^9 of 100,000 shards, and of each sample after: other work on the machine counts little."""
    layout = np.random.default_rng(0).integers(9_000, 11_000, SHARDS)
    seeks = []
    for seed in range(9):
        began = time.process_time()
        GlobalOrder(layout, seed, LANES, BLOCK).locate(10**9, 256)
        seeks.append(time.process_time() - began)
    order, count = GlobalOrder(layout, 0, LANES, BLOCK), 400_000
    order.locate(10**9, 256)
    began = time.process_time()
    for first in range(10**9, 10**9 + count, 256):
        order.locate(first, 256)
    each = (time.process_time() - began) / count
    return [f"seek to image 10^9 of {SHARDS:,} shards: {1e3 * np.median(seeks):.1f} ms (largest of 9: {1e3 * max(seeks):.1f})",
            f"a sample after that, permutations of new blocks included: {1e6 * each:.2f} us"]


def mixing() -> list[str]:
    """How much neighbours in the order know of each other, in sets that were sorted and packed without shuffling.

    A sample's value is its place in the sorted set, so neighbours of the disk are alike. `lag 1`: correlation
    between an image and the next one; `lag L`: and the next one of the same lane; `batch`: variance of the means
    of batches of 64, in units of that of a true permutation (1 is perfect, more is lumpy, less is stratified).
    """
    per_shard, shards = 1000, 256
    n = per_shard * shards
    rows = ["| lanes | block | lag 1 | lag L | batch | shards under a block |", "|---|---|---|---|---|---|"]
    for lanes, block in itertools.product((16, 64, 256), (64, 1024, 4096)):
        order = GlobalOrder([per_shard] * shards, 1, lanes, block)
        places = np.array([shard * per_shard + sample for shard, sample in order.locate(0, n)], dtype=np.float64)
        rows.append(_mixing_row(f"{lanes} | {block}", places, lanes, f"{block / per_shard + 1:.1f}"))
    true = np.random.default_rng(0).permutation(n).astype(np.float64)
    rows.append(_mixing_row("true | permutation", true, 64, ""))
    return [*rows, f"(noise of a correlation: {1 / np.sqrt(n):.4f})"]


def _mixing_row(name: str, places: np.ndarray, lanes: int, shards: str) -> str:
    def correlation(lag: int) -> float:
        return float(np.corrcoef(places[:-lag], places[lag:])[0, 1])

    means = places[:len(places) // 64 * 64].reshape(-1, 64).mean(1)
    ratio = means.var() / (places.var() / 64)
    return f"| {name} | {correlation(1):+.4f} | {correlation(lanes):+.4f} | {ratio:.2f} | {shards} |"


@dataclass(frozen=True)
class Cluster:
    """A cluster that trains on `shards` shards of `per_shard` samples."""

    nodes: int
    ranks: int      # of a node
    batch: int
    lanes: int
    block: int
    shards: int
    per_shard: int

    def lanes_of_node(self) -> int:
        """Where the lanes divide the batch, or are a multiple of it, so that ranks stay in their lanes."""
        return min(self.lanes, max(self.lanes, self.batch) // self.nodes)

    def fetches(self) -> float:
        """Shards that a node fetches in an epoch: those of its lanes, and one more where a lane begins inside one."""
        return self.lanes_of_node() * (self.shards / self.lanes + 1)

    def demand(self) -> float:
        """Shards that a node's cache holds at once: two blocks of each of its lanes, begun anywhere inside a shard."""
        return self.lanes_of_node() * (2 * self.block / self.per_shard + 1)


def simulate(cluster: Cluster, folder: Path, nodes: int, limit: float = 1.0) -> tuple[float, float]:
    """One epoch of some of a cluster's nodes with real caches on real files of one byte a sample.

    Args:
        folder: for the caches.
        nodes: how many of the nodes are simulated.
        limit: size of the caches, in units of what the formula demands.
    Returns: shards fetched per node, and the most that a node held.
    """
    files = fsspec.filesystem("memory")
    blobs = []
    for shard in range(cluster.shards):
        content = shard.to_bytes(8, "big").ljust(cluster.per_shard, b"\0")
        files.pipe_file(f"/order/{shard}", content)
        blobs.append(Blob(f"memory://order/{shard}", len(content), ""))
    order = GlobalOrder([cluster.per_shard] * cluster.shards, 0, cluster.lanes, cluster.block)
    count = cluster.batch // (cluster.nodes * cluster.ranks)
    slot_images = cluster.block * cluster.lanes
    fetched, most = 0, 0
    chosen = np.linspace(0, cluster.nodes - 1, nodes).astype(int).tolist()
    for node in tqdm(chosen, desc="nodes", disable=None):
        cache = NodeCache(folder / str(node), int(limit * cluster.demand() * cluster.per_shard))
        ranks = range(node * cluster.ranks, (node + 1) * cluster.ranks)
        held: dict[int, int] = {}
        for nimg in range(0, order.num_samples, slot_images):
            begin = -(-nimg // cluster.batch) * cluster.batch
            if begin >= order.num_samples:
                break
            now, then = (dict.fromkeys(shard for rank in ranks
                                       for shard in order.working_set(begin, cluster.batch, rank * count, count, ahead))
                         for ahead in (0, 1))
            for shard in set(held) - set(now):
                os.close(held.pop(shard))
            last = begin + slot_images >= order.num_samples  # the next epoch is not counted
            for shard in now if last else then:
                present = (cache.folder / blobs[shard].key).exists()
                fetched += not present
                if shard in now and shard not in held:
                    held[shard] = cache.open(blobs[shard])
                elif not present:
                    cache.fetch(blobs[shard])
            most = max(most, sum(entry.name != "lock" for entry in os.scandir(cache.folder)))
        for file in held.values():
            os.close(file)
    files.rm("/order", recursive=True)
    return fetched / nodes, most


def traffic(nodes: int) -> list[str]:
    """What nodes fetch in an epoch, for lanes that keep nodes apart and for lanes that do not."""
    rows = ["| nodes | lanes | cache / demand | fetched per node | formula | share of the set | held | formula |",
            "|---|---|---|---|---|---|---|---|"]
    for lanes, limit in ((8 * nodes, 1.0), (8 * nodes, 1.5), (64, 1.0)):
        cluster = Cluster(nodes=nodes, ranks=8, batch=8 * nodes, lanes=lanes, block=128, shards=4096, per_shard=64)
        with tempfile.TemporaryDirectory() as folder:
            fetched, held = simulate(cluster, Path(folder), min(nodes, 4 if lanes == 64 else nodes), limit)
        rows.append(f"| {nodes} | {lanes} | {limit:g} | {fetched:.1f} | {cluster.fetches():.1f} | "
                    f"{fetched / cluster.shards:.1%} | {held} | {cluster.demand():.0f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64, help="of the simulated cluster (default 64)")
    parser.add_argument("--out", type=Path, help="write the tables here, too")
    args = parser.parse_args()
    text = "\n".join(["## Finding a sample", "", *speed(), "", "## Mixing", "", *mixing(), "", "## Traffic of a cluster", "",
                      *traffic(args.nodes)])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
