"""Sources: listing, labels in all their forms, and what is refused."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import pytest

from stylegan_dist.errors import InputError
from stylegan_dist.making import containers, sources
from stylegan_dist.making.sources import open_source


def make(kind, tmp_path, files):
    """A source of either kind holding `files`: name -> bytes."""
    tmp_path.mkdir(exist_ok=True)
    if kind == "zip":
        path = tmp_path / "source.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif kind == "tar":
        path = tmp_path / "source.tar"
        with tarfile.open(path, "w") as tape:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tape.addfile(info, io.BytesIO(data))
    else:
        path = tmp_path / "source"
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(params=["folder", "zip", "tar"])
def kind(request):
    return request.param


FILES = {"b/2.PNG": b"two", "a/1.jpg": b"one", "a/.hidden.png": b"", "__MACOSX/a/1.jpg": b"", "a/notes.txt": b""}


def with_labels(labels) -> dict:
    return {**FILES, "dataset.json": json.dumps(labels).encode()}


def labels_of(source):
    return [item.label for item in source.items]


def test_lists_images_sorted_and_reads_them(kind, tmp_path):
    source = open_source(make(kind, tmp_path, FILES))
    assert [item.name for item in source.items] == ["a/1.jpg", "b/2.PNG"]
    assert labels_of(source) == [None, None]
    assert source.classes is None
    copy = pickle.loads(pickle.dumps(source))  # what a worker process gets
    assert [copy.read(item.name) for item in copy.items] == [b"one", b"two"]


def test_labels_from_folders(kind, tmp_path):
    source = open_source(make(kind, tmp_path, FILES), "folders")
    assert labels_of(source) == [0, 1]
    assert source.classes == ["a", "b"]


def test_labels_from_folders_need_folders(kind, tmp_path):
    with pytest.raises(InputError, match=r"'top\.png'"):
        open_source(make(kind, tmp_path, {**FILES, "top.png": b""}), "folders")


@pytest.mark.parametrize("labels", [
    {"labels": [["a/1.jpg", 3], ["b/2.PNG", 0], ["absent.png", 7]]},
    {"labels": {"a/1.jpg": 3, "b/2.PNG": 0}},
])
@pytest.mark.parametrize("mode", ["auto", "json"])
def test_labels_from_json(kind, tmp_path, labels, mode):
    source = open_source(make(kind, tmp_path, with_labels(labels)), mode)
    assert labels_of(source) == [3, 0]
    assert source.classes == ["0", "1", "2", "3"]


@pytest.mark.parametrize("content", [{"labels": None}, {}, None])
def test_json_without_labels(kind, tmp_path, content):
    path = make(kind, tmp_path, with_labels(content))
    assert open_source(path, "auto").classes is None
    with pytest.raises(InputError, match=r"no dataset\.json with labels"):
        open_source(path, "json")


@pytest.mark.parametrize(("labels", "message"), [
    ([["a/1.jpg", 3]], "no label for 'b/2.PNG'"),
    ([["a/1.jpg", [0.5, 1.0]], ["b/2.PNG", 0]], "'a/1.jpg' a list of numbers"),
    ([["a/1.jpg", 1.5], ["b/2.PNG", 0]], "the class 1.5"),
    ([["a/1.jpg", True], ["b/2.PNG", 0]], "the class True"),
    ([["a/1.jpg", -1], ["b/2.PNG", 0]], "the class -1"),
    ([["a/1.jpg", 10**12], ["b/2.PNG", 0]], "the class 1000000000000"),
    (5, "list of"),
    ([3, 4], "list of"),
])
def test_wrong_labels_are_named(kind, tmp_path, labels, message):
    path = make(kind, tmp_path, with_labels({"labels": labels}))
    with pytest.raises(InputError, match=message):
        open_source(path)
    assert open_source(path, "none").classes is None


@pytest.mark.parametrize("names", [["a/1.jpg", "a/2.jpg"], ["top/a/1.jpg", "top/b/2.jpg"], ["x/y/1.jpg", "x/y/2.jpg"]])
def test_json_one_folder_down(kind, names, tmp_path):
    """Where one folder holds everything, as in most archives: there, or on the way."""
    root = names[0].split("/")[0]
    labels = json.dumps({"labels": [[name.removeprefix(f"{root}/"), n] for n, name in enumerate(names)]}).encode()
    source = open_source(make(kind, tmp_path, {**dict.fromkeys(names, b""), f"{root}/dataset.json": labels}))
    assert labels_of(source) == [0, 1]
    assert source.account.labels == 1


def test_json_for_a_part_is_an_error(kind, tmp_path):
    """Not a set without classes that looks like success."""
    files = {"a/1.jpg": b"", "b/1.jpg": b"", "b/dataset.json": b'{"labels": [["1.jpg", 1]]}'}
    path = make(kind, tmp_path, files)
    with pytest.raises(InputError, match=r"'b/dataset\.json'.*--labels"):
        open_source(path)
    assert open_source(path, "none").classes is None


def test_one_folder_that_holds_all_classes(kind, tmp_path):
    files = dict.fromkeys(["animals/cat/1.png", "animals/dog/2.png", "animals/dog/deep/3.png"], b"")
    assert open_source(make(kind, tmp_path, files), "folders").classes == ["cat", "dog"]
    one = open_source(make(kind, tmp_path / "one", dict.fromkeys(["cat/1.png", "cat/2.png"], b"")), "folders")
    assert one.classes == ["cat"]


@pytest.mark.parametrize("content", [
    b"[" * 100_000, b'{"a":' * 100_000, b'{"labels": NaN}', b"\xff\xfe{", b'{"labels": [["a/1.jpg", 1],]}',
    b'{"label": [["a/1.jpg", 1]]}', b'{"labels": "ab"}', b'{"labels": ["ab", "cd"]}', b'{"labels": [[["a"], 1]]}',
    b'{"labels": [["a/1.jpg", 0, 1], ["b/2.PNG", 1, 0]]}',
    b'{"labels": [["a/1.jpg", 0], ["a/1.jpg", 1], ["b/2.PNG", 1]]}',
    b'{"labels": {"a/1.jpg": ' + b"9" * 5000 + b', "b/2.PNG": 1}}',
    b'{"labels": {"a/1.jpg": 1e999, "b/2.PNG": 1}}', b'{"labels": []}', b'{"labels": 0}'])
def test_odd_json_is_an_input_error(content, tmp_path):
    path = make("folder", tmp_path, {**FILES, "dataset.json": content})
    with pytest.raises(InputError, match=r"dataset\.json") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("names", [["a/1.jpg", "b/2.PNG"], ["./a/1.jpg", "./b/2.PNG"], ["a\\1.jpg", "b\\2.PNG"]])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_forms_of_names_in_json(names, mark, tmp_path):
    content = mark + json.dumps({"labels": [[name, n] for n, name in enumerate(names)]}).encode()
    assert labels_of(open_source(make("folder", tmp_path, {**FILES, "dataset.json": content}))) == [0, 1]


def test_damaged_json_is_an_input_error(kind, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        open_source(make(kind, tmp_path, {**FILES, "dataset.json": b"{"}))


def test_nothing_to_read(kind, tmp_path):
    with pytest.raises(InputError, match="holds no image"):
        open_source(make(kind, tmp_path, {"notes.txt": b""}))
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        open_source(tmp_path / "file.txt")


def test_listing_decides_the_checksum(kind, tmp_path):
    path = make(kind, tmp_path, FILES)
    first = open_source(path).sha256
    assert open_source(path).sha256 == first
    assert open_source(path, "folders").sha256 != first
    assert open_source(make(kind, tmp_path, {**FILES, "a/1.jpg": b"longer"})).sha256 != first


def test_files_beyond_the_size_limit_are_not_read(kind, tmp_path, monkeypatch):
    source = open_source(make(kind, tmp_path, {"bomb.png": bytes(5000)}))
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 4999)
    with pytest.raises(ValueError, match="limit"):
        source.read("bomb.png")


def test_damaged_member_of_a_zip(tmp_path):
    path = make("zip", tmp_path, {"a.png": b"0123456789"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0123456789", b"0123456780"))
    with pytest.raises(ValueError, match="CRC"):
        open_source(path).read("a.png")


def test_methods_of_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for name, method in (("a.png", zipfile.ZIP_STORED), ("b.png", zipfile.ZIP_DEFLATED), ("c.png", zipfile.ZIP_LZMA)):
            archive.writestr(name, name.encode() * 100, method)
    source = open_source(tmp_path / "source.zip")
    for name in ("a.png", "b.png"):
        assert source.read(name) == name.encode() * 100
    with pytest.raises(ValueError, match="another method"):
        source.read("c.png")


def test_truncated_zip(tmp_path):
    path = make("zip", tmp_path, FILES)
    os.truncate(path, path.stat().st_size - 30)
    with pytest.raises(InputError, match=r"neither a folder nor a zip|cannot be read"):
        open_source(path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    path = make("folder", tmp_path, {"a/1.png": b"1"})
    other = make("folder", tmp_path / "other", {"2.png": b"2"})
    os.symlink(other, path / "linked")
    os.symlink(path, path / "a" / "circle")
    os.symlink(tmp_path / "nowhere", path / "dangling.png")
    source = open_source(path)
    assert [item.name for item in source.items] == ["a/1.png", "dangling.png", "linked/2.png"]
    assert source.read("linked/2.png") == b"2"
    with pytest.raises(ValueError, match="No such file"):
        source.read("dangling.png")


def test_labels_from_names(kind, tmp_path):
    names = ["a/10_b.png", "a/9_c.png", "x/9-d.png"]
    source = open_source(make(kind, tmp_path, dict.fromkeys(names, b"")), "names")
    assert labels_of(source) == [1, 0, 0]
    assert source.classes == ["9", "10"], "numbers in their order"
    words = open_source(make(kind, tmp_path / "words", {"cat_1.png": b"", "cat_2.png": b"", "ant.1_x.png": b""}), "names")
    assert words.classes == ["ant.1", "cat"]


def test_what_a_source_holds(kind, tmp_path):
    for number, (files, expected) in enumerate([
        ({"a.npy": b"", "b/c.PNG": b""}, "images"), ({"a.NPZ": b"", "b.wav": b""}, "arrays"), ({"a.wav": b""}, "sounds"),
        ({"a.txt": b""}, "images"),
    ]):
        assert sources.kind_of(sources.list_source(make(kind, tmp_path / str(number), files))) == expected


def test_damaged_and_compressed_tar(tmp_path):
    path = make("tar", tmp_path, {"a.png": bytes(1000), "b.png": bytes(1000)})
    with tarfile.open(tmp_path / "source.tgz", "w:gz") as tape:
        tape.add(path)
    with pytest.raises(InputError, match="compressed: unpack it"):
        open_source(tmp_path / "source.tgz")
    os.truncate(path, 2500)
    with pytest.raises(InputError, match=r"cannot be read: .*ends inside"):
        open_source(path)
