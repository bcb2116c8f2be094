"""Generated samples beside the real ones that are nearest to them in the space of features: are they copies?

A sample is *near* its nearest real one r if it is at most 3/4 as far away as r is from its own nearest other real sample. With
the whole of that distance instead (authenticity, Alaa et al. 2022), a third of the held-out real samples of a data set are near
others: they are no copies. Of the same share of real samples among themselves, which stands beside, nothing follows; of a much
larger one, that the generator repeats its data. Few copies are proof: a network of features may not see what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stylegan_dist.data.batches import BatchDataset
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader, blobs
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.reals import BLOCK, LANES
from stylegan_dist.evaluation.samples import BATCH, GeneratedSamples, in_memory
from stylegan_dist.metrics import nearest_others, nearest_samples
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.networks.generator import Generator
from stylegan_dist.training.pictures import LARGEST_SIDE, small_pictures
from stylegan_dist.training.run_folder import PICTURES_NAME
from stylegan_dist.training.snapshot import Snapshot

NAME = f"{PICTURES_NAME}/neighbours.png"
NEIGHBOURS = 5         # of each sample that is shown
FIRST, NEAREST = 5, 5  # samples that are shown: the first ones, and those that are nearest to a real one
NEAR = 0.75            # of the distance from a real sample to its nearest other one
ALARM = 0.05           # more than of real samples: a person is told
MOST_FETCHED = 1 << 31  # bytes of remote shards for one picture


class Neighbours:
    """Draws RUN/evaluation/neighbours.png after an evaluation. On rank 0.

    Args:
        index, cache: of the real samples.
        seed: of the generated ones.
        counts: samples of each class in the data; None: no classes.
        say: receives a line for people.
    """

    def __init__(self, run_dir: Path, index: DatasetIndex, cache: NodeCache | None, seed: int, counts: Sequence[int] | None,
                 say: Callable[[str], None]):
        self.path, self.index, self.cache, self.seed, self.counts, self.say = run_dir / NAME, index, cache, seed, counts, say
        self._reals: tuple[Tensor, float] | None = None

    def show(self, snapshot: Snapshot, real: Tensor, generated: Tensor) -> None:
        """Draw the picture, which says how many samples are near a real one. Too many are a warning, and so is what goes wrong.

        Args:
            snapshot: the generator.
            real, generated: features float32 [n, d] and [m, d], as `Evaluator` computes them.
        """
        try:
            in_memory(self._show, snapshot, real, generated)
        except (InputError, OSError) as error:
            self.say(f"WARNING: no picture of nearest neighbours: {error}")

    def _show(self, snapshot: Snapshot, real: Tensor, generated: Tensor) -> None:
        device = next(snapshot.generator.parameters()).device
        real, generated = real.to(device), generated.to(device)
        if self._reals is None:
            self._reals = _reals_among_themselves(real)
        radii, reals_share = self._reals
        distances, names = nearest_samples(generated, real, min(NEIGHBOURS, len(real)))
        near = is_near(distances[:, 0], radii[names[:, 0]])
        share = float(near.double().mean())
        text = (f"{int(near.sum()):,} of {len(near):,} samples ({share:.1%}) are much nearer to a real one than that is to "
                f"other real ones; of real samples {reals_share:.1%} are")
        self._draw(snapshot, distances.sqrt().cpu(), names.cpu(), near.cpu(), f"At {snapshot.nimg / 1000:g} kimg. {text}.")
        if share - reals_share > ALARM + 2 / len(near)**0.5:  # four standard errors at most
            self.say(f"WARNING: at {snapshot.nimg / 1000:g} kimg the generator repeats its data: {text}; see {self.path}")

    def _draw(self, snapshot: Snapshot, distances: Tensor, names: Tensor, near: Tensor, about: str) -> None:
        device, kind = next(snapshot.generator.parameters()).device, snapshot.kind
        dataset = BatchDataset(ShardReader(self.index, self.cache), StreamPlan(0, LANES, BLOCK, 1))
        images, captions, fetched = [], [], _Fetched(self.index)
        try:
            for number in shown_samples(distances[:, 0]):
                if fetched.add(dataset.order.places(names[number].sort().values.numpy())[:, 0].tolist()) > MOST_FETCHED:
                    break
                sample = self._sample(snapshot.generator, number, len(distances), device)
                images.append(small_pictures(kind, sample, LARGEST_SIDE))
                captions.append(f"{number}{' copied?' if near[number] else ''}")
                for distance, name in zip(distances[number].tolist(), names[number].tolist(), strict=True):
                    real = self.index.kind.to_network(dataset.single(name)[None])
                    images.append(small_pictures(self.index.kind, real, LARGEST_SIDE))
                    captions.append(f"{distance:.3g}")
        finally:
            dataset.reader.close()
        if not images:
            self.say(f"no picture of nearest neighbours: that would fetch over {MOST_FETCHED >> 30} GiB of remote shards")
            return
        if images[0].shape != images[1].shape:
            raise InputError(f"the real ones have {self.index.resolution} pixels and {self.index.channels} channels, the "
                             "generated ones others")
        self.path.parent.mkdir(exist_ok=True)
        save_grid(self.path, torch.cat(images), 1 + distances.shape[1], captions, about)

    def _sample(self, generator: Generator, number: int, count: int, device: torch.device) -> Tensor:
        """The values of one sample, [1, C, S, S], in the batch that it was in for the scores: rounding depends on that."""
        first = number // BATCH * BATCH
        index = torch.arange(first, min(first + BATCH, count), device=device)
        return GeneratedSamples(generator, self.seed, self.counts).values(index)[number - first:number - first + 1]


def shown_samples(distances: Tensor) -> list[int]:
    """The samples that are nearest to a real one, the nearest first, and then the first others, by their distances [n]."""
    nearest = distances.sort(stable=True).indices[:NEAREST].tolist()
    others = [number for number in range(min(len(distances), FIRST + NEAREST)) if number not in nearest]
    return nearest + others[:FIRST]


def is_near(squares: Tensor, radii: Tensor) -> Tensor:
    """Whether samples are near real ones, by squared distances [n] and those of the real ones to their nearest others [n]."""
    return squares <= NEAR**2 * radii


def _reals_among_themselves(real: Tensor) -> tuple[Tensor, float]:
    """Squared distances of real samples to their nearest others, [n]; and the share of samples that are near another one.

    A sample takes no part in the distance from its neighbour to the others, as a generated one would not.
    """
    distances, names = nearest_others(real, 2)
    neighbour = names[:, 0]
    mutual = names[neighbour, 0] == torch.arange(len(real), device=real.device)
    radii = torch.where(mutual, distances[neighbour, 1], distances[neighbour, 0])
    return distances[:, 0], float(is_near(distances[:, 0], radii).float().mean())


class _Fetched:
    """Counts the bytes of remote shards."""

    def __init__(self, index: DatasetIndex):
        self._index, self._seen, self._bytes = index, set[int](), 0

    def add(self, shards: Sequence[int]) -> int:
        """The bytes of all shards so far, with these."""
        for shard in set(shards) - self._seen:
            self._bytes += sum(blob.bytes for blob in blobs(self._index.shards[shard]))
        self._seen.update(shards)
        return self._bytes
