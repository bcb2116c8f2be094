"""Where a stream gets its batches from: this process, or reader processes that prepare them ahead."""

from __future__ import annotations

import queue
import threading
from collections import deque
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from stylegan_dist.data.batches import BatchDataset, Loaded
from stylegan_dist.data.memory import Slots
from stylegan_dist.data.workers import Worker, WorkerEnded, end_workers
from stylegan_dist.errors import InputError

_LOOK_SECONDS = 0.2


class Source(Protocol):
    """One batch after another."""

    def receive(self, seconds: float) -> Loaded | None:
        """The next batch, if it is there within so many seconds. Raises InputError: it cannot be had."""

    def describe(self) -> str:
        """Who works on the next batch, and how that goes."""

    def close(self) -> None:
        """Has a bound."""


def make_source(dataset: BatchDataset, start: int, workers: int, prefetch: int, pin: bool) -> Source:
    """The batches from image number `start` on.

    Args:
        workers, prefetch: reader processes, and the batches that each prepares ahead.
        pin: bring them into page-locked memory.
    Raises:
        InputError: there is no memory or no process to be had; what to do.
    """
    if not workers:
        return _Here(dataset, start, pin)
    readers = _Readers(dataset, start, workers, prefetch)
    return _Pinned(readers) if pin else readers


class _Here:
    """This process reads."""

    def __init__(self, dataset: BatchDataset, start: int, pin: bool):
        self._dataset, self._nimg, self._pin = dataset, start, pin

    def receive(self, seconds: float) -> Loaded | None:
        loaded = self._dataset[self._nimg]
        self._nimg += self._dataset.batch
        return loaded.pin_memory() if self._pin else loaded

    def describe(self) -> str:
        return "this process reads (data.workers=0)"

    def close(self) -> None:
        pass


class _Readers:
    """Reader processes that take turns: request k goes to reader k % W, so that the batches keep their order."""

    def __init__(self, dataset: BatchDataset, start: int, workers: int, prefetch: int):
        self._dataset, self._start = dataset, start
        self._asked = self._taken = 0
        self._ahead = workers * prefetch
        slots = self._ahead + 2  # the caller may still hold the batch before when it takes the next one
        try:
            self._slots = Slots(slots, dataset.shape)
        except OSError as error:
            raise InputError(f"no memory for the batches that {workers} readers prepare ahead, {slots} of "
                             f"{np.prod(dataset.shape) / 2**20:.3g} MiB ({error.strerror}): set a smaller data.prefetch or "
                             "data.workers, or raise ulimit -v") from None
        self._workers: list[Worker] = []
        try:
            for number in range(workers):
                self._workers.append(Worker(f"reader {number + 1} of {workers}", partial(_read, dataset, self._slots),
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
            self._workers[self._asked % len(self._workers)].ask((self._start + self._asked * self._dataset.batch, slot))
            self._asked += 1

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
        labels, replaced, seconds_read, seconds_decode = arrived.popleft()
        memory = self._slots.lend(self._where.popleft())
        if not self._slots.free:  # the caller keeps batches: give it one of its own, so that the readers can go on
            memory = memory.clone()
        nimg = self._start + self._taken * self._dataset.batch
        batch = self._dataset.in_memory(memory, nimg, torch.frombuffer(bytearray(labels), dtype=torch.int64))
        self._taken += 1
        self._ask()
        return Loaded(batch, replaced, seconds_read, seconds_decode)

    def describe(self) -> str:
        return self._workers[self._taken % len(self._workers)].describe()

    def close(self) -> None:
        end_workers(self._workers)


def _read(dataset: BatchDataset, slots: Slots, request: tuple[int, int]) -> tuple:
    """In a reader: all of a batch but its images, which are in their slot then."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # the readers are what is parallel
    nimg, slot = request
    loaded = dataset.load(nimg, torch.from_numpy(slots.at(slot)))
    return loaded.batch.labels.numpy().tobytes(), loaded.replaced, loaded.seconds_read, loaded.seconds_decode


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
