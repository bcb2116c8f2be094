"""A local shard that goes bad while two ranks train: both end, with the error of the one that met it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from batches import locate
from launching import ROOT, finished, train_command

from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import GlobalOrder

pytestmark = pytest.mark.full

ENTRY = """
import os, runpy
from stylegan_dist.data import storage
from stylegan_dist.training import setup
storage.FIRST_PAUSE = 0.01
open_streams = setup.Run._open_streams

def damaged(run, opened):  # all have looked at the sizes by now
    if run.engine.rank == 1:
        {damage}
    return open_streams(run, opened)

setup.Run._open_streams = damaged
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_a_shard_cut_short_ends_all_ranks(labelled_shards: Path, tmp_path: Path):
    shards = Path(shutil.copytree(labelled_shards, tmp_path / "shards"))
    index = load_index(shards)
    order = GlobalOrder([shard.samples for shard in index.shards], 0, lanes=4, block=8)
    path = str(shards / index.shards[locate(order, 12, 1)[0][0]].name)  # in the second step, on rank 1
    entry = tmp_path / "entry.py"
    entry.write_text(ENTRY.format(damage=f"os.truncate({path!r}, 700)", script=str(ROOT / "launch/train.py")))
    result = finished(train_command(shards, tmp_path / "run", "run.kimg=0.08", "data.workers=1", processes=2, entry=entry))
    assert result.returncode != 0
    assert f"error: cannot read {path}, sample " in result.stderr
    assert re.search(r"damaged.* byte 700.*6 attempts", result.stderr)
    assert "stylegan_dist/training" not in result.stderr, "a traceback of ours"
