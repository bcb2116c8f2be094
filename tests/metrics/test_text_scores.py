"""Scores of lines of text against values that are known without them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from stylegan_dist.kinds.array import TextForm
from stylegan_dist.kinds.text_scores import Copies, Ngrams, Words, divergence, ngrams, spelled

FORM = TextForm(" abc", 5, ("ab c", "b"))


def rows_of(*lines: str) -> torch.Tensor:
    return torch.tensor([[FORM.symbols.index(symbol) for symbol in line.ljust(5)] for line in lines]).float()


def test_divergences():
    one, other = Counter(a=1, b=1), Counter(c=3)
    assert divergence(one, one) == 0
    assert divergence(one, other) == pytest.approx(1)  # nothing in common
    # p = (1/2, 1/2), q = (1, 0): H((p + q) / 2) - H(p) / 2 - H(q) / 2
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert divergence(one, Counter(a=7)) == pytest.approx(expected) == divergence(Counter(a=7), one)
    assert divergence(Counter(), Counter()) == 0
    assert divergence(Counter(), one) == 1


def test_ngrams_have_a_blank_on_either_side():
    assert ngrams(["ab", "a"], 2) == {" a": 2, "ab": 1, "b ": 1, "a ": 1}
    assert ngrams([""], 2) == {"  ": 1}
    assert ngrams(["a"], 4) == {}


def test_rows_are_the_likeliest_symbols():
    values = torch.zeros(2, 1, 8, 8)
    values[0, 0, :2, :5] = torch.tensor([[0.4, 0.6], [0.6, 0.4]]).repeat(1, 3)[:, :5]
    values[1, 0, 3, :5] = 0.3
    values[:, 0, 7] = 1  # no symbol has this row
    values[1, 0, 2, 6] = 1  # behind the line
    metric = Words(FORM)
    rows = metric.rows(values)
    assert rows.shape == (2, metric.width(8, 1)) == (2, 5)
    assert spelled(rows, FORM) == ["a a a", "ccccc"]


def test_words_and_lines():
    real, generated = rows_of("a b", "c", "a a"), rows_of("a b", "ab", "", "c ac", "b b")
    found = Words(FORM).measure(real, generated)
    # Words a, b, c and, of held-out lines, ab. Of 7 generated words only ac is unknown; an empty line is none.
    assert found["words"][:3] == (pytest.approx(6 / 7), None, pytest.approx(2 / 3))
    assert found["lines"][:3] == (pytest.approx(3 / 5), pytest.approx(math.sqrt(0.6 * 0.4 / 5)), pytest.approx(1 / 2))
    assert not found["words"].lower_is_better
    alone = Words(TextForm(" abc", 5)).measure(real, generated)
    assert [alone[name].floor for name in ("words", "lines")] == [None, None]  # nothing that is real was held out


def test_copies():
    real, generated = rows_of("a b", "c", "a b", "b"), rows_of("c", "c", "ab")
    found = Copies(FORM).measure(real, generated)
    assert found["verbatim"][:3] == (pytest.approx(2 / 3), pytest.approx(math.sqrt(2 / 27)), 1 / 2)
    assert found["distinct"][:3] == (pytest.approx(2 / 3), None, pytest.approx(2 / 3))  # of equally many real ones


def test_the_floor_of_ngrams_is_that_of_as_many_real_lines():
    real, generated = rows_of("ab c", "b", "cccc"), rows_of("a", "a")
    found = Ngrams(FORM).measure(real, generated)
    assert list(found) == ["ngrams_4", "ngrams_3", "ngrams_2", "ngrams_1"]
    assert found["ngrams_1"].floor == pytest.approx(0)  # the first two real lines are the held-out ones
    assert found["ngrams_1"].value == pytest.approx(divergence(ngrams(["a", "a"], 1), ngrams(["ab c", "b"], 1)))
    own = Ngrams(TextForm(" abc", 5)).measure(real, generated)  # nothing is held out: each second real line is compared with
    assert own["ngrams_1"].value == pytest.approx(divergence(ngrams(["a", "a"], 1), ngrams(["b"], 1)))
