"""Arrays as samples: what is read and what is refused, packing, and the exact values that training sees."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import joined, same, stream_of

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Image
from stylegan_dist.kinds import array as arrays
from stylegan_dist.kinds.array import Array, ArrayOptions, decode_array
from stylegan_dist.kinds.npy import encode_array
from stylegan_dist.kinds.values import Values
from stylegan_dist.making import shard_writer
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.verify import verify

SHAPE = (2, 16, 16)
OPTIONS = PackOptions(ArrayOptions(resolution=16), labels="folders", samples_per_shard=6, workers=2)
ORDER = {"seed": 3, "lanes": 4, "block": 4}


def npy(values, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values), **options)
    return file.getvalue()


def npz(compressed=True, **values) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **values)
    return file.getvalue()


def make(folder, dtype="float32", count=20, ending="npy", shape=SHAPE):
    """Arrays whose channels have different ranges, in two classes; returns them by place in the order of the names."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        values = rng.normal(0, 1, shape) * 10 + 30 * np.arange(1, shape[0] + 1)[:, None, None]
        values = values.clip(0, 255).astype(dtype)
        path = folder / "ab"[number * 2 // count] / f"{number:03d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(values) if ending == "npy" else npz(some_name=values))
        made.append(values)
    return made


@pytest.fixture
def source(tmp_path):
    make(tmp_path / "arrays")
    return tmp_path / "arrays"


@pytest.fixture
def shards(source, tmp_path):
    pack(source, tmp_path / "set", OPTIONS)
    return tmp_path / "set"


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def take(folder, count: int, **options) -> list:
    stream = stream_of(load_index(folder), **{**ORDER, "batch": 4, **options})
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


@pytest.mark.parametrize(("dtype", "ending", "encoding"), [
    ("uint8", "npy", "npy"), ("int16", "npy", "npz"), ("float16", "npz", "npy"), ("float32", "npz", "npz"),
])
def test_from_a_folder_to_what_training_sees(tmp_path, dtype, ending, encoding):
    made = make(tmp_path / "in", dtype, ending=ending)
    index = pack(tmp_path / "in", tmp_path / "set", replace(OPTIONS, packing=ArrayOptions(resolution=16, encoding=encoding)))
    assert index == load_index(tmp_path / "set")
    assert (index.resolution, index.channels, index.encoding, index.kind.dtype) == (16, 2, encoding, dtype)
    assert verify(tmp_path / "set", workers=1) == []
    everything = np.stack(made).astype(np.float64)
    least, greatest = everything.min((0, 2, 3)), everything.max((0, 2, 3))
    assert index.kind.offset == tuple((greatest + least) / 2)
    assert index.kind.scale == tuple((greatest - least) / 2)
    whole = joined(take(tmp_path / "set", 5))
    assert whole["sample"].dtype == getattr(torch, dtype)
    assert {row.numpy().tobytes() for row in whole["sample"]} == {values.tobytes() for values in made}, "each once, bit for bit"
    seen = index.kind.to_network(whole["sample"])
    offset, scale = (np.float32(v)[:, None, None] for v in (index.kind.offset, index.kind.scale))
    assert np.array_equal(seen.numpy(), (whole["sample"].numpy().astype(np.float32) - offset) / scale)
    assert seen.amin((0, 2, 3)).tolist() == pytest.approx([-1, -1], abs=1e-6)
    assert seen.amax((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-6)
    back = index.kind.from_network(seen)
    assert back.dtype == whole["sample"].dtype
    assert torch.allclose(back.float(), whole["sample"].float(), rtol=1e-6, atol=1e-5 if dtype == "float32" else 0)
    assert [int(label) for label in whole["label"]] == [
        next(i for i, values in enumerate(made) if values.tobytes() == image.numpy().tobytes()) * 2 // 20
        for image in whole["sample"]]


def test_the_same_global_batches_for_any_readers_and_ranks(shards):
    reference = take(shards, 9, mirror=True)
    for world, workers in ((1, 2), (2, 0), (4, 1)):
        parts = [take(shards, 9, mirror=True, rank=rank, world_size=world, workers=workers) for rank in range(world)]
        for step in range(9):
            assert same(joined([part[step] for part in parts]), reference[step])
    plain = joined(take(shards, 9))["sample"]
    flipped = [not torch.equal(a, b) for a, b in zip(plain, joined(reference)["sample"], strict=True)]
    assert 5 < sum(flipped) < 31
    assert all(torch.equal(b, a.flip(2) if flip else a)
               for a, b, flip in zip(plain, joined(reference)["sample"], flipped, strict=True))


def test_images_come_to_the_same_range_as_ever():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(Image().to_network(levels), levels.float() / 127.5 - 1)


def test_same_bytes_for_any_number_of_workers_and_after_an_interruption(source, shards, tmp_path, monkeypatch, capsys):
    pack(source, tmp_path / "one", replace(OPTIONS, workers=1))
    assert contents(tmp_path / "one") == contents(shards)

    publish = shard_writer._publish
    monkeypatch.setattr(shard_writer, "_publish", lambda out, name, *rest: (
        os._exit(9) if name.endswith("2") else publish(out, name, *rest)))
    with pytest.raises(InputError, match=r"worker 1 \(process \d+\) has ended by itself with exit code 9"):
        pack(source, tmp_path / "killed", replace(OPTIONS, workers=1))
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "index.json").exists()
    pack(source, tmp_path / "killed", OPTIONS)
    assert "continuing: 2 shards are finished" in capsys.readouterr().out
    assert contents(tmp_path / "killed") == contents(shards)


def test_what_cannot_be_used_is_left_out_by_pack_and_named(source, tmp_path):
    (source / "a" / "nan.npy").write_bytes(npy(np.full(SHAPE, np.nan, np.float32)))
    (source / "a" / "shape.npy").write_bytes(npy(np.zeros((2, 8, 8), np.float32)))
    (source / "a" / "text.npy").write_bytes(b"no array")
    (source / "b" / "object.npy").write_bytes(npy(np.array([print], dtype=object), allow_pickle=True))
    (source / "b" / "two.npz").write_bytes(npz(x=np.zeros(SHAPE), y=np.zeros(SHAPE)))
    index = pack(source, tmp_path / "out", replace(OPTIONS, max_skipped=5))
    assert index.num_samples == 20
    reasons = {entry["name"]: entry["reason"] for entry in index.skipped}
    assert list(reasons) == ["a/nan.npy", "a/shape.npy", "a/text.npy", "b/object.npy", "b/two.npz"]
    for reason, words in zip(reasons.values(), ("512 of 512 values are NaN", "[2, 8, 8] instead of [2, 16, 16]", "not an array",
                                                "not of numbers", "'x', 'y'"), strict=True):
        assert words in reason
    with pytest.raises(InputError, match=r"of 25 files .*1 "):
        pack(source, tmp_path / "strict", OPTIONS)


@pytest.mark.parametrize(("values", "options", "message"), [
    (np.zeros((2, 8, 16), np.float32), {}, r"shape \[2, 8, 16\]: needed is \[1 to 128, 16, 16\]"),
    (np.zeros((16, 16, 3), np.float32), {}, "channels first"),
    (np.zeros((129, 16, 16), np.float32), {}, r"needed is \[1 to 128, 16, 16\]"),
    (np.zeros((2, 16, 16), np.float32), {"channels": 3}, r"needed is \[3, 16, 16\]"),
    (np.zeros((16, 16), np.float64), {}, "float64: say with --dtype"),
    (np.zeros(16, np.float32), {}, r"none of the arrays can be read: 'a/x\.npy': an array of shape \[16\]"),
    (np.zeros((16, 16), np.float32), {"offset": (1.0,)}, "offset and scale belong together"),
    (np.zeros((16, 16), np.float32), {"offset": (1.0, 2.0), "scale": (1.0, 2.0)}, "2 offsets and 2 scales"),
    (np.zeros((16, 16), np.float32), {"offset": (1.0,), "scale": (0.0,)}, "no scale zero"),
    (np.zeros((16, 16), np.float32), {"resolution": 20}, "resolution must be one of"),
])
def test_refused_with_what_is_needed(tmp_path, values, options, message):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.npy").write_bytes(npy(values))
    with pytest.raises(InputError, match=message):
        pack(tmp_path / "in", tmp_path / "out", replace(OPTIONS, packing=ArrayOptions(**{"resolution": 16, **options})))


def test_another_dtype_loses_digits_and_nothing_else(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    wide = np.random.default_rng(0).normal(0, 100, (16, 16))
    (tmp_path / "in" / "a" / "wide.npy").write_bytes(npy(np.asfortranarray(wide.astype(">f8"))))
    (tmp_path / "in" / "a" / "large.npy").write_bytes(npy(wide * 1e4))
    index = pack(tmp_path / "in", tmp_path / "out", replace(OPTIONS, packing=ArrayOptions(resolution=16, dtype="float16")))
    assert [entry["name"] for entry in index.skipped] == ["a/large.npy"], "infinite in float16"
    assert np.array_equal(take(tmp_path / "out", 1, batch=1)[0]["sample"][0, 0].numpy(), wide.astype(np.float16))


@pytest.mark.parametrize("how", ["std", "none"])
def test_other_normalisations(source, tmp_path, how):
    index = pack(source, tmp_path / "out", replace(OPTIONS, packing=ArrayOptions(resolution=16, normalise=how)))
    seen = index.kind.to_network(joined(take(tmp_path / "out", 5))["sample"]).double()
    if how == "none":
        assert 30 < seen.mean() < 60
    else:
        assert seen.mean((0, 2, 3)).abs().max() < 1e-6
        assert seen.std((0, 2, 3), correction=0).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_a_channel_that_is_the_same_everywhere():
    values = Values.of(np.full((1, 8, 8), 7, np.uint8))
    for how in ("range", "std"):
        assert values.normalisation(how) == ((7.0,), (1.0,))


# Decoding

FORM = Array("float32", (0.0,), (1.0,))
GOOD = np.random.default_rng(0).normal(0, 1, (3, 16, 16)).astype(np.float32)


def broken(change) -> np.ndarray:
    values = GOOD.copy()
    values[1, 2, 3] = change
    return values


def bomb() -> bytes:
    """A header that promises 64 GB, in a member that would unpack to 32 MB of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(npy(np.zeros(0, np.float32)).replace(b"(0,), }", b"(4096, 4096, 1024), }")[:128])
        for _ in range(32):
            member.write(bytes(1 << 20))
    return file.getvalue()


def lying(data: bytes) -> bytes:
    """The same zip, whose directories promise that the member is small."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = archive.infolist()[0].file_size
    return data.replace(struct.pack("<L", size), struct.pack("<L", 3200))


@pytest.mark.parametrize("data", [
    npy(GOOD), npz(x=GOOD), npz(False, x=GOOD), npz(y=GOOD[:1], x=GOOD), npy(np.asfortranarray(GOOD)),
])
def test_decoded(data):
    batch = np.full((3, 16, 16, 3), 7, np.float32)
    decode_array(replace(FORM, key="x"), data, batch[1])
    assert np.array_equal(batch[1], GOOD.transpose(1, 2, 0))
    assert (batch[[0, 2]] == 7).all(), "only its own place"


@pytest.mark.parametrize(("data", "message"), [
    (npy(GOOD)[:-4], "bytes, its header promises"), (npy(GOOD) + b"\0", "bytes, its header promises"),
    (npy(GOOD)[:20], "."), (b"", "not an array"), (b"PK\3\4 no zip", "."),
    (npy(GOOD.astype(np.float64)), "more than the 3072 that are expected"),
    (npy(GOOD.astype(np.float16)), "float16 instead of"),
    (npy(GOOD.astype(">f4")), ">f4 instead of float32"),
    (npy(GOOD[:, :8]), r"shape \[3, 8, 16\] instead of \[3, 16, 16\]"), (npy(GOOD[0, 0]), r"shape \[16\]"),
    (npy(broken(np.nan)), "1 of 768 values are NaN"), (npy(broken(np.inf)), "1 of 768 values are NaN or infinite"),
    (npz(y=GOOD), "no array 'x'; it holds 'y'"), (npz(x=broken(np.nan)), "NaN"),
    (npz(False, x=GOOD).replace(GOOD[1].tobytes(), GOOD[2].tobytes()), "CRC"),
    (npy(np.array([print], dtype=object), allow_pickle=True), "not of numbers"),
    (npy(np.zeros(3, [("a", "f4")])), "not of numbers"),
])
def test_not_decoded(data, message):
    with pytest.raises(ValueError, match=message):
        decode_array(replace(FORM, key="x"), data, np.empty((16, 16, 3), np.float32))


def test_bombs_cost_nothing():
    data = bomb()
    assert len(data) < 1 << 18
    for malicious in (data, lying(data)):
        began = time.process_time()
        with pytest.raises(ValueError, match=r"bytes|CRC"):
            decode_array(replace(FORM, key="x"), malicious, np.empty((16, 16, 3), np.float32))
        assert time.process_time() - began < 0.1


def test_encoded_arrays_are_what_numpy_reads():
    for dtype in arrays.DTYPES:
        values = GOOD.astype(dtype)
        assert np.array_equal(np.load(io.BytesIO(encode_array(values, "npy")), allow_pickle=False), values)
        with np.load(io.BytesIO(encode_array(values, "npz")), allow_pickle=False) as file:
            assert np.array_equal(file["array"], values)
    assert encode_array(GOOD, "npy") == npy(GOOD)


# Other tools

def damage(shards, values=np.nan) -> None:
    """The first sample of the first shard gets a value that it must not have."""
    shard = load_index(shards).shards[0]
    table = np.load(shards / shard.offsets)
    with open(shards / shard.name, "r+b") as file:
        file.seek(int(table[0].sum() - table[0, 2]) - 4)
        file.write(np.float32(values).tobytes())


def test_a_corrupt_array_is_found_by_verify_and_replaced_in_training(shards):
    damage(shards)
    problems = list(map(str, verify(shards, workers=1)))
    assert any("the array cannot be used (1 of 512 values are NaN or infinite)" in problem for problem in problems)
    stream = stream_of(load_index(shards), **ORDER, batch=20)
    try:
        batch = next(stream)
        (fault,) = stream.take_replaced()
    finally:
        stream.close()
    assert "NaN" in fault.reason
    assert fault.by == 1
    assert torch.isfinite(batch["sample"]).all()


def test_shards_of_other_tools(shards, tmp_path):
    mine = load_index(shards)
    for name in ("index.json", *(shard.offsets for shard in mine.shards)):
        (shards / name).unlink()
    index = index_shards(str(shards), workers=1)
    assert (index.kind, index.channels, index.class_counts) == (mine.kind, 2, mine.class_counts)
    assert same(joined(take(shards, 5)), joined(take(shards, 5)))
    assert verify(shards, workers=1) == []
    assert main(["index", str(shards), str(tmp_path / "other"), "--offset", "-3.5", "--scale", "40"]) == 0
    assert load_index(tmp_path / "other").kind == Array("float32", (-3.5,), (40.0,))
    with pytest.raises(InputError, match=r"cannot be mixed.*normalisation"):
        load_index(f"{shards} {tmp_path / 'other'}")


def test_normalisation_is_part_of_what_the_data_is(source, shards, tmp_path):
    pack(source, tmp_path / "out", replace(OPTIONS, packing=ArrayOptions(resolution=16, offset=(0.0,), scale=(50.0,))))
    a, b = load_index(shards), load_index(tmp_path / "out")
    assert a.shards == b.shards
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize("change", [
    {"dtype": "object"}, {"offset": [1, 2, 3]}, {"scale": [0, 1]}, {"scale": ["x", 1]}, {"dtype": None}, {"more": 1},
])
def test_a_damaged_declaration(shards, change):
    path = shards / "index.json"
    content = json.loads(path.read_text())
    content["array"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged"):
        load_index(shards)


def test_from_the_command_line(source, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["pack", str(source), out, "--resolution", "16", "--normalise", "std", "--labels", "folders"]) == 0
    assert "packing 20 arrays" in capsys.readouterr().out
    assert main(["peek", out, "--out", str(tmp_path / "sheet.png")]) == 0
    assert main(["verify", out]) == 0
    assert main(["bench-data", out, "--workers", "0", "--seconds", "0.1"]) == 0
    assert main(["pack", str(source), out, "--resolution", "16", "--fit", "pad"]) == 2
    assert "--fit has no meaning for arrays" in capsys.readouterr().err


def test_pictures_of_any_number_of_channels():
    values = torch.rand(2, 4, 8, 8)
    one, two, three, four = (FORM.as_pictures(values[:, :count]) for count in (1, 2, 3, 4))
    assert torch.equal(one, values[:, :1])
    assert torch.equal(two[:, :2], values[:, :2])
    assert (two[:, 2] == -1).all()
    assert torch.equal(three, four)
    assert torch.equal(four, values[:, :3])


def test_an_option_takes_what_any_kind_takes(tmp_path, capsys):
    """Arrays may have more channels than images."""
    np.save(tmp_path / "one.npy", np.zeros((6, 16, 16), np.float32))
    assert main(["pack", str(tmp_path), str(tmp_path / "out"), "--arrays", "--resolution", "16", "--channels", "6"]) == 0
    assert load_index(tmp_path / "out").channels == 6
    assert main(["pack", str(tmp_path), str(tmp_path / "other"), "--arrays", "--resolution", "16", "--channels", "129"]) == 2
    assert "from 1 to 128" in capsys.readouterr().err
