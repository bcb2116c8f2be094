"""Verification: every kind of damage is found and named."""

import hashlib
import json
import os

import numpy as np
import pytest

from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.making.verify import verify


def change_byte(path, offset, value=None):
    with open(path, "r+b") as file:
        file.seek(offset)
        old = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([old ^ 0xFF if value is None else value]))


def accept_shard(folder, number):
    """Make the index agree with an altered shard, so that only its content can betray it."""
    content = json.loads((folder / "index.json").read_text())
    shard = content["shards"][number]
    for key, name in (("sha256", "name"), ("offsets_sha256", "offsets")):
        shard[key] = hashlib.sha256((folder / shard[name]).read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(content))


def texts(folder, **options):
    return [str(problem) for problem in verify(folder, workers=1, **options)]


def sample(folder, number=1, row=3):
    shard = load_index(folder).shards[number]
    return folder / shard.name, *load_offsets(shard)[row].tolist()


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_sound_set(shard_set, deep, workers):
    assert verify(shard_set, deep, workers) == []


def test_flipped_byte_in_an_image(shard_set):
    path, offset, size, _ = sample(shard_set)
    change_byte(path, offset + size // 2)
    deep = verify(shard_set, workers=1)
    assert {problem.file for problem in deep} == {"shard-00001.tar"}
    assert any("SHA-256" in problem.what for problem in deep)
    assert any((problem.sample, problem.offset) == ("00000018.png", offset) for problem in deep)
    assert len(texts(shard_set, deep=False)) == 1


def test_flipped_byte_in_padding_is_found_by_the_checksum(shard_set):
    path, offset, size, _ = sample(shard_set)
    change_byte(path, offset + size)
    [text] = texts(shard_set)
    assert "shard-00001.tar: the SHA-256 differs" in text


def test_flipped_byte_in_a_header(shard_set):
    path, offset, _, _ = sample(shard_set)
    change_byte(path, offset - 500)
    assert any(f"byte {offset - 512}: damaged tar header" in text for text in texts(shard_set))


def test_truncated_shard(shard_set):
    path, offset, size, _ = sample(shard_set)
    os.truncate(path, offset + size // 2)
    found = texts(shard_set)
    assert any("instead of" in text and "bytes" in text for text in found)
    assert len(texts(shard_set, deep=False)) >= 1


def test_empty_shard(shard_set):
    os.truncate(shard_set / "shard-00001.tar", 0)
    assert texts(shard_set)


def test_missing_files(shard_set):
    (shard_set / "shard-00001.tar").unlink()
    (shard_set / "shard-00002.offsets.npy").unlink()
    found = texts(shard_set)
    assert len(found) == 2
    assert "shard-00001.tar: the shard is missing" in found[0]
    assert "shard-00002.offsets.npy: the offsets file is missing" in found[1]
    assert all("restore the file" in text for text in found)


def test_wrong_label_in_the_tar(shard_set):
    path, offset, _, label = sample(shard_set)
    change_byte(path, offset - 2 * 512, ord("0") + (label + 1) % 3)
    accept_shard(shard_set, 1)
    [text] = texts(shard_set)
    assert "'00000018.cls'" in text
    assert f"the offsets say {label}" in text


@pytest.mark.parametrize("label", [3, -1])
def test_label_out_of_range(shard_set, label):
    path = shard_set / "shard-00001.offsets.npy"
    table = np.load(path)
    table[3, 2] = label
    np.save(path, table)
    accept_shard(shard_set, 1)
    found = texts(shard_set)
    assert any(f"the class is {label}, expected from 0 to 2" in text for text in found)
    assert any("class_counts" in text for text in found)


def test_offsets_that_point_elsewhere(shard_set):
    path = shard_set / "shard-00001.offsets.npy"
    table = np.load(path)
    table[3, 0] += 1
    np.save(path, table)
    [text] = texts(shard_set)
    assert "shard-00001.offsets.npy: the SHA-256 differs from the index" in text
    accept_shard(shard_set, 1)
    assert any(f"byte {table[3, 0]}: the offsets promise a sample" in text for text in texts(shard_set))


def test_unusable_offsets(shard_set):
    (shard_set / "shard-00001.offsets.npy").write_bytes(b"junk")
    assert any("shard-00001.offsets.npy" in text for text in texts(shard_set))


@pytest.mark.parametrize(("field", "value", "message"), [
    ("resolution", 32, "16 x 16 pixels instead of 32 x 32"),
    ("channels", 1, "mode RGB instead of L"),
])
def test_images_of_another_form(shard_set, field, value, message):
    content = json.loads((shard_set / "index.json").read_text())
    content[field] = value
    (shard_set / "index.json").write_text(json.dumps(content))
    found = texts(shard_set)
    assert len(found) == 60
    assert all(message in text for text in found)
    assert texts(shard_set, deep=False) == []


def test_samples_that_the_index_does_not_know(shard_set):
    path = shard_set / "shard-00001.offsets.npy"
    np.save(path, np.load(path)[:-1])
    content = json.loads((shard_set / "index.json").read_text())
    content["shards"][1]["samples"] -= 1
    content["num_samples"] -= 1
    (shard_set / "index.json").write_text(json.dumps(content))
    accept_shard(shard_set, 1)
    assert any("15 images are found, the index promises 14" in text for text in texts(shard_set))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format": "other"}'])
def test_damaged_index(shard_set, damage):
    (shard_set / "index.json").write_text(damage)
    [text] = texts(shard_set)
    assert text.startswith("index.json:")


def test_index_that_contradicts_itself(shard_set):
    content = json.loads((shard_set / "index.json").read_text())
    (shard_set / "index.json").write_text(json.dumps({**content, "num_samples": 61}))
    assert "promises 61 samples" in texts(shard_set)[0]


def test_no_index(tmp_path):
    assert "pack the images first" in texts(tmp_path)[0]


def test_pipes_are_no_shards(shard_set):
    """Nobody writes to them; reading would wait for ever."""
    for path in sorted(shard_set.glob("*.tar"))[:2]:
        path.unlink()
        os.mkfifo(path)
    problems = verify(shard_set, workers=1)
    assert sum("is a pipe or a device" in str(problem) for problem in problems) == 2
