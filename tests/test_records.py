"""JSON from outside: bounded, typed, and refused with one line."""

from dataclasses import dataclass

import pytest

from stylegan_dist.records import Count, Digest, parse_json, read_record


@dataclass(frozen=True)
class Entry:
    name: str
    size: Count
    sha256: Digest


GOOD = '{"name": "a", "size": 8, "sha256": "%s"}' % ("0" * 64)


def test_a_record_is_read():
    assert read_record(Entry, GOOD) == Entry("a", 8, "0" * 64)


@pytest.mark.parametrize(("text", "field"), [
    (GOOD.replace("8", "8.0"), "size"),
    (GOOD.replace("8", "-1"), "size"),
    (GOOD.replace("8", "9223372036854775808"), "size"),
    (GOOD.replace("8", "true"), "size"),
    (GOOD.replace("8", "9" * 5000), "line 1"),
    (GOOD.replace('"a"', "5"), "name"),
    (GOOD.replace("000", "zzz", 1), "sha256"),
    ('{"name": "a", "size": 8}', "sha256"),
    ("[1]", "list"),
    ("[" * 100_000, "recursion"),
    ('{"name": "%s"' % ("x" * 10_000), "EOF"),
])
def test_anything_else_is_one_short_line_that_names_the_field(text, field):
    with pytest.raises(ValueError, match=field) as caught:
        read_record(Entry, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", "-Infinity", "9" * 5000, '"\\ud800"', b"\xff", "", "{} {}"])
def test_what_is_not_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_a_text_has_a_largest_size():
    assert parse_json("[1, 2]", most=6) == [1, 2]
    with pytest.raises(ValueError, match="more than the 5"):
        parse_json("[1, 2]", most=5)
    with pytest.raises(ValueError, match="more than the 9"):
        read_record(Entry, GOOD, most=9)
