"""`index` and `verify` of URLs: what a server spoils once is fetched again, what stays spoilt is named."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from launching import free_port
from servers import _FolderHandler, _head, altered, altered_at, error_500, http_server, reset, shortened, slow, truncated
from test_scan import write_foreign

from stylegan_dist.cli import main
from stylegan_dist.data import storage
from stylegan_dist.data.index import load_offsets, read_index
from stylegan_dist.errors import InputError
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.verify import verify

BAD = "part-001.tar"
in_a_header = altered_at(lambda content: content.index(b"ustar", 1200) - 200)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Two tar files of another tool, and their index."""
    folder = tmp_path_factory.mktemp("foreign")
    write_foreign(folder, shards=2)
    index_shards(str(folder), checksums=True)
    return folder


@pytest.fixture
def server(foreign):
    with http_server(foreign) as server:
        yield server


def index(server, out: Path, **options):
    return index_shards(f"{server.url}/part-{{000..001}}.tar", str(out), workers=1, **options)


def test_an_index_in_spite_of_faults(server, foreign, tmp_path):
    """Every fault that can be known is met; the index is that of the local shards."""
    faults = {"part-000.tar": [error_500, truncated, shortened], BAD: [reset, in_a_header, slow]}
    server.fault = lambda name, number: faults[name][number] if number < 3 else None
    assert index(server, tmp_path).shards == read_index(foreign).shards
    assert server.requests == {"part-000.tar": 4, BAD: 3}


@pytest.mark.parametrize(("fault", "cause"), [
    (error_500, r"at byte 0: .*(500|Internal Server Error)"),
    (truncated, r"at byte \d+: .*(not completed|not enough data|ContentLength)"),
    (reset, r"at byte \d+: .*(reset|ayload|isconnected)"),
    (shortened, r"at byte \d+: \d+ bytes instead of \d+: truncated or altered"),
    (in_a_header, r"at byte \d+: damaged tar header"),
], ids=["error_500", "truncated", "reset", "shortened", "in_a_header"])
def test_what_cannot_be_indexed(server, tmp_path, fault, cause):
    server.fault = lambda name, number: fault if name == BAD else None
    with pytest.raises(InputError, match=rf"cannot fetch {server.url}/{BAD} {cause}.*{storage.ATTEMPTS} attempts"):
        index(server, tmp_path / "index")
    assert server.requests[BAD] == storage.ATTEMPTS
    assert not (tmp_path / "index").exists()


def test_a_shard_to_index_that_is_not_there(server, tmp_path):
    with pytest.raises(InputError, match=rf"cannot find {server.url}/part-002.tar: there is no such file .6 attempts"):
        index_shards(f"{server.url}/part-{{001..002}}.tar", str(tmp_path), workers=1)


def test_checksums_are_those_that_two_readings_agree_on(server, foreign, tmp_path):
    """Where a bit of a payload changes on the way, no header betrays it."""
    for spoilt, readings in (((), 2), ((0,), 3), ((1,), 3)):
        server.requests.clear()
        server.fault = lambda name, number, spoilt=spoilt: altered if name == BAD and number in spoilt else None
        assert index(server, tmp_path, checksums=True, overwrite=True).shards == read_index(foreign).shards
        assert server.requests == {"part-000.tar": 2, BAD: readings}
    another_bit = lambda number: altered_at(lambda content: content.index(b"IDAT") + 8 + number)  # noqa: E731
    server.fault = lambda name, number: another_bit(number) if name == BAD else None
    with pytest.raises(InputError, match=rf"cannot fetch {server.url}/{BAD} at byte \d+: .*SHA"):
        index(server, tmp_path, checksums=True, overwrite=True)


def test_verifying_in_spite_of_faults(server, foreign):
    """Of shards, tables and index, each file meets every fault, first one that only a checksum betrays."""
    altered_anywhere = altered_at(lambda content: content.index(b'"name"') if content[:1] == b"{" else 600)
    faults = [altered_anywhere, shortened, error_500, truncated, reset]
    server.fault = lambda name, number: faults[number] if number < len(faults) else None
    assert verify(server.url, workers=1) == []
    names = {path.name for path in foreign.iterdir()}
    assert server.requests == dict.fromkeys(names, 1 + len(faults))


@pytest.mark.parametrize("fault", [shortened, error_500])
def test_what_never_comes_to_verify(server, fault):
    server.fault = lambda name, number: fault if name.startswith("part-001") else None
    table, shard = map(str, verify(server.url, workers=1))
    assert table.startswith(f"part-001.offsets.npy: cannot read {server.url}/part-001.offsets.npy: ")
    assert shard.startswith(f"{BAD}: cannot fetch {server.url}/{BAD} at byte ")
    assert all(f"({storage.ATTEMPTS} attempts" in text for text in (table, shard))


def test_what_is_altered_at_the_source_is_named(server, foreign):
    """The checksum says that, and a look at what arrived says where."""
    shard = read_index(foreign).shards[1]
    offset, size, _ = load_offsets(shard)[3].tolist()
    server.fault = lambda name, number: altered_at(lambda content: offset + size // 2) if name == BAD else None
    checksum, image = verify(server.url, workers=1)
    assert "SHA-256 differs" in str(checksum)
    assert f"all {shard.bytes} bytes" in str(checksum)
    assert (image.file, image.offset) == (BAD, offset)
    assert server.requests[BAD] == storage.ATTEMPTS


def test_verify_tells_what_it_cannot_compare(foreign, tmp_path, capsys):
    """An index without checksums is sound as far as anybody can know, and verify says so."""
    folder = shutil.copytree(foreign, tmp_path / "set")
    assert main(["verify", str(folder)]) == 0
    assert "SHA-256" not in capsys.readouterr().out
    assert main(["index", str(folder), "--overwrite"]) == 0
    content = bytearray((folder / BAD).read_bytes())
    content[1000] ^= 1  # behind an extended header: no image and no size changes
    (folder / BAD).write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    assert "2 of 2 shards have no SHA-256 in the index" in capsys.readouterr().out
    assert main(["index", str(folder), "--overwrite", "--checksums"]) == 0
    record = json.loads((folder / "index.json").read_text())
    assert record["shards"][1]["sha256"] == hashlib.sha256(content).hexdigest()
    content[1000] ^= 1
    (folder / BAD).write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(folder), "--quick"]) == 2
    assert f"{BAD}: the SHA-256 differs from the index" in capsys.readouterr().out


# Servers as they are

def chunked(handler, content: bytes) -> None:
    """Without a length, in the form of HTTP/1.1."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for begin in range(0, len(content), 1000):
        piece = content[begin:begin + 1000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def zipped(handler, content: bytes) -> None:
    body = gzip.compress(content)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def login_page(handler, content: bytes) -> None:
    page = b"\n<!DOCTYPE html><html>Please log in</html>"
    _head(handler, len(page))
    handler.wfile.write(page)


def refused(status: int):
    return lambda handler, content: handler.send_error(status)


@pytest.mark.parametrize("head", [None, 403, 405, 501])
@pytest.mark.parametrize("fault", [None, chunked, zipped], ids=["plain", "chunked", "zipped"])
def test_servers_that_say_little(server, foreign, tmp_path, monkeypatch, head, fault):
    if head is not None:
        monkeypatch.setattr("servers._FolderHandler.do_HEAD", lambda handler: handler.send_error(head), raising=False)
    server.fault = lambda name, number: fault
    assert index(server, tmp_path).shards == read_index(foreign).shards


@pytest.mark.parametrize(("fault", "cause", "final"), [
    (login_page, "what came is a web page", True), (refused(403), "403", True), (refused(401), "401", True),
    (refused(503), "503", False), (refused(404), "no such file", False),
], ids=["login page", "403", "401", "503", "404"])
def test_why_nothing_comes(server, tmp_path, fault, cause, final):
    """What the server will say again is not asked again; twice: one request may be to find a file, one to fetch it."""
    server.fault = lambda name, number: fault
    with pytest.raises(InputError, match=rf"{server.url}/.*{cause}"):
        index(server, tmp_path)
    with pytest.raises(InputError, match=rf"{server.url}/index.json.*{cause}"):
        read_index(server.url)
    most = max(server.requests.values())
    assert most <= 2 if final else most >= storage.ATTEMPTS


@pytest.mark.parametrize("place", ["http://[", "http://[::1/x", "http:///x", "https://host:99999/x", "http://h/a**b/*",
                                   "s3://b/a**.tar", "/tmp/a**b/*"])
def test_what_is_no_request_is_not_tried_again(place):
    with pytest.raises(InputError, match=r"cannot (use|list) ") as error:
        storage.read_bytes(storage.expand(place)[0])
    assert "attempts" not in str(error.value)


def test_a_connection_that_does_not_come_about(tmp_path):
    """Nobody listens; there is no such host."""
    for host, cause in ((f"127.0.0.1:{free_port()}", "[Cc]annot connect"), ("data.example.invalid", "[Cc]annot connect")):
        for action in (lambda: index_shards(f"http://{host}/x.tar", str(tmp_path), workers=1),  # noqa: B023 (called here)
                       lambda: index_shards(f"http://{host}/*.tar", str(tmp_path), workers=1),  # noqa: B023
                       lambda: read_index(f"http://{host}")):  # noqa: B023
            with pytest.raises(InputError, match=cause) as error:
                action()
            assert "no such file" not in str(error.value)


def test_a_folder_that_is_not_listed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("servers._FolderHandler.list_directory", lambda handler, path: handler.send_error(403), raising=False)
    with pytest.raises(InputError, match=rf"cannot list {server.url}/\*.tar: .*403"):
        index_shards(server.url, str(tmp_path), workers=1)


@pytest.mark.parametrize("blank", [" ", "%20"])
def test_blanks(foreign, tmp_path, blank):
    shutil.copytree(foreign, tmp_path / "files" / "my set")
    with http_server(tmp_path / "files") as server:
        found = index_shards(f"{server.url}/my{blank}set/part-{{000..001}}.tar", str(tmp_path / "out"), workers=1)
    assert found.shards == read_index(foreign).shards


def test_a_proxy_of_the_environment(foreign, tmp_path, monkeypatch):
    """It is used, and its password is not shown."""
    plain = _FolderHandler.translate_path
    monkeypatch.setattr(_FolderHandler, "translate_path",
                        lambda handler, path: plain(handler, path.removeprefix("http://data.example.invalid")), raising=False)
    with http_server(foreign) as server:
        for variable in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(variable, server.url.replace("://", "://me:Xq7vSECRETk2@"))
        found = index_shards("http://data.example.invalid/part-{000..001}.tar", str(tmp_path), workers=1)
        assert found.shards == read_index(foreign).shards
        monkeypatch.setattr(_FolderHandler, "do_GET", lambda handler: handler.send_error(407))
        with pytest.raises(InputError, match="407") as error:
            read_index("http://data.example.invalid")
        assert "SECRET" not in str(error.value)
