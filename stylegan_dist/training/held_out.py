"""Held-out images: real ones that no network learns from (`augment.held_out`).

Every `EVERY`-th step has a global batch of them beside that of the training. Which steps, and which images, follows from the
images seen alone: they come from a line of their own, in the order of any data (`data/order.py`).
"""

from __future__ import annotations

from dataclasses import replace

from stylegan_dist import augment
from stylegan_dist.config import Config
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.training.plan import stream_plan

EVERY = augment.STEPS


def held_out_plan(config: Config, nimg: int, world_size: int = 1, rank: int = 0) -> StreamPlan:
    """Which of the held-out images a rank reads in a run that continues at `nimg` images."""
    return replace(stream_plan(config, 0, world_size, rank), start=_begin(nimg, config.run.batch))


def _begin(nimg: int, batch: int) -> int:
    """Number of the first held-out image that is judged after `nimg` images."""
    return nimg // batch // EVERY * batch


class HeldOut:
    """The held-out images of one rank, as a stream of their own.

    Args:
        options: of the readers.
        cache: of the node, for remote shards.
    Raises:
        LocalInputError: as `BatchStream`.
    """

    def __init__(self, index: DatasetIndex, plan: StreamPlan, options: ReaderOptions, cache: NodeCache | None):
        self.batch = plan.batch
        self.stream = BatchStream(index, plan, options, cache)

    def due(self, nimg: int) -> bool:
        """Whether the step after `nimg` images has held-out ones."""
        return nimg // self.batch % EVERY == EVERY - 1

    def after(self, nimg: int) -> Batch | None:
        """Those of the step after `nimg` images, which must be taken in order; None where it has none."""
        return next(self.stream) if self.due(nimg) else None

    def go_to(self, nimg: int) -> None:
        """Continue with the step after `nimg` images."""
        self.stream.go_to(_begin(nimg, self.batch))
