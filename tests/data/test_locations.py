"""What an index or a user may name as the place of data, and that no secret in it is shown or stored."""

from __future__ import annotations

import json
import shutil

import fsspec
import pytest
from servers import http_server

from stylegan_dist.cli import main
from stylegan_dist.data import storage
from stylegan_dist.data.index import load_index, read_index
from stylegan_dist.errors import InputError
from stylegan_dist.making.scan import index_shards
from stylegan_dist.redact import mask_urls, redact

SECRET = "Xq7vSECRETk2"
WITH_SECRETS = (
    f"http://{SECRET}@127.0.0.1:9/x", f"http://user:{SECRET}@127.0.0.1", f"http://user:{SECRET}@127.0.0.1/x",
    f"http://user:{SECRET}@127.0.0.1:9/x@3", f"https://user:1/{SECRET}@host/x", f"s3://KEY:{SECRET}/RET@bucket/x",
    f"s3://KEY:12/{SECRET}@bucket", f"gs://{SECRET}@bucket/x", f"hf://user:{SECRET}@datasets/x", f"http://host/x?{SECRET}",
    f"http://host/x?sig={SECRET}", f"s3://bucket/x?X-Amz-Signature={SECRET}", f"http://host/x#{SECRET}",
    f"http://user%3A{SECRET}%40host/x", f"http://host/x%3Fsig%3D{SECRET}", f"HTTP://me:{SECRET}@host/x", f"s3://KEY:{SECRET}",
    f"ftp://me:{SECRET}@host/x", f"file://me:{SECRET}@host/x", f"pipe:curl --token {SECRET} http://host/x",
    f"http:/user:{SECRET}@host/x", f"zip://x::http://me:{SECRET}@host/x", f"{SECRET}://me:pw@host",
    f"hf://{SECRET}@datasets/a/b", f"https://host/x;token={SECRET}", f"http://host/x%3Btoken={SECRET}",
    f"user:{SECRET}@host:/x", f"user:{SECRET}/@@host:x", f"//user:{SECRET}@host/x",
)
CHAINS = ("reference://::file:///x", "simplecache::http://127.0.0.1:9/x", "zip://*.tar::s3://bucket/x.zip", "reference:///x.json",
          "http://127.0.0.1:9/a.tar::http://127.0.0.1:9/b.tar", "filecache://x", "pipe:cat /etc/passwd")


@pytest.fixture
def named(shards, tmp_path):
    """A function that makes a set whose index says that its shards are somewhere."""
    def make(shards_at: str):
        folder = tmp_path / "named"
        folder.mkdir(exist_ok=True)
        for path in shards.glob("*.npy"):
            shutil.copy(path, folder)
        content = json.loads((shards / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**content, "shards_at": shards_at}))
        return folder
    return make


@pytest.mark.parametrize("place", [*CHAINS, "memory://x", "sftp://host/x", "smb://host/x", "github://a:b@c/x", "data://x", "foo://x",
                                   "local:///etc", f"http://me:{SECRET}@host/x"])
def test_an_index_cannot_name_any_url(named, place):
    with pytest.raises(InputError) as error:
        load_index(named(place))
    assert SECRET not in str(error.value)


def test_an_index_from_elsewhere_names_nothing_of_this_machine(named, shards):
    """One that lies here may: `index` writes that."""
    for place in (str(shards), f"file://{shards}"):
        folder = named(place)
        assert load_index(folder).num_samples == 44
        with http_server(folder) as server, pytest.raises(InputError, match=r"index.json says .* is not trusted"):
            load_index(server.url)


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x", "https://host/a/b", "s3://bucket/x", "gs://bucket", "gcs://bucket",
                                   "hf://datasets/user/name@main/x", "s3://arn:aws:s3:eu:1:accesspoint/x", "http://[::1]:80/x"])
def test_what_an_index_may_name(named, place):
    index = read_index(named(place))
    assert index.shards[0].location == f"{place}/{index.shards[0].name}"


def test_a_location_never_makes_a_chain(tmp_path):
    """Whatever passed the checks, the scheme alone chooses the driver."""
    fsspec.filesystem("memory").pipe_file("/x.json", b"{}")
    for place in ("memory://a::reference://b", "memory://reference://x"):
        assert type(storage._open(place)[0]).__name__ == "MemoryFileSystem"
    for place in ("reference://::memory://x.json", "simplecache://x", "generic://x", "zip://x"):
        with pytest.raises(InputError):
            storage.check_location(place)


@pytest.mark.parametrize("place", CHAINS)
def test_what_a_user_cannot_name(place, capsys):
    for command in (["train", f"data.shards={place}", "--dry-run"], ["verify", place], ["index", place, "out"]):
        assert main(command) == 2
    said = capsys.readouterr()
    assert all(word in said.err + said.out for word in ("cannot use", "URLs"))


@pytest.mark.parametrize("place", WITH_SECRETS)
def test_no_secret_of_a_location_is_shown(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["train", f"data.shards={place}", "run.dir=run", "run.device=cpu"], ["verify", place], ["peek", place],
                    ["index", place, "out"], ["bench-data", place, "--workers", "0"],
                    ["pack", place, "out", "--resolution", "8"],
                    ["train", f"data.shards={place} data/cats@1", "run.dir=run", "--dry-run"]):
        assert main(command) == 2, command
    said = capsys.readouterr()
    shown = said.out + said.err
    assert SECRET not in shown or place.startswith(f"{SECRET}://")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_text()]


@pytest.mark.parametrize("pattern", ["s3://b/f?ce[rst]", "http://127.0.0.1:9/part-000?.tar", "http://h:80/set?/part-*.tar",
                                     "http://h/{a,b}/x.tar", "hf://datasets/u/r@v1/x", "https://h/a@b/x", "memory://x",
                                     "http://h:80/a%40b/x", "https://h/a%23b/x", "http://h:80/a;b/x", "a:b@3", "/a:b/c@d:e"])
def test_what_is_no_secret(pattern):
    storage.check_location(pattern)


def test_what_libraries_say_of_urls(monkeypatch):
    """A redirect may lead to a signed URL, and a proxy may want a password."""
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@proxy:3128")
    text = f"403, url='https://cdn/x?X-Amz-Signature={SECRET}&y=1', proxy http://me:{SECRET}@proxy:3128/ ({SECRET})"
    assert SECRET not in mask_urls(text)
    assert "cdn/x" in mask_urls(text)
    assert SECRET not in redact(f"the proxy wants {SECRET}")


def test_the_brackets_of_an_address_are_no_wildcards():
    for place in ("http://[::1]:80/x", "s3://[fe80::1]/x"):
        assert storage.expand(place) == [place]
        assert storage.has_wildcards(f"{place}[ab]")


def test_what_no_index_can_name_is_not_indexed(tmp_path):
    """Before anything is read, for the index would be refused."""
    fsspec.filesystem("memory").pipe_file("/set/a.tar", b"")
    with pytest.raises(InputError, match=r"cannot name shards at memory://set"):
        index_shards("memory://set/a.tar", str(tmp_path), workers=1)
