"""The node's cache alone: who goes first, who may not go, and what is left behind."""

from __future__ import annotations

import contextlib
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
from servers import _head, http_server, slow

from stylegan_dist.data import cache as cache_module
from stylegan_dist.data import storage
from stylegan_dist.data.cache import Blob, CacheFull, NodeCache, default_folder
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
    with pytest.raises(InputError, match=r"cannot write .*No space left on device.*data\.cache"):
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


# What others, or a fault of the disk, have put there

def test_what_is_found_is_compared_once(tmp_path, blobs):
    """A file of the right size is no proof; what this user's processes have compared is not read again."""
    cache = NodeCache(tmp_path, 10**9)
    (tmp_path / blobs[0].key).write_bytes(b"x" * SIZE)
    touch(cache, blobs[0])
    assert (tmp_path / blobs[0].key).read_bytes() == bytes(SIZE)
    for _ in range(3):
        other = NodeCache(tmp_path, 10**9)
        touch(other, blobs[0])
        assert other._sums.hashed == 0, "using it is no change"
    with open(tmp_path / blobs[0].key, "r+b") as file:
        file.write(b"y")
    touch(other, blobs[0])
    assert (tmp_path / blobs[0].key).read_bytes() == bytes(SIZE)
    always = NodeCache(tmp_path, 10**9, "always")
    touch(always, blobs[0])
    touch(always, blobs[0])
    assert always._sums.hashed == SIZE


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_leads_elsewhere_is_removed(tmp_path, blobs, kind):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "cache").mkdir(mode=0o700)
    for name in (blobs[0].key, f"{blobs[0].key}.{SIZE}.part"):
        path = tmp_path / "cache" / name
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / ("precious" if kind == "link" else "made"))
    cache = NodeCache(tmp_path / "cache", SIZE)
    touch(cache, blobs[0])
    touch(cache, blobs[1])
    assert held(cache, blobs) == [1]
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_a_folder_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = default_folder()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match=r"others may write to it.*data.cache"):
        NodeCache(folder, 1)
    folder.rmdir()
    if os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 54321, 54321)
        with pytest.raises(InputError, match=r"belongs to uid 54321.*data.cache"):
            NodeCache(folder, 1)
        folder.rmdir()
    NodeCache(folder, 1)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_claim_counts_whatever_the_umask(tmp_path):
    """It must not look like a file that others may have written."""
    former = os.umask(0o002)
    try:
        caches = [NodeCache(tmp_path / "cache", 3 * SIZE) for _ in range(2)]
        caches[0].claim("one", 2 * SIZE, 2 * SIZE)
        with pytest.raises(InputError, match="beside the 1 that use it"):
            caches[1].claim("two", 2 * SIZE, 2 * SIZE)
        caches[0].release()
        caches[1].claim("two", 2 * SIZE, 2 * SIZE)
    finally:
        os.umask(former)


def test_a_folder_that_goes_while_it_is_used(tmp_path, blobs):
    """As where a system clears its temporary files."""
    cache = NodeCache(tmp_path / "cache", 3 * SIZE)
    (tmp_path / "cache").rename(tmp_path / "gone")
    for use in (cache.open, cache.fetch):
        with pytest.raises(InputError, match=r"cannot write .*folder"):
            use(blobs[0])


def test_a_file_that_the_disk_cannot_read_is_fetched_again(tmp_path, blobs, monkeypatch):
    os.close(NodeCache(tmp_path / "cache", 3 * SIZE).open(blobs[0]))
    cache = NodeCache(tmp_path / "cache", 3 * SIZE, verify="always")
    pread, before = os.pread, (tmp_path / "cache" / blobs[0].key).stat().st_ino

    def failing(file, *place):
        if os.fstat(file).st_ino == before:
            raise OSError(errno.EIO, "Input/output error")
        return pread(file, *place)

    monkeypatch.setattr(os, "pread", failing)
    file = cache.open(blobs[0])
    assert pread(file, SIZE, 0) == bytes([0]) * SIZE
    os.close(file)


def test_other_files_in_the_folder_stay(tmp_path, blobs):
    (tmp_path / "thesis.txt").write_text("x" * 10 * SIZE)
    cache = NodeCache(tmp_path, 2 * SIZE)
    for number in range(4):
        touch(cache, blobs[number])
    assert held(cache, blobs) == [2, 3]
    assert (tmp_path / "thesis.txt").exists()


# A process that was stopped while it held a lock

@pytest.mark.parametrize("name", ["lock", "part"])
def test_nobody_waits_for_ever(tmp_path, blobs, monkeypatch, name):
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(cache_module, "STALLED_SECONDS", 0.2)
    cache = NodeCache(tmp_path, 10**9)
    path = tmp_path / (name if name == "lock" else f"{blobs[0].key}.{SIZE}.part")
    with open(path, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"stopped, or set data.cache"):
            cache.open(blobs[0])
    touch(cache, blobs[0])


def test_a_process_that_is_forked_meanwhile_keeps_no_lock(tmp_path, blobs, monkeypatch):
    """As by a thread that fetches ahead while another one starts readers."""
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 2.0)
    cache = NodeCache(tmp_path, 3 * SIZE)
    children = []
    download = storage.download

    def fork_and_download(*arguments):
        children.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)))
        children[-1].start()
        download(*arguments)

    monkeypatch.setattr(storage, "download", fork_and_download)
    try:
        os.close(cache.open(blobs[0]))
        assert len(children) == 1
    finally:
        for child in children:
            child.kill()


def test_a_server_that_sends_next_to_nothing_or_without_end(tmp_path, blobs, monkeypatch):
    def drip(handler, content):
        _head(handler, len(content))
        with contextlib.suppress(OSError):
            for byte in content:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.03)

    def endless(handler, content):
        _head(handler, 10**12)
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(100_000))

    (tmp_path / "one").write_bytes(b"x" * 1000)
    with http_server(tmp_path) as server:
        for fault, cause, silent in ((drip, r"only \d+ bytes arrived in", 0.1), (endless, "more than the 1000 bytes", 600)):
            monkeypatch.setattr(storage, "SILENT_SECONDS", silent)
            server.fault = lambda name, number, fault=fault: fault
            with pytest.raises(InputError, match=cause):
                NodeCache(tmp_path / "cache", 10**9).open(Blob(f"{server.url}/one", 1000, "0" * 64))
