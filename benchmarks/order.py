"""The order of samples: what finding a sample costs, how well it mixes, and what a cluster fetches for it.

    python benchmarks/order.py [--nodes 64] [--out FILE]

Three tables: the time of a seek and of a sample, of one set and of mixtures; correlations between neighbours in
the order, for several blocks and lanes, beside those of a true permutation; and the shards that the nodes of a
cluster fetch in an epoch and hold, also around its end, counted with real node caches and real (tiny) files,
beside the formulas of docs/streaming.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
from tqdm import tqdm

from stylegan_dist.data.batches import LOCATED_AT_ONCE
from stylegan_dist.data.cache import Blob, NodeCache
from stylegan_dist.data.mixture import MixedOrder
from stylegan_dist.data.order import GlobalOrder

SHARDS, LANES, BLOCK = 100_000, 64, 4096


def speed() -> list[str]:
    """CPU time of a seek to image 10^9 of 100,000 shards, and of each sample after: other work on the machine counts little.

    A reader looks up LOCATED_AT_ONCE images together, however few of each batch are its own.
    """
    layout = np.random.default_rng(0).integers(9_000, 11_000, SHARDS)

    def order(sets: int, seed: int) -> GlobalOrder | MixedOrder:
        orders = [GlobalOrder(layout[part::sets], seed, LANES, BLOCK) for part in range(sets)]
        return orders[0] if sets == 1 else MixedOrder(orders, range(1, sets + 1), seed)

    rows = [f"| {SHARDS:,} shards | seek to image 10^9, ms: median | largest of 15 | us a sample after: 256 of a batch | 8 |",
            "|---|---|---|---|---|"]
    for sets in (1, 2, 8):
        seeks = []
        for seed in range(15):
            began = time.process_time()
            order(sets, seed).places(10**9 + np.arange(256))
            seeks.append(time.process_time() - began)
        each = []
        for count in (256, 8):
            walked, calls, batches = order(sets, 0), 800, LOCATED_AT_ONCE // count
            walked.places(10**9 + np.arange(256))
            own = 256 * np.arange(batches)[:, None] + np.arange(count)
            began = time.process_time()
            for call in range(calls):
                walked.places((10**9 + 256 * batches * call + own).ravel()).tolist()
            each.append((time.process_time() - began) / calls / LOCATED_AT_ONCE)
        name = "one set" if sets == 1 else f"{sets} sets, mixed"
        rows.append(f"| {name} | {1e3 * np.median(seeks):.1f} | {1e3 * max(seeks):.1f} | "
                    f"{1e6 * each[0]:.2f} | {1e6 * each[1]:.2f} |")
    return [*rows, "", "Batches of 256 images. Permutations of new blocks are included."]


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
        places = (order.places(np.arange(n)) @ [per_shard, 1]).astype(np.float64)
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

    def demand_at_end(self) -> float:
        """Around the end of an epoch: the next one begins in other shards, and a short last block brings in a third one."""
        short = self.shards * self.per_shard // self.lanes % self.block > 0
        return self.lanes_of_node() * ((2 + short) * self.block / self.per_shard + 2)


class Traffic(NamedTuple):
    """What nodes fetch and hold, in shards."""

    fetched: float     # per node, in the first epoch
    held: int          # at most, while nothing of the next epoch is fetched
    held_at_end: int   # at most, from then on, into the next epoch
    late: int          # read from in a slot and not there when it began, but for the first slot


def simulate(cluster: Cluster, folder: Path, nodes: int, limit: float = 1.0) -> Traffic:
    """One epoch and the beginning of the next of some of a cluster's nodes, with real caches on real files of a byte a sample.

    Args:
        folder: for the caches.
        nodes: how many of the nodes are simulated.
        limit: size of the caches, in units of what the formulas demand.
    """
    files = fsspec.filesystem("memory")
    blobs = []
    for shard in range(cluster.shards):
        content = shard.to_bytes(8, "big").ljust(cluster.per_shard, b"\0")
        files.pipe_file(f"/order/{shard}", content)
        blobs.append(Blob(f"memory://order/{shard}", len(content), ""))
    order = GlobalOrder([cluster.per_shard] * cluster.shards, 0, cluster.lanes, cluster.block)
    count = cluster.batch // (cluster.nodes * cluster.ranks)
    slot_images, epoch = cluster.block * cluster.lanes, order.num_samples
    begins = [-(-nimg // cluster.batch) * cluster.batch for nimg in range(0, epoch, slot_images)]
    begins = [begin for begin in begins if begin < epoch]
    begins.append(-(-epoch // cluster.batch) * cluster.batch)
    fetched = late = 0
    most = [0, 0]
    chosen = np.linspace(0, cluster.nodes - 1, nodes).astype(int).tolist()
    for node in tqdm(chosen, desc="nodes", disable=None):
        cache = NodeCache(folder / str(node), 0)
        ranks = range(node * cluster.ranks, (node + 1) * cluster.ranks)
        held: dict[int, int] = {}
        reads = [_shards(order, begin, cluster.batch, ranks, count, 0) for begin in begins]
        for number, begin in enumerate(begins):
            at_end = order.slots_from(begin, cluster.batch, 1)[1] >= order.slot(epoch)
            cache.limit = int(limit * (cluster.demand_at_end() if at_end else cluster.demand()) * cluster.per_shard)
            now, in_epoch = reads[number], set().union(*reads[number:-1])
            for shard in set(held) - set(now):
                os.close(held.pop(shard))
            for shard in _shards(order, begin, cluster.batch, ranks, count, 1):
                present = (cache.folder / blobs[shard].key).exists()
                fetched += not present and shard in in_epoch
                late += not present and shard in now and begin > 0
                if shard in now and shard not in held:
                    held[shard] = cache.open(blobs[shard])
                else:
                    cache.fetch(blobs[shard])
            most[at_end] = max(most[at_end], sum(entry.name != "lock" for entry in os.scandir(cache.folder)))
        for file in held.values():
            os.close(file)
    files.rm("/order", recursive=True)
    return Traffic(fetched / nodes, *most, late)


def _shards(order: GlobalOrder, nimg: int, batch: int, ranks: range, count: int, ahead: int) -> dict[int, None]:
    """What the ranks of a node read from."""
    return dict.fromkeys(shard for rank in ranks for shard in order.working_set(nimg, batch, rank * count, count, ahead))


def traffic(nodes: int) -> list[str]:
    """What nodes fetch in an epoch, for lanes that keep nodes apart and for lanes that do not."""
    rows = ["| nodes | lanes | block | cache / demand | fetched per node | formula | share of the set | held | formula "
            "| at the end | formula | late |", "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for lanes, block, limit in ((8 * nodes, 128, 1.0), (8 * nodes, 128, 1.5), (8 * nodes, 96, 1.0), (64, 128, 1.0)):
        cluster = Cluster(nodes=nodes, ranks=8, batch=8 * nodes, lanes=lanes, block=block, shards=4096, per_shard=64)
        with tempfile.TemporaryDirectory() as folder:
            found = simulate(cluster, Path(folder), min(nodes, 4 if lanes == 64 else nodes), limit)
        rows.append(f"| {nodes} | {lanes} | {block} | {limit:g} | {found.fetched:.1f} | {cluster.fetches():.1f} | "
                    f"{found.fetched / cluster.shards:.1%} | {found.held} | {cluster.demand():.0f} | {found.held_at_end} | "
                    f"{cluster.demand_at_end():.0f} | {found.late} |")
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
