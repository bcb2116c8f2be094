"""A few cases of a matrix in which every pair of values of two parameters still occurs, if it occurs in the matrix."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations


def pairwise(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """The positions of the chosen cases, in ascending order. The choice depends on the cases and their order only.

    Greedy: the next case is the one with the most pairs that no chosen case has; the first of equals.
    """
    pairs = [{*combinations(sorted(case.items(), key=lambda item: item[0]), 2)} for case in cases]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        missing -= pairs[best]
        chosen.append(best)
    return sorted(chosen)
