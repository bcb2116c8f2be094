"""A small shard set, which the tests of the stream share."""

from __future__ import annotations

import shutil

import pytest
from batches import STEPS, pack_random, take


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.fixture(scope="session")
def reference(shards):
    return take(shards, STEPS, mirror=True)
