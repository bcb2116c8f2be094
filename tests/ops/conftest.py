"""What the tests of native operators share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stylegan_dist.ops import native


@pytest.fixture
def native_everywhere() -> Iterator[None]:
    """Native operators even where PyTorch is faster."""
    with native.using("everywhere"):
        yield
