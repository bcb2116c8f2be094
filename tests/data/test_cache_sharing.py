"""Two runs, real processes, in one cache: refused where both do not fit, and nothing in use goes where they try."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pytest
from batches import locate, stream_of
from launching import wait_until
from PIL import Image
from servers import http_server

from stylegan_dist.cli import main
from stylegan_dist.data import cache as cache_module
from stylegan_dist.data import reader as reader_module
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import load_index
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader, blobs
from stylegan_dist.data.working_set import open_cache
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

ROOT = Path(__file__).parents[2]
ORDER = {"seed": 0, "lanes": 8, "block": 4, "batch": 8}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Two sets of 64 other images each, in 16 shards."""
    folder = tmp_path_factory.mktemp("sets")
    for number, name in enumerate(("one", "two")):
        (folder / "images" / name).mkdir(parents=True)
        for image in range(64):
            pixels = np.random.default_rng(100 * number + image).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{image:02d}.png")
        pack(folder / "images" / name, folder / name, PackOptions(ImageOptions(8), samples_per_shard=4, workers=1))
    return folder


@pytest.fixture
def server(sets):
    with http_server(sets) as server:
        yield server


@contextlib.contextmanager
def another_process(work, *args):
    """It calls `work` with a connection and `args`; yields it and the other end of the connection, and ends it at the end."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *args), daemon=True)
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        here.close()


def bytes_of(index) -> int:
    return sum(blob.bytes for shard in index.shards for blob in blobs(shard))


def test_a_run_is_refused_that_does_not_fit_beside_another(server, tmp_path):
    one, two = (load_index(f"{server.url}/{name}") for name in ("one", "two"))
    whole = bytes_of(one)
    limit = 1.5 * whole / 1e9
    with another_process(_claim, tmp_path, limit, one, whole * 3 // 4) as (_, connection):
        assert connection.recv() == "claimed"
        with pytest.raises(InputError, match=r"is too small for this run beside the 1 that use it: together they read from .*; "
                                             r"set data.cache to a folder of this run alone, start all with data.cache_gb="):
            open_cache(tmp_path, limit, two, whole, claim=True)
        with pytest.raises(InputError, match=r"the smallest data.cache_gb of them is"):  # which is the other's
            open_cache(tmp_path, 10 * limit, two, whole, claim=True)
        half = open_cache(tmp_path, limit, two, whole // 2, claim=True)
        half.release()
        shared = open_cache(tmp_path, limit, one, whole, claim=True)  # both read all of one set, which is there once
        shared.release()
        assert len(list(tmp_path.glob("*.run"))) == 1
    # Killed.
    alone = open_cache(tmp_path, limit, two, whole, claim=True)
    assert len(list(tmp_path.glob("*.run"))) == 1, "what the killed one left is gone"
    alone.release()
    assert not list(tmp_path.glob("*.run"))


def _claim(connection, *args) -> None:
    cache = open_cache(*args, claim=True)
    connection.send("claimed")
    connection.recv()
    cache.release()


@pytest.mark.full
def test_the_trainer_says_what_it_needs(server, tmp_path, capsys):
    command = ["train", str(ROOT / "launch/presets/demo.yaml"), "run.kimg=0.008", "run.batch=8", "run.batch_gpu=8",
               "run.device=cpu", "data.lanes=8", "data.block=4", "data.workers=0", "monitor.wandb=disabled",
               "generator.channel_base=64", "discriminator.channel_base=64", f"data.shards={server.url}/one",
               f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}"]
    other = NodeCache(tmp_path / "cache", 64e9)  # as if of another run
    other.claim("other data", 64 * 10**9, 64 * 10**9)
    assert main(command) == 2
    assert "is too small for this run" in capsys.readouterr().err
    other.release()


@pytest.mark.full
def test_two_runs_that_need_more_than_there_is(server, sets, tmp_path):
    """Without a look before: the one with less patience ends and says why; the other goes on, and nothing it reads is lost."""
    index = load_index(f"{server.url}/one")
    expected = stream_of(load_index(sets / "one"), **ORDER)
    cache = NodeCache(tmp_path, 0.8 * bytes_of(index))  # a slot of one run is half of its set

    def run(name: str, *options) -> tuple:
        return _read, f"{server.url}/{name}", tmp_path, cache.limit, *options

    with another_process(*run("one", 1000, (0, 9))) as (_, patient):
        sums = [patient.recv()]
        opened = {index.shards[shard].sha256 for shard, _ in locate(order_of(index, StreamPlan(0, 8, 4, 8)), 0, 8)}
        assert len(opened) == 8
        with another_process(*run("two", 0.3, ())) as (_, hasty):
            said = list(iter(hasty.recv, "end"))
        assert re.search(rf"the cache {tmp_path} of .* GB has no room for {server.url}/two/.*GB too much is in use", said[-1])
        assert opened <= {path.name for path in tmp_path.iterdir()}, "what is open stays"
        patient.send("go on")
        sums += [patient.recv() for _ in range(9)]
        with another_process(*run("two", 0.3, ())) as (other, _):  # now both move on, and take each other room where they can
            patient.send("go on")
            while other.is_alive():
                with cache._lock():  # nothing is removed and nothing is promised while the sizes are added up
                    files = [path for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".part"]
                    assert sum(path.stat().st_size for path in files) <= cache.limit
                time.sleep(0.02)
        sums += iter(patient.recv, "end")
    assert sums == [next(expected)["sample"].sum().item() for _ in range(60)]
    expected.close()


def _read(connection, url: str, folder: Path, limit: int, patience: float, stops: tuple[int, ...]) -> None:
    """60 batches; waits for a word after some."""
    cache_module.PATIENCE_SECONDS = patience
    stream = stream_of(load_index(url), **ORDER, cache=NodeCache(folder, limit))
    try:
        for step in range(60):
            connection.send(next(stream)["sample"].sum().item())
            if step in stops:
                connection.recv()
    except InputError as error:
        connection.send(str(error))
    connection.send("end")


def test_what_another_run_removes_comes_back_before_it_is_needed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "REFRESH_SECONDS", 0.05)
    index = load_index(f"{server.url}/one")
    reader = ShardReader(index, NodeCache(tmp_path, 10**9))
    reader.prefetch([3, 5])
    for _ in range(2):
        for shard in (3, 5):
            wait_until((tmp_path / index.shards[shard].sha256).exists)
        (tmp_path / index.shards[3].sha256).unlink()
    reader.close()
