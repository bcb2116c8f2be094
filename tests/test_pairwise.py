"""The sample of a matrix that tests/ops/conftest.py takes."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import pairwise

MATRIX = {"dtype": "abcd", "layout": "xyz", "clamp": (None, 0.9), "shape": range(5)}


def pairs(cases: list[dict]) -> set:
    return {pair for case in cases for pair in combinations(case.items(), 2)}


@pytest.mark.parametrize("allowed", [lambda case: True, lambda case: case["dtype"] != "a" or case["layout"] == "x"])
def test_every_pair_of_the_matrix_is_in_a_few_cases(allowed):
    cases = [case for values in product(*MATRIX.values()) if allowed(case := dict(zip(MATRIX, values, strict=True)))]
    chosen = pairwise(cases)
    assert pairs([cases[i] for i in chosen]) == pairs(cases)
    assert len(chosen) < len(cases) / 3
    assert chosen == sorted({*chosen})
    assert chosen == pairwise(cases)


def test_one_parameter_has_no_pairs():
    assert pairwise([{"a": 1}, {"a": 2}]) == []
