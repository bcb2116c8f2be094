"""Text as samples: what becomes a line, packing and decoding, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import take
from small_features import small_features
from small_text import WORDS, lines_of_words, pack_lines

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.samples import check_takes
from stylegan_dist.features.network import NoFeatures
from stylegan_dist.kinds import Text, TextOptions, declared
from stylegan_dist.kinds.array import Array, TextForm
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.kinds.text import decode_line, pieces_of
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.text_file import open_text
from stylegan_dist.making.verify import verify

FORM = TextForm(" abc", 8)
POEM = "Two roads  diverged\n\n in a wood,\nand I --\n"


@pytest.mark.parametrize(("options", "pieces"), [
    ({}, ["Two roads diverged", "in a wood,", "and I --"]),
    ({"clean": "lower"}, ["two roads diverged", "in a wood,", "and i --"]),
    ({"clean": "letters", "unit": "words"}, ["two", "roads", "in a wood", "and i"]),
    ({"clean": "letters", "unit": "word"}, ["two", "roads", "in", "a", "wood", "and", "i"]),
    ({"unit": "window", "length": 6}, ["Two ro", "ads di", "verged", "in a", "wood,", "and I", "--"]),
    ({"unit": "words", "length": 10}, ["Two roads", "diverged", "in a wood,", "and I --"]),
])
def test_what_becomes_a_line(options, pieces):
    packing = TextOptions(**{"length": 9 if options.get("unit") == "words" else 7, **options})
    if packing.unit == "words" and packing.length == 9:
        pieces = ["two roads", "in a wood", "and i"]  # "diverged in" would not fit
        pieces.insert(1, "diverged")
    assert pieces_of(POEM, packing) == pieces


def test_from_a_file_to_batches(tmp_path):
    out = pack_lines(tmp_path)
    assert verify(out) == []
    index = load_index(out)
    form = index.kind.form
    assert (index.resolution, index.channels, index.encoding, index.num_samples) == (16, 1, "txt", 80)
    assert form.symbols == " " + "".join(sorted(set("".join(WORDS))))
    assert (form.length, len(form.held_out)) == (8, 4)
    seen = []
    for batch in take(out, 10):
        values = index.kind.to_network(batch["sample"])
        assert torch.equal(values.sum(2), torch.ones(8, 1, 16))  # one symbol at each place, blanks behind the line
        assert torch.equal(index.kind.from_network(values * 0.4 + 0.1), batch["sample"])
        seen += index.kind.lines(values)
    assert sorted([*seen, *form.held_out]) == sorted(lines_of_words(84))
    account = index.packed_with["account"]
    assert [account["files"], account["samples"], account["left_out"][0]["files"]] == [84, 80, 4]


def test_the_same_bytes_again_and_another_text_is_refused(tmp_path):
    out = pack_lines(tmp_path)
    first = {path.name: path.read_bytes() for path in out.glob("*") if path.name != ".source"}
    assert pack_lines(tmp_path) == out  # already packed
    shutil.rmtree(out)
    pack_lines(tmp_path)
    assert {path.name: path.read_bytes() for path in out.glob("*") if path.name != ".source"} == first
    with pytest.raises(InputError, match="another source or other options"):
        pack_lines(tmp_path, ["a bus", *lines_of_words(83)])


def test_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "words"
    text = tmp_path / "t.txt"
    text.write_text("\n".join(["Ab a", "b, ba", "much too long", "é ab"]), encoding="utf-8")
    assert main(["pack", "--text", str(text), str(out), "--length", "4", "--unit", "word", "--clean", "letters", "--workers",
                 "1", "--held-out", "0"]) == 0
    index = load_index(out)
    assert (index.num_samples, index.kind.form.symbols, index.kind.form.held_out) == (9, " abcghlmnotué", ())
    told = capsys.readouterr().out
    assert "9 samples" in told
    plain = tmp_path / "plain"
    assert main(["pack", str(text), str(plain), "--text", "--length", "5", "--workers", "1", "--held-out", "1"]) == 0
    assert load_index(plain).num_samples == 2
    assert "1 of more than 5 symbols" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "options", "message"), [
    (b"", (), "holds no text that fits: is it empty"),
    (b" \n\t\n", (), "holds no text that fits"),
    (b"\x89PNG\r\n\x1a\n\0\xff", (), r"is no text in UTF-8 \(byte 0\)"),
    (b"ab\0cd\n", (), "it has a zero byte"),
    ("".join(map(chr, range(0x4e00, 0x4f00))).encode(), ("--unit", "window"),
     "has 257 different symbols, more than 255: replace the rare"),
    ("".join(map(chr, range(0x2500, 0x2600))).encode() + b"a", ("--unit", "window"),
     "more than 255: --clean letters leaves few"),
    (b"too long a line\nanother one\n", (), "none of its 2 lines has at most 8 symbols, the shortest has 11: give a larger"),
    (b"one\ntwo\n", ("--held-out", "2"), "has 2 lines of at most 8 symbols, of which 2 cannot be held out"),
    (b"one\ntwo\n", ("--length", "2000"), "--length"),
    (b"one\ntwo\n", ("--resolution", "32"),
     "--resolution has no meaning for text, only for images, arrays, sounds, videos, latents: leave it out"),
])
def test_no_text(content, options, message, tmp_path, capsys):
    source = tmp_path / "file.txt"
    source.write_bytes(content)
    length = () if "--length" in options else ("--length", "8")
    assert main(["pack", "--text", str(source), str(tmp_path / "out"), *length, *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "index.json").exists()


def test_no_file_and_no_length(tmp_path, capsys):
    assert main(["pack", "--text", str(tmp_path / "none.txt"), str(tmp_path / "out"), "--length", "8"]) == 2
    assert "none.txt cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "a.txt").write_bytes(b"one\n")
    assert main(["pack", str(tmp_path / "a.txt"), str(tmp_path / "out"), "--resolution", "8"]) == 2
    assert "--text takes a file of text" in capsys.readouterr().err
    # Only text has a length.
    assert main(["pack", str(tmp_path / "a.txt"), str(tmp_path / "out"), "--length", "8", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["pack", "--text", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "--length is needed for text" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["pack", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "--resolution is needed for images" in capsys.readouterr().err
    assert main(["pack", str(tmp_path), str(tmp_path / "out"), "--resolution", "8", "--length", "8"]) == 2
    assert "--length has no meaning for images, only for text: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(("data", "message"), [
    (b"abcabcabc", "a line of 9 symbols instead of at most 8"),
    (b"abd", "the symbol 'd', which the alphabet does not have"),
    (b"ab\xff", "not UTF-8"),
])
def test_damaged_lines(data, message):
    with pytest.raises(ValueError, match=message):
        decode_line(FORM, data, np.zeros((8, 8, 1), np.uint8))


def test_damage_is_found(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\nbca\n")
    assert main(["pack", "--text", str(tmp_path / "a.txt"), str(tmp_path / "set"), "--length", "8", "--workers", "1"]) == 0
    shard = tmp_path / "set/shard-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"bca", b"bza"))
    problems = map(str, verify(tmp_path / "set", workers=1))
    assert any("the line of text cannot be used (the symbol 'z'" in problem for problem in problems)


@pytest.mark.parametrize(("change", "message"), [
    ({"symbols": "abc"}, "an alphabet of 3 symbols"), ({"symbols": " aa"}, "an alphabet of 3 symbols"),
    ({"length": 9}, r"text of 9 positions and 4 symbols is not an array of 8 x 8"), ({"length": 0}, "text of 0 positions"),
    ({"held_out": ("abx",)}, "the symbol 'x'"), ({"held_out": ("a",) * 2001}, "2001 held-out lines"),
])
def test_impossible_forms(change, message):
    form = TextForm(**{"symbols": " abc", "length": 8, **change})
    with pytest.raises(ValueError, match=message):
        Text("uint8", (0.0,), (1.0,), text=form).check(8, 1)


def test_samples_are_of_one_kind():
    plain = Array("uint8", (0.0,), (1.0,))
    for wrong in (declared(replace(plain, text=FORM, film=FilmForm(1, 1, 25.0))), replace(plain, mirrored=True)):
        with pytest.raises(ValueError, match="an array is of one of"):
            wrong.check(8, 1)


def test_an_index_says_what_text_is(tmp_path):
    out = pack_lines(tmp_path)
    content = json.loads((out / "index.json").read_text())
    assert content["array"]["text"] == {"symbols": content["array"]["text"]["symbols"], "length": 8,
                                        "held_out": content["array"]["text"]["held_out"]}
    content["array"]["text"]["length"] = 99
    (out / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="text of 99 positions"):
        load_index(out)
    assert "text" not in Array("uint8", (0.0,), (1.0,)).facts()["array"]  # as earlier versions wrote it


def test_pictures_are_read(tmp_path):
    index = load_index(pack_lines(tmp_path))
    kind = index.kind
    check_takes(NoFeatures("cpu"), index)
    with pytest.raises(InputError, match="looks at pictures, and the data are lines of text"):
        check_takes(small_features(), index)
    samples = np.zeros((2, 16, 16, 1), np.uint8)
    for sample, line in zip(samples, (b"the bus", b""), strict=True):
        decode_line(kind.form, line, sample)
    values = kind.to_network(torch.from_numpy(samples).permute(0, 3, 1, 2))
    assert kind.lines(values) == ["the bus", ""]
    pictures = kind.as_pictures(values)
    assert pictures.shape == (2, 1, 16, 64)
    assert (pictures[0] < 0).sum() > 30  # black letters
    assert (pictures[1] == 1).all()
    kind.save(tmp_path / "one", values[0])
    assert (tmp_path / "one.txt").read_text() == "the bus\n"


def test_held_out_lines_follow_from_the_seed(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("\n".join(lines_of_words(84)))
    held = [open_text(str(source), TextOptions(length=8), seed)[1].held_out_lines for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert len(held[0]) == 8  # a tenth
    options = PackOptions(TextOptions(length=8))
    with pytest.raises(InputError):  # only what open_text has completed can be packed
        pack(source, tmp_path / "out", options)
