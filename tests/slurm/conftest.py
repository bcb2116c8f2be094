"""One cluster for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm import Cluster, local_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with local_cluster() as running:
        yield running
