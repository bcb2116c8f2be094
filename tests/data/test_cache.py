"""The node's cache alone: who goes first, who may not go, and what is left behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import multiprocessing
import os
import sys
import time
from pathlib import Path

import fsspec
import pytest
from servers import http_server, slow

from stylegan_dist.data import cache as cache_module
from stylegan_dist.data import storage
from stylegan_dist.data.cache import Blob, CacheFull, NodeCache
from stylegan_dist.errors import InputError

SIZE = 1000


@pytest.fixture
def blobs():
    """Ten files of 1,000 bytes."""
    files = fsspec.filesystem("memory")
    found = []
    for number in range(10):
        content = bytes([number]) * SIZE
        files.pipe_file(f"/blobs/{number}", content)
        found.append(Blob(f"memory://blobs/{number}", SIZE, hashlib.sha256(content).hexdigest()))
    yield found
    files.rm("/blobs", recursive=True)


def held(cache: NodeCache, blobs) -> list[int]:
    return [number for number, blob in enumerate(blobs) if (cache.folder / blob.key).exists()]


def touch(cache: NodeCache, blob: Blob) -> None:
    time.sleep(0.02)  # times of files have a grain of some milliseconds
    os.close(cache.open(blob))


def test_what_was_opened_longest_ago_goes_first(tmp_path, blobs):
    cache = NodeCache(tmp_path, 3 * SIZE)
    for number in (0, 1, 2):
        touch(cache, blobs[number])
    touch(cache, blobs[0])
    touch(cache, blobs[3])
    assert held(cache, blobs) == [0, 2, 3]
    touch(cache, blobs[4])
    assert held(cache, blobs) == [0, 3, 4]


def test_what_will_be_needed_does_not_go_first(tmp_path, blobs):
    """Although it was opened longest ago: who fetches ahead finds it there, and says so."""
    cache = NodeCache(tmp_path, 3 * SIZE)
    for number in (0, 1, 2):
        touch(cache, blobs[number])
    time.sleep(0.02)
    cache.fetch(blobs[0])
    touch(cache, blobs[3])
    assert held(cache, blobs) == [0, 2, 3]


def test_nothing_in_use_goes(tmp_path, blobs, monkeypatch):
    """Not for another process either, and not for any need."""
    monkeypatch.setattr(cache_module, "PATIENCE_SECONDS", 0.3)
    cache = NodeCache(tmp_path, 3 * SIZE)
    files = [cache.open(blobs[number]) for number in range(3)]
    with pytest.raises(CacheFull):
        NodeCache(tmp_path, 3 * SIZE).fetch(blobs[3])
    with pytest.raises(InputError, match="has no room for memory://blobs/3"):
        cache.open(blobs[3])
    assert held(cache, blobs) == [0, 1, 2]
    assert not list(tmp_path.glob("*.part"))
    os.close(files[1])
    touch(cache, blobs[3])
    assert held(cache, blobs) == [0, 2, 3]
    assert [os.pread(file, SIZE, 0)[0] for file in (files[0], files[2])] == [0, 2]
    for file in (files[0], files[2]):
        os.close(file)


def test_left_over_parts_are_removed_and_taken_up(tmp_path, blobs):
    cache = NodeCache(tmp_path, 2 * SIZE)
    left, taken = (tmp_path / f"{blob.key}.{SIZE}.part" for blob in blobs[:2])
    left.write_bytes(b"x" * 10)
    taken.write_bytes(b"y" * 10)
    touch(cache, blobs[1])
    assert held(cache, blobs) == [1]
    touch(cache, blobs[2])
    assert not list(tmp_path.glob("*.part")), "what a killed process promised itself is given to others"
    busy = os.open(left, os.O_CREAT | os.O_RDWR)
    fcntl.flock(busy, fcntl.LOCK_EX)  # somebody fetches it just now: its room is promised
    touch(cache, blobs[3])
    assert held(cache, blobs) == [3]
    assert left.exists()
    os.close(busy)


def test_many_processes_fetch_a_file_once(tmp_path):
    content = os.urandom(50_000)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one").write_bytes(content)
    with http_server(tmp_path / "files") as server:
        server.fault = lambda name, number: slow
        blob = Blob(f"{server.url}/one", len(content), hashlib.sha256(content).hexdigest())
        context = multiprocessing.get_context("fork")
        readers = [context.Process(target=_read, args=(tmp_path / "cache", blob, content)) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert [reader.exitcode for reader in readers] == [0] * 8
        assert server.requests["one"] == 1


def _read(folder: Path, blob: Blob, content: bytes) -> None:
    file = NodeCache(folder, 10**9).open(blob)
    assert os.pread(file, len(content), 0) == content


def test_a_full_disk(tmp_path, blobs, monkeypatch):
    class FullDisk:
        def get_file(self, *_, callback):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "_open", lambda location: (FullDisk(), location))
    cache = NodeCache(tmp_path, 10**9)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; free space on that disk, or set"):
        cache.open(blobs[0])
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"set data.cache to a folder on a local disk"):
        NodeCache(tmp_path / "file" / "cache", 1)


def test_a_cluster_fetches_what_the_formulas_say(tmp_path):
    """Each shard about once in an epoch over all nodes, and never more at a time than was said."""
    path = Path(__file__).parents[2] / "benchmarks" / "order.py"
    spec = importlib.util.spec_from_file_location("order_benchmark", path)
    order = importlib.util.module_from_spec(spec)
    sys.modules["order_benchmark"] = order  # dataclasses look their module up
    spec.loader.exec_module(order)
    cluster = order.Cluster(nodes=6, ranks=2, batch=24, lanes=24, block=40, shards=100, per_shard=16)
    found = order.simulate(cluster, tmp_path, nodes=6)
    assert cluster.shards / 6 <= found.fetched <= cluster.fetches()
    assert found.held <= cluster.demand()
    assert found.held_at_end <= cluster.demand_at_end()
    assert found.late == 0, "all was there before the slot that reads it, at the beginning of the next epoch as well"
