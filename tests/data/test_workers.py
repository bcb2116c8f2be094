"""Reader and worker processes that fail, stop or cannot start: one line that says so, in time, and nothing is left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time

import pytest
from batches import open_stream, same, take
from launching import alive
from tqdm import tqdm

from stylegan_dist.data import readers, stream, workers
from stylegan_dist.data.batches import Batch
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.making import pool

SOON = 600  # seconds; only against hanging


def reader_processes() -> list[int]:
    return sorted(process.pid for process in multiprocessing.active_children())


def exhausted(batches, count: int = 100) -> None:
    for _ in range(count):
        next(batches)


def test_a_killed_reader_is_named_with_the_remedy(shards):
    batches = open_stream(shards, workers=2, prefetch=1)
    next(batches)
    os.kill(reader_processes()[1], signal.SIGKILL)
    with pytest.raises(LocalInputError, match=r"reader 2 of 2 \(process \d+\) was killed, .*memory.*data\.workers"):
        exhausted(batches)
    batches.close()
    assert not reader_processes()


def test_a_stopped_reader_is_told_of_then_named_and_ended(shards, monkeypatch):
    monkeypatch.setattr(stream, "NOTE_SECONDS", 0.2)
    batches, told = open_stream(shards, workers=2, prefetch=1), []
    next(batches)
    stopped = reader_processes()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    batches.tell, batches._timeout = told.append, 1.0
    with pytest.raises(LocalInputError, match=r"reader \d of 2 \(process \d+\) is stopped .*run\.timeout"):
        exhausted(batches)
    assert len(told) == 1
    assert "is stopped" in told[0]
    batches.close()
    assert not any(map(alive, stopped))


def test_a_reader_that_was_stopped_for_a_while_changes_nothing(shards, reference):
    batches = open_stream(shards, workers=2, mirror=True)
    os.kill(reader_processes()[0], signal.SIGSTOP)
    while batches.ready(0.2):
        assert same(next(batches), reference[0])
        reference = reference[1:]
    os.kill(reader_processes()[0], signal.SIGCONT)
    for expected in reference:
        assert same(next(batches), expected)
    batches.close()


def test_batches_that_are_kept_keep_their_values(shards, reference):
    """More of them than there is shared memory for."""
    kept = take(shards, len(reference), workers=2, prefetch=1, mirror=True)
    assert all(same(a, b) for a, b in zip(kept, reference, strict=True))


@pytest.mark.parametrize("count", [0, 1])
def test_no_file_handles_are_left(shards, count):
    """For no reader, or for the second."""
    used = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    open_ones = []
    try:
        with contextlib.suppress(OSError):
            while True:
                open_ones.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(1 + 6 * count):
            os.close(open_ones.pop())
        with pytest.raises(LocalInputError, match=r"reader \d of 64: Too many open files.*ulimit -n"):
            open_stream(shards, workers=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in open_ones:
            os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) <= used + 2  # which multiprocessing forgets
    assert not reader_processes()


def test_no_memory_is_left(shards, monkeypatch):
    def refuse(count: int):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("stylegan_dist.data.memory.shared_bytes", refuse)
    with pytest.raises(LocalInputError, match=r"no memory for the batches .*data\.prefetch"):
        open_stream(shards, workers=2)


def test_a_reader_without_memory(shards, monkeypatch):
    def load(self, nimg, memory):
        raise MemoryError

    monkeypatch.setattr(readers.BatchDataset, "load", load)
    batches = open_stream(shards, workers=1)
    with pytest.raises(LocalInputError, match=r"reader 1 of 1 .*memory.*data\.workers"):
        next(batches)
    batches.close()


@pytest.fixture
def pinning(monkeypatch):
    """Page-locked memory as a machine without a GPU can have it: a copy."""
    monkeypatch.setattr(readers.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(readers.torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(Batch, "pin_memory", lambda one: Batch(one.index, {k: v.clone() for k, v in one.fields.items()}))


def pinning_ends() -> bool:
    threads = [thread for thread in threading.enumerate() if thread.name == "pin"]
    for thread in threads:
        thread.join(SOON)
    return not any(thread.is_alive() for thread in threads)


def test_batches_through_the_pinning_thread(shards, reference, pinning):
    kept = take(shards, len(reference), workers=2, prefetch=1, mirror=True, pin_memory=True)
    assert all(same(a, b) for a, b in zip(kept, reference, strict=True))
    assert pinning_ends()  # closed while it had batches that nobody took


def test_a_killed_reader_behind_the_pinning_thread(shards, pinning):
    batches = open_stream(shards, workers=1, prefetch=1, pin_memory=True)
    next(batches)
    os.kill(reader_processes()[0], signal.SIGKILL)
    with pytest.raises(LocalInputError, match=r"reader 1 of 1 \(process \d+\) was killed"):
        exhausted(batches)
    batches.close()
    assert pinning_ends()
    assert not reader_processes()


# Workers over a list of tasks


def work(slot: int, task: float, progress: pool.Progress) -> str:
    if task < 0:
        os.kill(os.getpid(), -int(task))
    if task > 5:  # a disk that does not answer
        time.sleep(task)
    return f"{slot}: {task}" + "." * 300_000  # more than a pipe holds


def results(tasks, count=2) -> dict:
    with tqdm(disable=True) as bar:
        return dict(pool.run(work, tasks, count, bar))


def test_all_tasks(shards):
    found = results(range(5))
    assert {slot: text.rstrip(".") for slot, text in found.items()} == {slot: f"{slot}: {slot}" for slot in range(5)}
    assert not reader_processes()


def test_a_killed_worker_is_an_error_with_a_remedy():
    with pytest.raises(InputError, match=r"was killed, .*memory.*fewer --workers"):
        results([0, 0, -signal.SIGKILL, 0])
    assert not reader_processes()


@pytest.mark.full
@pytest.mark.parametrize(("task", "word"), [(-signal.SIGSTOP, "is stopped"), (3600, "waits for something")])
def test_a_stuck_worker_is_an_error_and_is_ended(task, word, monkeypatch):
    for name, seconds in (("NOTE_SECONDS", 1.0), ("STUCK_SECONDS", 2.0), ("STOP_SECONDS", 0.5)):
        monkeypatch.setattr(pool, name, seconds)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"worker \d \(process \d+\) {word}"):
        results([0, task, 0])
    assert time.monotonic() - began < SOON
    assert not reader_processes()


def test_what_a_worker_raises_is_raised():
    def fail(request):
        raise InputError(f"{request} is wrong")

    worker = workers.Worker("worker 1", fail, "fewer")
    worker.ask(5)
    found: list = []
    try:
        with pytest.raises(InputError, match="5 is wrong"):
            found = [worker.answers(SOON) for _ in range(1000)]
    finally:
        workers.end_workers([worker])
    assert not found
