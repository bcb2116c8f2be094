"""What the tests of native operators share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from pairwise import pairwise

from stylegan_dist.ops import native

LARGE = 12  # a matrix of more cases is sampled


@pytest.fixture
def native_everywhere() -> Iterator[None]:
    """Native operators even where PyTorch is faster."""
    with native.using("everywhere"):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each large matrix of this folder, what has no such mark and is not in a pairwise sample is marked `full`."""
    matrices = defaultdict(list)
    for item in items:
        here = Path(__file__).parent in item.path.parents and not any(map(item.get_closest_marker, ("full", "exhaustive")))
        if here and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            matrices[item.path, item.originalname].append(item)
    for cases in matrices.values():
        values = [{name: repr(value) for name, value in case.callspec.params.items()} for case in cases]
        if len(cases) > LARGE and len(values[0]) > 1:
            chosen = {*pairwise(values)}
            for i, case in enumerate(cases):
                if i not in chosen:
                    case.add_marker("full")
