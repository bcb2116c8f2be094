"""Numbers and paths of the command line: in range, or one line that names the argument."""

from __future__ import annotations

import pytest

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.tools.generate import parse_seeds

NUMBERS = ["pack s o --resolution X", "pack s o --resolution 8 --seed X", "pack s o --resolution 8 --workers X",
           "pack s o --resolution 8 --samples-per-shard X", "pack s o --resolution 8 --quality X", "index s --workers X",
           "pack s o --resolution 8 --hop X", "pack s o --resolution 8 --low-hz X", "pack s o --resolution 8 --offset X",
           "verify s --workers X", "peek s --columns X", "peek s --rows X", "peek s --seed X", "bench-data s --seconds X",
           "bench-data s --batch X", "bench-data s --need X", "bench-data s --workers X", "bench-data s --workers 0,X",
           "generate r --out o --columns X", "generate r --out o --trunc X", "generate r --out o --class X",
           "project i --run r --steps X", "project i --run r --feature-weight X", "project i --run r --feather X"]
PATHS = ["train X", "train data.shards=X", "train data.shards=s run.dir=X", "generate X --out o", "generate r --out X",
         "pack X o --resolution 8", "pack s X --resolution 8", "index X", "index s X", "verify X", "peek X", "peek s --out X",
         "bench-data X", "bench-data s --folder X", "project X --run r", "project i --run X", "project i --run r --out X"]


def said(capsys: pytest.CaptureFixture, command: str, word: str) -> str:
    """The one line of the error."""
    assert main([part.replace("X", word) for part in command.split()]) == 2
    printed = capsys.readouterr()
    lines = [line for line in (printed.err + printed.out).splitlines() if line.startswith(("error: ", "index.json: "))]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("command", NUMBERS)
@pytest.mark.parametrize("number", ["nan", "inf", "1e300", "9" * 5000, "x", "-" + "9" * 50], ids=lambda number: number[:8])
def test_a_number_that_nobody_means(command, number, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = command.split()[-2]
    message = said(capsys, command, number)
    assert f"error: {option} must be a" in message
    assert len(message) < 200


@pytest.mark.parametrize("command", PATHS)
@pytest.mark.parametrize("path", ["a\0b", "a\nb", "a\udcffb", "~no-such-user/x"], ids=ascii)
def test_a_path_that_no_file_has(command, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "\0" not in said(capsys, command, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", PATHS)
@pytest.mark.parametrize("path", ["x" * 5000, "x" * 300, "/".join(["d" * 200] * 15), "[", "x{", "{1..99999999999}/x"],
                         ids=lambda path: f"{path[:9]} {len(path)}")
def test_a_path_that_is_not_there(command, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said(capsys, command, path)


@pytest.mark.parametrize("command", ["train X", "train data.shards=s run.dir=X", "train data.shards=s data.cache=X",
                                     "generate X --out o", "generate r --out X", "peek s --out X", "bench-data s --folder X"])
@pytest.mark.parametrize("url", ["s3://bucket/x", "file:///x", "http://me:SECRET@host/x", "s3://KEY:SECRET/x@bucket"])
def test_a_url_where_a_path_must_be(command, url, capsys, tmp_path, monkeypatch):
    """It would become a folder named `s3:`, which people take for their bucket."""
    monkeypatch.chdir(tmp_path)
    message = said(capsys, command, url)
    assert "must be on this machine, not at" in message
    assert "SECRET" not in message
    assert not list(tmp_path.iterdir())


def test_home_folders_are_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for command in ("generate X --out o", "verify X", "peek X", "pack X o --resolution 8", "index X o"):
        main([part.replace("X", "~/here") for part in command.split()])
        printed = capsys.readouterr()
        assert f"{tmp_path}/home/here" in printed.out + printed.err


@pytest.mark.parametrize("text", ["0-99999999999", "0-4294967295", "5-3", "1,,2", "-5", "0-1-2", "²", "0-" + "9" * 5000,
                                  "x" * 5000, "4294967296", "0-999999,1-2"], ids=lambda text: text[:12])
def test_seeds_that_nobody_means(text):
    with pytest.raises(InputError, match=r"^--seeds '") as caught:
        parse_seeds(text)
    assert len(str(caught.value)) < 300


def test_seeds():
    assert parse_seeds("3, 7-9") == [3, 7, 8, 9]
    assert len(parse_seeds("0-999999")) == 1_000_000
