"""index.json and offsets of others: whatever they hold, a valid index or one line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time

import numpy as np
import pytest
from batches import stream_of
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_dist.data.index import Shard, load_index, load_offsets, parse_offsets, read_index
from stylegan_dist.data.index_file import read_index_file
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.npy import parse_npy
from stylegan_dist.making.verify import verify

SHARD = {"name": "a.tar", "samples": 2, "bytes": 4096, "sha256": "0" * 64, "offsets": "a.offsets.npy",
         "offsets_sha256": "1" * 64}
GOOD = {"format": "stylegan-dist-shards", "version": 1, "num_samples": 2, "resolution": 8, "channels": 3, "encoding": "png",
        "classes": ["x", "y"], "class_counts": [1, 1], "packed_with": {"fingerprint": "f"}, "skipped": [], "shards": [SHARD]}
ARRAY = {"dtype": "float16", "offset": [0.0], "scale": [1.0], "key": None, "log_mel": None}
MEL = {"sample_rate": 8000, "hop": 128, "window": 512, "bands": 8, "frames": 8, "low_hz": 0.0, "high_hz": 4000.0,
       "floor_db": -80.0}


def read(content) -> str:
    """The one line of the error, or "" for an index that is accepted."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        read_index_file(text, "index.json")
    except (ValueError, InputError) as error:
        said = str(error)
    else:
        return ""
    assert "\n" not in said
    assert 0 < len(said) < 400
    return said


def without(*keys: str) -> dict:
    return {key: value for key, value in GOOD.items() if key not in keys}


@pytest.mark.parametrize("content", [
    GOOD, without("packed_with", "skipped"), {**GOOD, "packed_with": {}, "skipped": [], "shards_at": None, "array": None},
    {**GOOD, "classes": None, "class_counts": None}, {**GOOD, "classes": [], "class_counts": []},
    {**GOOD, "packed_with": None, "skipped": None}, {**GOOD, "shards_at": "/data"},
    {**GOOD, "shards": [{**SHARD, "sha256": ""}]},
    {**GOOD, "array": ARRAY}, {**GOOD, "array": {**ARRAY, "offset": [0], "scale": [2]}, "channels": 2},
    {**GOOD, "array": {**ARRAY, "log_mel": MEL}, "channels": 1}, {**GOOD, "encoding": "jpeg"},
    {**GOOD, "shards": [SHARD, {**SHARD, "name": "b.tar", "samples": 0, "bytes": 0}]},
], ids=str)
def test_valid_indices_are_accepted(content):
    assert read(content) == ""


@pytest.mark.parametrize(("change", "names"), [
    ({"resolution": 8.0}, "resolution"), ({"resolution": 2**70}, ""), ({"resolution": 12}, "12 pixels"),
    ({"resolution": True}, ""),
    ({"channels": 2}, "2 channels"), ({"channels": "3"}, "channels"), ({"encoding": 5}, "encoding"),
    ({"encoding": "a/b"}, "encoding"),
    ({"classes": 5}, "classes"), ({"classes": ["x"]}, "1 classes with 2"), ({"classes": [1, 2]}, "classes.0"),
    ({"class_counts": None}, "class_counts"), ({"class_counts": "ab"}, "class_counts"),
    ({"class_counts": [-1, 3]}, "class_counts"),
    ({"class_counts": [1, 1, 0]}, "class_counts"), ({"class_counts": [1.0, 1]}, "class_counts"),
    ({"classes": None}, "class_counts"),
    ({"array": {}}, "array"), ({"array": 5}, "array"), ({"array": {**ARRAY, "more": 1}}, "more"),
    ({"array": {**ARRAY, "offset": ["x"]}}, "offset"), ({"array": {**ARRAY, "log_mel": {}}}, "log_mel"),
    ({"array": {**ARRAY, "log_mel": {**MEL, "bands": 10**9}}, "channels": 1}, "bands"),
    ({"array": {**ARRAY, "log_mel": {**MEL, "window": 10**9}}, "channels": 1}, "window"),
    ({"array": {**ARRAY, "log_mel": {**MEL, "hop": 1.5}}, "channels": 1}, "hop"),
    ({"parts": [5]}, "parts"), ({"location": "x"}, "location"), ({"num_samples": 3}, "promises 3"),
    ({"num_samples": -1}, "num_samples"),
    ({"num_samples": 10**400}, ""), ({"shards": {}}, "shards"), ({"shards": []}, "hold 0"), ({"shards": [5]}, "shards.0"),
    ({"shards": [{**SHARD, "location": "/etc/passwd"}]}, "location"), ({"shards": [{**SHARD, "samples": 2.0}]}, "samples"),
    ({"shards": [{**SHARD, "bytes": -1}]}, "bytes"), ({"shards": [{**SHARD, "bytes": 2**63}]}, "bytes"),
    ({"shards": [{**SHARD, "bytes": 1000}]}, "cannot hold 2 samples"), ({"shards": [{**SHARD, "sha256": "x"}]}, "sha256"),
    ({"shards": [{**SHARD, "bytes": 2**62}] * 2, "num_samples": 4}, "more bytes"),
    ({"shards": [{**SHARD, "offsets": None}]}, "offsets"),
    ({"shards": [{**SHARD, "name": ["a"]}]}, "name"), ({"packed_with": 5}, "packed_with"), ({"skipped": [5]}, "skipped"),
    ({"shards_at": 5}, "shards_at"), ({"shards_at": ""}, "shards_at"), ({"version": 2}, "version 2"),
    ({"version": "1"}, "version '1'"),
    ({"format": None}, "not a shard index"), ({"version": 2, "resolution": "future"}, "version 2"),
])
def test_anything_else_is_one_line_that_names_it(change, names):
    said = read({**GOOD, **change})
    assert said
    assert names in said


@pytest.mark.parametrize("text", [
    b"", b"[]", b"5", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"format": ' * 10_000, b"9" * 5000, b"NaN",
    json.dumps({**GOOD, "packed_with": "X"}).replace('"X"', '{"a": ' * 10_000).encode(),
    json.dumps(GOOD).replace("4096", "9" * 5000).encode(), json.dumps(GOOD).replace('"x"', '"\\ud800"').encode(),
], ids=lambda text: ascii(text[:12]))
def test_what_is_no_index_is_one_line(text):
    assert read(text)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from([*GOOD, "array", "shards_at", "parts"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*SHARD, *ARRAY]), inner, max_size=3), max_leaves=8), max_size=3))
def test_any_change_is_an_index_or_one_line(change):
    read({**GOOD, **change})


@pytest.mark.parametrize("name", ["a\0.tar", "x" * 300 + ".tar", "é" * 200, "a\nb.tar", "..", "a/b.tar", ""])
def test_names_that_no_file_has(own_shards, name):
    content = json.loads((own_shards / "index.json").read_text())
    content["shards"][0]["name"] = name
    (own_shards / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a plain file name"):
        load_index(own_shards)


def test_an_index_without_end_is_not_read(own_shards):
    os.truncate(own_shards / "index.json", 1 << 40)
    with pytest.raises(InputError, match="is damaged"):
        read_index(own_shards)
    (own_shards / "index.json").unlink()
    os.mkfifo(own_shards / "index.json")
    with pytest.raises(InputError, match=r"no index\.json"):
        read_index(own_shards)


def test_nothing_but_blanks_is_no_data():
    with pytest.raises(InputError, match="names no data"):
        load_index("  ")


def test_paths_with_blanks_and_brackets_may_be_mixed(own_shards):
    first, second = own_shards.parent / "my [photos]", own_shards.parent / "our * set"
    own_shards.rename(first)
    second.symlink_to(first)
    for text in (f"{first} {second}", f"{first}@1 {second}@3"):
        assert [part.shards for part in load_index(text).parts] == [7, 7]
    assert load_index(f"{first}@3").num_samples == 44


# Offsets

def npy(table) -> bytes:
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def shard_of(content: bytes, samples: int, size: int = 10**6) -> Shard:
    return Shard("a.tar", samples, size, "", "a.npy", hashlib.sha256(content).hexdigest())


def header(fields: str) -> bytes:
    text = fields.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("row", [
    (2**63 - 1, 2**63 - 1, 0), (2**62, 2**62, 0), (10**6, 1, 0), (-1, 5, 0), (5, -1, 0), (0, 10**6 + 1, 0), (-2**63, -2**63, 0),
])
def test_offsets_outside_the_shard(row):
    content = npy(np.array([(0, 5, 0), row], np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        parse_offsets(shard_of(content, 2), content)


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", npy(np.zeros((2, 3), np.float64)), npy(np.zeros((3, 2), np.int64)), npy(np.zeros((2, 3), ">i8")),
    npy(np.zeros(6, np.int64)), header("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3)}"),
    header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**40}, 3)}}"),
    header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}"), header("{'descr': '<i8', 'shape': (-2, -3)}"),
    header("{'descr': '<i8', 'fortran_order': False, 'shape': (-2, -3)}") + bytes(48),
    b"\x93NUMPY\x01\0\xff\x0f" + b"(" * 4080, b"\x93NUMPY\x01\0\xff\x0f" + b"-" * 4080,
    b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b"[" * 4080,
    header("{'descr': '<i8', 'fortran_order': False, 'shape': (" + "1," * 30 + ")}") + bytes(8),
], ids=lambda content: ascii(content[8:40]))
def test_a_hostile_table(content):
    """Refused by its header, before memory is taken."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_offsets(shard_of(content, 2), content)
    assert "\n" not in str(caught.value)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_array_or_a_value_error(data):
    for content in (data, b"\x93NUMPY\x01\0" + data, header(ascii(data)[:100])):
        with contextlib.suppress(ValueError):
            parse_npy(content, 1000)


def change_offsets(folder, change) -> None:
    """In the first shard's table, with the index in agreement."""
    content = json.loads((folder / "index.json").read_text())
    shard = content["shards"][0]
    table = np.load(folder / shard["offsets"])
    change(table, shard)
    np.save(folder / shard["offsets"], table)
    shard["offsets_sha256"] = hashlib.sha256((folder / shard["offsets"]).read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("label", [-1, 3, 2**40, -2**63])
def test_a_label_that_no_class_has_is_found_before_it_is_trained_on(own_shards, label):
    def change(table, shard):
        table[0, 2] = label

    change_offsets(own_shards, change)
    index = load_index(own_shards)
    assert index.num_classes == 3
    with pytest.raises(InputError, match=r"classes that index\.json does not know"):
        for _ in zip(range(8), stream_of(index, seed=0, lanes=4, block=8, batch=8), strict=False):
            pass


@pytest.mark.exhaustive
def test_a_sample_of_gigabytes_is_not_read(own_shards):
    """In a sparse file: it is replaced, as any other that is corrupt, and verify names it."""
    def change(table, shard):
        shard["bytes"] = 4 << 30
        os.truncate(own_shards / shard["name"], 4 << 30)
        table[0, :2] = 1 << 20, 3 << 30
        shard["sha256"] = ""

    change_offsets(own_shards, change)
    index = load_index(own_shards)
    assert load_offsets(index.shards[0])[0, 1] == 3 << 30
    stream, began = stream_of(index, seed=0, lanes=1, block=100, batch=44), time.monotonic()
    next(stream)
    assert any("more than the" in fault.reason for fault in stream.take_replaced())
    stream.close()
    assert time.monotonic() - began < 600
    index = json.loads((own_shards / "index.json").read_text())
    assert any("more than the" in problem.what for problem in verify(own_shards, workers=1) if problem.offset == 1 << 20)


def test_names_that_are_no_unicode():
    """Earlier versions kept them as Python writes them."""
    record = read_index_file(json.dumps({**GOOD, "classes": ["caf\udce9", "\U00010080 \\udce9"]}).encode(), "index.json")
    assert record.classes == ["caf\\udce9", "\U00010080 \\udce9"]
