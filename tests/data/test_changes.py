"""A source that has changed under the same names and sizes is noticed; a copy of it is the same source."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.data.index import INDEX_NAME
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.array import ArrayOptions
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making import pack as packing
from stylegan_dist.making.pack import PackOptions, pack

OPTIONS = PackOptions(ImageOptions(8), shuffle=False, samples_per_shard=2, workers=1)


def write(folder, colours) -> None:
    folder.mkdir(exist_ok=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.bmp")  # always as many bytes


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".source"}


def test_other_content_under_the_same_names_and_sizes(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    write(source, ["red"] * 4)
    pack(source, out, OPTIONS)
    before = contents(out)
    write(source, ["red", "red", "blue", "red"])
    with pytest.raises(InputError, match=r"held something else.*--overwrite"):
        pack(source, out, OPTIONS)
    assert contents(out) == before
    pack(source, out, replace(OPTIONS, overwrite=True))
    assert contents(out) != before
    pack(source, out, OPTIONS)
    assert "already packed" in capsys.readouterr().out


def test_arrays_too(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    options = PackOptions(ArrayOptions(resolution=8), workers=1)
    np.save(source / "a.npy", np.ones((1, 8, 8), np.float32))
    pack(source, tmp_path / "out", options)
    np.save(source / "a.npy", np.zeros((1, 8, 8), np.float32))
    with pytest.raises(InputError, match="held something else"):
        pack(source, tmp_path / "out", options)


def test_a_copy_is_the_same_source(tmp_path, capsys, monkeypatch):
    write(tmp_path / "source", ["red", "blue"])
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "source")
    write(tmp_path / "source", ["red", "blue"])
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    monkeypatch.setattr(packing, "contents_of", None)  # the next time a look at the times is enough
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    assert capsys.readouterr().out.count("already packed") == 2
    assert contents(tmp_path / "out") == before


def test_without_the_note_and_as_earlier_versions_left_it(tmp_path, capsys):
    write(tmp_path / "source", ["red", "blue"])
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    (tmp_path / "out" / ".source").unlink()
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    path = tmp_path / "out" / INDEX_NAME
    record = json.loads(path.read_text())
    del record["packed_with"]["source_content"], record["packed_with"]["account"]
    path.write_text(json.dumps(record))
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    assert "only names and sizes of the files were compared" in capsys.readouterr().out


def interrupt(source, out, monkeypatch) -> None:
    """Leave all shards finished, and no index."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *_: None)
        pack(source, out, OPTIONS)
    assert not (out / INDEX_NAME).exists()


def test_a_pack_that_is_half_done(tmp_path, capsys, monkeypatch):
    """Finished shards of files that have changed are packed again; the others stay."""
    source = tmp_path / "source"
    write(source, ["red"] * 6)
    interrupt(source, tmp_path / "out", monkeypatch)
    write(source, ["red", "red", "red", "blue", "red", "red"])
    pack(source, tmp_path / "out", OPTIONS)
    assert "1 finished shards are packed again" in capsys.readouterr().out
    pack(source, tmp_path / "straight", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_a_change_during_packing_is_an_error_that_the_next_call_mends(tmp_path, monkeypatch):
    source = tmp_path / "source"
    write(source, ["red"] * 6)
    before = os.stat(source / "0.bmp").st_size

    def resume(*args):
        results = found(*args)
        write(source, ["blue"] * 6)
        return results

    found = packing._resume
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_resume", resume)
        with pytest.raises(InputError, match=r"changed .*same command"):
            pack(source, tmp_path / "out", OPTIONS)
    assert os.stat(source / "0.bmp").st_size == before
    pack(source, tmp_path / "out", OPTIONS)
    pack(source, tmp_path / "straight", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("text", ["", "[" * 5000, "{}", '{"fingerprint": 5}', '{"fingerprint": "x"}', "\0"])
def test_a_damaged_plan(text, tmp_path, monkeypatch):
    write(tmp_path / "source", ["red"] * 4)
    interrupt(tmp_path / "source", tmp_path / "out", monkeypatch)
    (tmp_path / "out" / ".pack" / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json is damaged .*--overwrite") as caught:
        pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    assert "\n" not in str(caught.value)
    pack(tmp_path / "source", tmp_path / "out", replace(OPTIONS, overwrite=True))


@pytest.mark.parametrize("change", [
    {"shard": 5}, {"shard": {"name": "x"}}, {"skipped": [5]}, {"enlarged": -1}, {"values": {}}, {"content": ""},
    {"finished": None}, {"values": {"count": 1, "least": [1.0], "greatest": [], "mean": [], "squares": []}}])
def test_a_damaged_record_is_made_again(change, tmp_path, monkeypatch):
    write(tmp_path / "source", ["red"] * 4)
    interrupt(tmp_path / "source", tmp_path / "out", monkeypatch)
    record = tmp_path / "out" / ".pack" / "shard-00000.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    pack(tmp_path / "source", tmp_path / "out", OPTIONS)
    pack(tmp_path / "source", tmp_path / "straight", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
