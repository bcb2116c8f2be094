"""The same batches from a server as from the disk: whatever the cache held, whatever the server did."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from batches import joined, locate, same, stream_of
from launching import wait_until
from PIL import Image
from servers import ALL_FAULTS, altered, error_500, http_server, s3_server, shortened, slow

from stylegan_dist.data import cache as cache_module
from stylegan_dist.data import storage
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import load_index, read_index
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import blobs
from stylegan_dist.data.working_set import working_set
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.scan import index_shards

ORDER = {"seed": 3, "lanes": 8, "block": 4, "batch": 16, "mirror": True}
SAMPLES = 90
STEPS = 12  # 192 images: beyond the second epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    for number in range(SAMPLES):
        path = folder / "images" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    pack(folder / "images", folder / "shards", PackOptions(ImageOptions(8), labels="folders", samples_per_shard=8, workers=1))
    return folder / "shards"


@pytest.fixture(scope="module")
def local(shards):
    return take(load_index(shards), None)


@pytest.fixture
def server(shards):
    with http_server(shards) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(shards):
    with s3_server() as server:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        for path in shards.iterdir():
            files.put_file(str(path), f"bucket/faces/{path.name}")
        yield server


@pytest.fixture(params=["http", pytest.param("s3", marks=pytest.mark.full)])
def remote(request):
    """A server without faults, and the URL of the shards."""
    if request.param == "http":
        server = request.getfixturevalue("server")
        return server, server.url
    bucket = request.getfixturevalue("bucket")
    bucket.fault = lambda name, number: None
    bucket.requests.clear()
    return bucket, "s3://bucket/faces"


def take(index, cache, steps: int = STEPS, world: int = 1, workers: int = 0, start: int = 0):
    """The global batches, put together from all ranks, which run at the same time."""
    streams = [stream_of(index, **ORDER, rank=rank, world_size=world, workers=workers, start=start, cache=cache, prefetch=2)
               for rank in range(world)]
    try:
        return [joined([next(stream) for stream in streams]) for _ in range(steps)]
    finally:
        for stream in streams:
            stream.close()


def assert_same(batches, expected) -> None:
    assert len(batches) == len(expected)
    assert all(same(a, b) for a, b in zip(batches, expected, strict=True))


def worlds_and_workers(*usual):
    """Every combination; those that are not named here run with `pytest -m exhaustive` only. The first is not `full`."""
    return pytest.mark.parametrize(("world", "workers"), [
        pytest.param(*case, marks=() if case == usual[0] else pytest.mark.full if case in usual else pytest.mark.exhaustive)
        for case in itertools.product((1, 2, 4, 8), (0, 1, 3))
    ])


def two_or_three_faults(names):
    """For every file in a row, each of them another one; so that every fault meets many files."""
    def fault(name, number):
        place = next((i for i, location in enumerate(names) if location.endswith("/" + name)), None)
        return None if place is None or number >= 2 + place % 2 else ALL_FAULTS[(place + number) % len(ALL_FAULTS)]
    return fault


@worlds_and_workers((1, 0), (2, 3), (8, 1))
@pytest.mark.parametrize("faults", [False, True], ids=["sound", "faults"])
def test_the_same_batches_from_cold_and_warm_cache(remote, local, tmp_path, world, workers, faults):
    server, url = remote
    index = load_index(url)
    everything = {blob for shard in index.shards for blob in blobs(shard)}
    if faults:
        server.fault = two_or_three_faults(sorted(blob.location for blob in everything))
    cache = NodeCache(tmp_path / "cache", 10**9)
    assert_same(take(index, cache, world=world, workers=workers), local)
    cold = server.requests.copy()
    fetched = Counter()  # some small files have the same content: then one of them will do for all
    for blob in everything:
        fetched[blob.key] += cold[blob.location.removeprefix("s3://").removeprefix(server.url + "/")]
    if faults:
        assert fetched.total() > 2 * len(fetched), "the faults took place"
    else:
        assert set(fetched.values()) == {1}, "each content once, for all ranks and readers"
    assert_same(take(index, cache, world=world, workers=workers), local)
    assert server.requests == cold, "the second time everything is there"


@pytest.mark.full
def test_patterns_in_a_bucket(bucket, local, shards, tmp_path):
    """Of sets, for training, and of tar files, for an index of ours."""
    bucket.fault = lambda name, number: None
    for pattern in ("s3://bucket/fac*", "s3://bucket/f?ce[rst]"):
        index = load_index(pattern)
        assert [shard.location for shard in index.shards] == [f"s3://bucket/faces/{shard.name}" for shard in index.shards]
        assert index == load_index("s3://bucket/faces")
    assert_same(take(index, NodeCache(tmp_path / "cache", 10**9)), local)
    for number, pattern in enumerate(("shard-*.tar", "shard-0000?.tar", "shard-{00000..00009}.tar", "")):
        bucket.requests.clear()
        found = index_shards(f"s3://bucket/faces/{pattern}", str(tmp_path / str(number)), workers=1, checksums=True)
        expected = [shard for shard in read_index(shards).shards if len(found.shards) > 10 or shard.name < "shard-00010"]
        assert [(one.name, one.samples, one.bytes, one.sha256) for one in found.shards] == [
            (one.name, one.samples, one.bytes, one.sha256) for one in expected]
        assert {count for name, count in bucket.requests.items() if name.endswith(".tar")} == {1}, "S3 confirms the first"
    with pytest.raises(InputError, match=r"nothing matches s3://bucket/nothing"):
        load_index("s3://bucket/nothing*")


def test_data_in_memory(local, shards, tmp_path):
    """A driver that knows no other process."""
    files = fsspec.filesystem("memory")
    files.put(str(shards), "/faces", recursive=True)
    try:
        for place in ("memory://faces", "memory://fac*"):
            assert_same(take(load_index(place), NodeCache(tmp_path / "cache", 10**9)), local)
    finally:
        files.rm("/faces", recursive=True)


@pytest.mark.full
def test_a_bucket_without_shards(bucket):
    with pytest.raises(InputError, match=r"no such|cannot read s3://bucket/nothing/index.json"):
        load_index("s3://bucket/nothing")


def test_a_cache_of_just_the_working_set(server, shards, tmp_path):
    """Files go and come again, and the limit holds all the time."""
    options = {**ORDER, "lanes": 4, "block": 4, "batch": 8, "workers": 1, "prefetch": 1, "world_size": 2}
    index, here = load_index(server.url), load_index(shards)
    plans = [StreamPlan(ORDER["seed"], 4, 4, 8, world_size=2, start=8 * step) for step in range(48)]
    cache = NodeCache(tmp_path / "cache", max(working_set(index, plan, range(2), 2) for plan in plans))
    assert cache.limit < 0.9 * sum(blob.bytes for shard in index.shards for blob in blobs(shard))
    ours, theirs = ([stream_of(source, **options, rank=rank, cache=cache) for rank in range(2)] for source in (index, here))
    for _ in range(48):
        assert same(joined([next(stream) for stream in ours]), joined([next(stream) for stream in theirs]))
        with cache._lock():  # nothing is removed and nothing is promised while the sizes are added up
            assert held(tmp_path / "cache") <= cache.limit
    for stream in (*ours, *theirs):
        stream.close()
    assert max(server.requests.values()) > 1


def test_prefetch_precedes_need(server, tmp_path):
    """Before a batch is asked for, all its shards are there, through four ends of epochs; the reader fetches nothing itself."""
    index = load_index(server.url)
    plans = [StreamPlan(ORDER["seed"], 4, 4, 8, start=8 * step) for step in range(48)]
    cache = NodeCache(tmp_path, max(working_set(index, plan, [0], 1) for plan in plans))
    assert cache.limit < 0.9 * sum(blob.bytes for shard in index.shards for blob in blobs(shard))
    stream = stream_of(index, **{**ORDER, "lanes": 4, "block": 4, "batch": 8}, cache=cache)
    next(stream)
    at_first = cache.seconds_fetching
    order = order_of(index, plans[0])
    for step in range(1, 48):
        needed = {blob.key for shard, _ in locate(order, 8 * step, 8) for blob in blobs(index.shards[shard])}
        wait_until(lambda needed=needed: all((tmp_path / key).exists() for key in needed), f"the shards of step {step}")
        next(stream)
        assert cache.seconds_fetching == at_first, f"the reader had to fetch for step {step}"
    stream.close()
    assert max(server.requests.values()) > 1


def held(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed just now
            total += 0 if path.name.endswith(".part") or path.is_dir() else path.stat().st_size
    return total


def test_a_cache_that_is_too_small_is_an_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PATIENCE_SECONDS", 0.5)
    index = load_index(server.url)
    with pytest.raises(LocalInputError, match=r"no room for http.*data\.cache_gb"):
        take(index, NodeCache(tmp_path / "cache", 30_000))


@pytest.mark.full
@worlds_and_workers((2, 1))
def test_several_runs_share_a_cache_and_survive_kill_9(remote, local, tmp_path, world, workers):
    """Runs are killed at random moments while others read on; what they leave behind hurts nobody."""
    server, url = remote
    server.fault = lambda name, number: slow  # so that the moment is often in the middle of a file
    folder = tmp_path / "cache"
    code = ("from stylegan_dist.data.index import load_index\nfrom stylegan_dist.data.stream import BatchStream\n"
            "from stylegan_dist.data.cache import NodeCache\nfrom stylegan_dist.data.order import StreamPlan\n"
            "from stylegan_dist.data.readers import ReaderOptions\n"
            f"plans = [StreamPlan(rank=rank, world_size={world}, **{ORDER!r}) for rank in range({world})]\n"
            f"index, cache = load_index({url!r}), NodeCache({str(folder)!r}, 10**9)\n"
            f"streams = [BatchStream(index, plan, ReaderOptions({workers}), cache) for plan in plans]\n"
            "print('ready', flush=True)\n"
            "while True: [next(stream) for stream in streams]")
    rng = np.random.default_rng()  # any moment will do
    for _ in range(3):
        others = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert others.stdout is not None
            assert others.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 1))
        finally:
            os.killpg(others.pid, signal.SIGKILL)
            others.wait()
            others.stdout.close()
    left, step = NodeCache(folder, 10**9), int(rng.integers(STEPS))
    continued = take(load_index(url), left, STEPS - step, world, workers, start=step * ORDER["batch"])
    assert_same(continued, local[step:])
    assert_same(take(load_index(url), left, world=world, workers=workers), local)
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")], "what was left over is taken up"


def test_resume_from_a_cold_cache(server, local, tmp_path):
    index = load_index(server.url)
    assert_same(take(index, NodeCache(tmp_path / "cache", 10**9), steps=5, start=7 * 16, world=2, workers=1), local[7:])


# What cannot be mended

@pytest.mark.parametrize(("fault", "cause"), [
    (error_500, r"at byte 0: .*(500|Internal Server Error)"),
    (shortened, r"at byte \d+: \d+ bytes instead of \d+: truncated or altered"),
    (altered, r"at byte \d+: the SHA-256 differs from the index, although all \d+ bytes are there: altered"),
])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_never_comes(server, tmp_path, fault, cause, workers):
    index = load_index(server.url)
    bad = index.shards[3].name
    server.fault = lambda name, number: fault if name == bad else None
    with pytest.raises(LocalInputError, match=rf"cannot fetch {server.url}/{bad} {cause}.*{storage.ATTEMPTS} attempts"):
        take(index, NodeCache(tmp_path / "cache", 10**9), workers=workers)
    assert server.requests[bad] >= storage.ATTEMPTS
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_shard_that_is_not_there(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    with http_server(folder) as server:
        index = load_index(server.url)
        (folder / index.shards[0].name).unlink()
        with pytest.raises(LocalInputError, match=rf"cannot fetch {server.url}/{index.shards[0].name}.*no such file"):
            take(index, NodeCache(tmp_path / "cache", 10**9))


def test_a_file_that_changed_in_the_cache_is_fetched_again(server, local, tmp_path):
    index = load_index(server.url)
    cache = NodeCache(tmp_path / "cache", 10**9)
    take(index, cache)
    for shard in index.shards:
        os.truncate(tmp_path / "cache" / shard.sha256, 1000)
    assert_same(take(index, cache), local)


@pytest.mark.full
def test_the_trainer_of_remote_data(server, tmp_path, shards):
    """A run from a URL is the run from the folder; and a cache that is too small is refused before it begins."""
    run = [sys.executable, "-m", "stylegan_dist.cli", "train", "launch/presets/demo.yaml", "run.kimg=0.064", "run.batch=16",
           "run.batch_gpu=16", "data.lanes=8", "data.block=4", "data.workers=1", "run.device=cpu", "monitor.wandb=disabled",
           "generator.channel_base=64", "discriminator.channel_base=64"]
    if not Path("launch/presets/demo.yaml").is_file():
        pytest.skip("run from another folder")

    def train(name, *more):
        return subprocess.run([*run, f"run.dir={tmp_path / name}", *more], capture_output=True, text=True, timeout=900,
                              check=False)

    remote = train("remote", f"data.shards={server.url}", f"data.cache={tmp_path / 'cache'}")
    assert remote.returncode == 0, remote.stderr
    here = train("local", f"data.shards={shards}")
    assert here.returncode == 0, here.stderr
    weights = [next((tmp_path / name / "checkpoints").glob("nimg-*/*.safetensors")).read_bytes()
               for name in ("remote", "local")]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "cache").glob("*.run")), "other runs may count on its room again"
    refused = train("small", f"data.shards={server.url}", f"data.cache={tmp_path / 'cache'}", "data.cache_gb=0.00001")
    assert refused.returncode == 2
    assert "data.cache_gb=1e-05 is too small" in refused.stderr


def test_an_index_that_cannot_be_read(server):
    with pytest.raises(InputError, match=r"cannot read .*nothing/index.json.*no such file"):
        read_index(f"{server.url}/nothing")
    with pytest.raises(InputError, match="carries a password"):
        load_index("http://me:secret@127.0.0.1/faces")
    with pytest.raises(InputError, match=r"stylegan-dist index"):
        load_index(f"{server.url}/shard-{{00000..00003}}.tar")
