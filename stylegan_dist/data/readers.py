"""Where a stream gets its batches from: this process, or reader processes that prepare them ahead."""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from stylegan_dist.data.batches import BatchDataset, Loaded
from stylegan_dist.data.memory import Slots
from stylegan_dist.data.workers import Worker, WorkerEnded, end_workers
from stylegan_dist.errors import InputError

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class ReaderOptions:
    """Who reads, and how. None of it changes what is read."""

    workers: int = 0          # reader processes; 0: this process reads
    prefetch: int = 4         # batches that each reader prepares ahead
    pin_memory: bool = False  # bring batches into page-locked memory
    verify: str = "never"     # when local shards are compared with their SHA-256, as in `Sums`
    timeout: float = 600.0    # seconds that a batch of a reader may be late


class Source(Protocol):
    """One batch after another."""

    def receive(self, seconds: float) -> Loaded | None:
        """The next batch, if it is there within so many seconds. Raises InputError: it cannot be had."""

    def describe(self) -> str:
        """Who works on the next batch, and how that goes."""

    def close(self) -> None:
        """Has a bound."""


def make_source(dataset: BatchDataset, options: ReaderOptions) -> Source:
    """The batches from the first image of the dataset's plan on.

    Raises:
        InputError: there is no memory or no process to be had; what to do.
    """
    number = 2 + options.workers * options.prefetch  # the caller may still hold the batch before when it takes the next one
    try:
        slots = Slots(number, dataset.layout.bytes)
    except OSError as error:
        raise InputError(f"no memory for the batches that {options.workers} readers prepare ahead, {number} of "
                         f"{dataset.layout.bytes / 2**20:.3g} MiB ({error.strerror}): set a smaller data.prefetch or "
                         "data.workers, or raise ulimit -v") from None
    if not options.workers:
        return _Here(dataset, slots, options.pin_memory)
    readers = _Readers(dataset, slots, options.workers)
    return _Pinned(readers) if options.pin_memory else readers


class _Here:
    """This process reads."""

    def __init__(self, dataset: BatchDataset, slots: Slots, pin: bool):
        self._dataset, self._slots, self._pin = dataset, slots, pin
        self._nimg = dataset.plan.start

    def receive(self, seconds: float) -> Loaded | None:
        free = self._slots.free  # none where the caller keeps batches
        memory = self._slots.lend(free.pop()) if free else torch.empty(self._dataset.layout.bytes, dtype=torch.uint8)
        loaded = self._dataset.load(self._nimg, memory)
        self._nimg += self._dataset.plan.batch
        return loaded.pin_memory() if self._pin else loaded

    def describe(self) -> str:
        return "this process reads (data.workers=0)"

    def close(self) -> None:
        pass


class _Readers:
    """Reader processes that take turns: request k goes to reader k % W, so that the batches keep their order."""

    def __init__(self, dataset: BatchDataset, slots: Slots, workers: int):
        self._dataset, self._slots = dataset, slots
        self._asked = self._taken = 0
        self._ahead = len(slots.free) - 2
        self._workers: list[Worker] = []
        try:
            for number in range(workers):
                self._workers.append(Worker(f"reader {number + 1} of {workers}", partial(_read, dataset, slots),
                                            "a smaller data.workers (0 reads in the training process)"))
        except BaseException:
            self.close()
            raise
        self._where: deque[int] = deque()  # the slots of what is asked for
        self._arrived: list[deque[Any]] = [deque() for _ in range(workers)]
        self._ask()

    def _ask(self) -> None:
        while self._asked - self._taken < self._ahead and self._slots.free:
            slot = self._slots.free.pop()
            self._where.append(slot)
            self._workers[self._asked % len(self._workers)].ask((self._nimg(self._asked), slot))
            self._asked += 1

    def _nimg(self, number: int) -> int:
        return self._dataset.plan.start + number * self._dataset.plan.batch

    def receive(self, seconds: float) -> Loaded | None:
        self._ask()
        number = self._taken % len(self._workers)
        arrived = self._arrived[number]
        try:
            arrived.extend(self._workers[number].answers(0.0 if arrived else seconds))
        except WorkerEnded as error:
            raise InputError(f"{error}; the run continues from its last checkpoint: give the job more memory, or set a smaller "
                             "data.workers or data.prefetch") from None
        except MemoryError:
            raise InputError(f"{self._workers[number].name} has no memory left: set a smaller data.workers or data.prefetch, "
                             "or raise ulimit -v") from None
        if not arrived:
            return None
        memory = self._slots.lend(self._where.popleft())
        if not self._slots.free:  # the caller keeps batches: give it one of its own, so that the readers can go on
            memory = memory.clone()
        batch = self._dataset.batch_in(memory, self._nimg(self._taken))
        loaded = Loaded(batch, *arrived.popleft())
        self._taken += 1
        self._ask()
        return loaded

    def describe(self) -> str:
        return self._workers[self._taken % len(self._workers)].describe()

    def close(self) -> None:
        end_workers(self._workers)


def _read(dataset: BatchDataset, slots: Slots, request: tuple[int, int]) -> tuple:
    """In a reader: how a batch came about, which is in its slot then."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # the readers are what is parallel
    nimg, slot = request
    loaded = dataset.load(nimg, slots.at(slot))
    return loaded.replaced, loaded.seconds_read, loaded.seconds_decode


class _Pinned:
    """Batches of readers, which a thread copies to page-locked memory while training goes on."""

    def __init__(self, readers: _Readers):
        self._readers = readers
        self._batches: queue.Queue[Loaded | BaseException] = queue.Queue(1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(torch.cuda.current_device(),), daemon=True, name="pin")
        self._thread.start()

    def _work(self, device: int) -> None:
        torch.cuda.set_device(device)  # else the first GPU would get a context of every rank
        try:
            while not self._closed.is_set():
                if (loaded := self._readers.receive(_LOOK_SECONDS)) is not None:
                    self._put(loaded.pin_memory())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Loaded | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._batches.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                pass

    def receive(self, seconds: float) -> Loaded | None:
        try:
            item = self._batches.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def describe(self) -> str:
        return self._readers.describe()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10 * _LOOK_SECONDS)
        self._readers.close()
