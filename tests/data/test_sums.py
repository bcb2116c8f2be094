"""Comparing files with their sums: what is found, what is remembered, who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import multiprocessing
import os
import shutil
import time

import pytest
from batches import ORDER, same, stream_of, take
from launching import wait_until

from stylegan_dist.data import storage
from stylegan_dist.data import sums as sums_module
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.data.sums import Sums
from stylegan_dist.errors import LocalInputError

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sums_module, "SETTLED_NS", 0)  # files of tests are new
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "memory").mkdir(mode=0o700)
    return tmp_path / "memory"


@pytest.fixture
def shard(tmp_path):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "a file \n\udcff%.tar"
    path.write_bytes(CONTENT)
    return path


def hashed(path, mode="once", memory=None, sums=None, sha256=SHA256) -> int:
    """Bytes that one comparison had to read."""
    sums = sums or Sums(mode, memory)
    before = sums.hashed
    file = os.open(path, os.O_RDONLY)
    try:
        sums.check(file, path, sha256)
    finally:
        os.close(file)
    return sums.hashed - before


def flip(path, byte: int = 1000) -> None:
    with open(path, "r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ 1]))


def test_once(shard, memory):
    assert hashed(shard, memory=memory) == len(CONTENT)
    assert hashed(shard, memory=memory) == 0, "another start remembers"
    os.utime(shard)
    assert hashed(shard, memory=memory) == len(CONTENT), "it may be another file"
    copy = shutil.copy2(shard, shard.with_name("copy"))
    shutil.move(copy, shard)
    assert hashed(shard, memory=memory) == len(CONTENT), "it is another file with the same name, size and time"
    assert hashed(shard, memory=memory) == 0
    with pytest.raises(ValueError, match="SHA-256"):
        hashed(shard, memory=memory, sha256="0" * 64)


def test_always_never_and_without_a_sum(shard, memory):
    assert hashed(shard, "once", memory) == len(CONTENT)
    always = Sums("always", memory)
    assert [hashed(shard, sums=always) for _ in range(2)] == [len(CONTENT), 0], "once a start"
    assert hashed(shard, "always", memory) == len(CONTENT)
    assert hashed(shard, "never", memory, sha256="0" * 64) == 0
    assert hashed(shard, "once", memory, sha256="") == 0


@pytest.mark.parametrize("mode", ["once", "always"])
def test_a_bit(shard, memory, mode):
    hashed(shard, mode, memory)
    flip(shard)
    for _ in range(2):
        with pytest.raises(ValueError, match="SHA-256"):
            hashed(shard, mode, memory)


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(shard, memory, monkeypatch):
    """It may change again without another time."""
    monkeypatch.setattr(sums_module, "SETTLED_NS", 10**12)
    sums = Sums("once", memory)
    assert [hashed(shard, sums=sums) for _ in range(2)] == [len(CONTENT), 0]
    assert hashed(shard, memory=memory) == len(CONTENT)


@pytest.mark.parametrize("damage", [
    lambda log: log.write_bytes(b""), lambda log: log.write_bytes(log.read_bytes()[:-10]),
    lambda log: log.write_bytes(b"\xff" * 1000 + b"\n"), lambda log: log.write_bytes(b"9" * 1000 + log.read_bytes()),
    lambda log: os.truncate(log, 1 << 40), lambda log: (log.unlink(), log.mkdir()), lambda log: (log.unlink(), os.mkfifo(log)),
    lambda log: log.chmod(0o666), lambda log: (log.rename(log.with_suffix(".x")), log.symlink_to(log.with_suffix(".x"))),
], ids=["empty", "cut", "binary", "glued", "huge", "folder", "pipe", "open to all", "link"])
def test_a_damaged_memory_costs_time_alone(shard, memory, damage):
    hashed(shard, memory=memory)
    (log,) = memory.glob("*.sums")
    damage(log)
    assert hashed(shard, memory=memory) == len(CONTENT)


def test_several_processes_read_a_file_once(shard, memory, monkeypatch):
    monkeypatch.setattr(Sums, "_digest", lambda self, file, digest=Sums._digest: time.sleep(0.3) or digest(self, file))
    context = multiprocessing.get_context("fork")
    total, start = context.Value("q"), context.Barrier(4)
    readers = [context.Process(target=_read, args=(shard, memory, total, start)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(600)
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert total.value == len(CONTENT)


def _read(shard, memory, total, start) -> None:
    start.wait(30)
    read = hashed(shard, memory=memory)
    with total.get_lock():
        total.value += read


def test_nobody_waits_for_ever(shard, memory, monkeypatch):
    """Whoever holds the lock may have been stopped."""
    monkeypatch.setattr(sums_module, "PATIENCE_SECONDS", 0.1)
    hashed(shard, memory=memory)
    (lock,) = memory.glob("*.lock")
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.utime(shard)
        assert hashed(shard, memory=memory) == len(CONTENT)


# In the stream

@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_not_trained_on(own_shards, workers):
    index = load_index(own_shards)
    shard = index.shards[2]
    flip(own_shards / shard.name, int(load_offsets(shard)[3][0]) + 60)
    with pytest.raises(LocalInputError, match=rf"{shard.name} is damaged.*-dist verify {own_shards}.*data.verify=never"):
        take(own_shards, 13, verify="once", workers=workers)
    take(own_shards, 13, verify="never", workers=workers)


def test_a_disk_that_cannot_read(own_shards, monkeypatch):
    """One line that names the file, and nothing where trying again helps."""
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)
    digest, failures = Sums._digest, iter([True])

    def failing(self, file):
        if next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        return digest(self, file)

    monkeypatch.setattr(Sums, "_digest", failing)
    take(own_shards, 1, verify="always")
    failures = itertools.repeat(True)
    with pytest.raises(LocalInputError, match=r"cannot open .*shard-.*tar: Input/output error"):
        take(own_shards, 1, verify="always")


def test_it_does_not_change_the_batches(own_shards, reference):
    for mode in ("always", "once", "once", "never"):
        batches = take(own_shards, len(reference), mirror=True, verify=mode)
        assert all(same(a, b) for a, b in zip(batches, reference, strict=True))


def test_what_comes_next_is_compared_ahead(own_shards):
    stream = stream_of(load_index(own_shards), **ORDER, batch=8, verify="once")
    reader = stream._reader
    next(stream)
    def all_compared() -> bool:
        next(stream)
        return len(reader._sums._known) >= 7

    wait_until(all_compared)
    stream.close()


def test_a_pipe_in_place_of_a_shard(own_shards):
    index = load_index(own_shards)
    path = own_shards / index.shards[0].name
    path.unlink()
    os.mkfifo(path)
    stream = stream_of(index, **ORDER, batch=8)
    with pytest.raises(LocalInputError, match="is a pipe or a device"):
        list(itertools.islice(stream, 13))
    stream.close()
