"""The stream of batches: the global order, read from shards by offset, decoded by reader processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from stylegan_dist.data.batches import Batch, BatchDataset, Loaded, Replaced
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.readers import ReaderOptions, Source, make_source
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.last_word import say_line

NOTE_SECONDS = 10.0  # that a batch is late before a person is told
LOOK_SECONDS = 0.2
_DEFAULTS = ReaderOptions()


class BatchStream:
    """Endless iterator over a rank's batches from a given image on.

    Args:
        index: of the data.
        cache: of the node, for remote shards.
    Raises:
        LocalInputError: there is no memory or no process to be had for the readers.
    """

    def __init__(self, index: DatasetIndex, plan: StreamPlan, options: ReaderOptions = _DEFAULTS,
                 cache: NodeCache | None = None):
        self._reader = ShardReader(index, cache, options.verify)
        self.seconds_waited = self.seconds_read = self.seconds_decode = 0.0
        self.tell: Callable[[str], None] = say_line  # that data is late
        self._timeout, self._late, self._told = options.timeout, 0.0, False
        self._replaced: list[Replaced] = []
        self._next: Loaded | None = None
        self._plan, self._options = plan, options
        self._source: Source | None = self._begin(plan)

    def _begin(self, plan: StreamPlan) -> Source:
        try:
            return make_source(BatchDataset(self._reader, plan, max(1, self._options.workers)), self._options)
        except InputError as error:
            raise LocalInputError(str(error)) from None

    def go_to(self, nimg: int) -> None:
        """Continue with the batch that begins at an image. Starts other reader processes.

        Raises: as the constructor.
        """
        self.close()
        self._replaced.clear()
        self._source = self._begin(replace(self._plan, start=nimg))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises LocalInputError as `ready` does."""
        while not self.ready(LOOK_SECONDS):
            pass
        assert self._next is not None, "it is ready"
        loaded, self._next = self._next, None
        self.seconds_read += loaded.seconds_read
        self.seconds_decode += loaded.seconds_decode
        self._replaced += loaded.replaced
        return loaded.batch

    def ready(self, seconds: float) -> bool:
        """Whether the next batch is there, within so many seconds; where this process reads it is, and takes its time.

        Raises:
            LocalInputError: the data turns out to be damaged, a reader has failed, or the batch is too late.
        """
        if self._source is None:
            raise StopIteration
        if self._next is None:
            began = time.perf_counter()
            try:
                self._next = self._source.receive(seconds)
            except InputError as error:
                raise LocalInputError(str(error)) from error
            took = time.perf_counter() - began
            self.seconds_waited += took
            if self._next is None:
                self._look_at_the_clock(min(took, seconds + 1.0))  # all of this may have been stopped for hours
            else:
                self._late, self._told = 0.0, False
        return self._next is not None

    def _look_at_the_clock(self, more: float) -> None:
        assert self._source is not None, "it is asked for batches"
        self._late += more
        if self._late > self._timeout:
            raise LocalInputError(f"no data for {self._timeout:g} s: {self._source.describe()}; see whether its disk or "
                                  "network is well; if it is only slow, set a longer run.timeout")
        if self._late > min(NOTE_SECONDS, self._timeout / 2) and not self._told:
            self._told = True
            self.tell(f"waiting for data for {self._late:.0f} s: {self._source.describe()}")

    def describe_wait(self) -> str:
        """What the batch that is not there waits for."""
        return self._source.describe() if self._source is not None else "the stream is closed"

    def take_replaced(self) -> list[Replaced]:
        """The corrupt samples of the batches since the last call, in their order."""
        taken, self._replaced = self._replaced, []
        return taken

    def close(self) -> None:
        """End the reader processes, whatever they are doing, and close the shards that this process has open."""
        if self._source is not None:
            self._source.close()
        self._source = self._next = None
        self._reader.close()
