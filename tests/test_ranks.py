"""The ranks among each other: real process groups."""

from __future__ import annotations

from pathlib import Path

from launching import run_script

from stylegan_dist.ranks import Ranks


def test_rank_0_works_longer_than_the_others_wait(tmp_path: Path):
    """The other rank meets it again and again; result and error are the same as in a short piece of work."""
    run_script(tmp_path, """
import os, time
import torch.distributed as dist
from forking import run_ranks
from stylegan_dist import ranks as module
from stylegan_dist.errors import InputError
from stylegan_dist.ranks import Ranks

def work():
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), 2)
    module.MEET_SECONDS = 0.01

    def result():
        time.sleep(0.2)
        return 7

    def error():
        raise InputError("wrong")

    assert ranks.on_main_at_length(result) == (7 if ranks.is_main else None)
    meetings = ranks.where()[2]
    assert meetings > 5, meetings
    try:
        ranks.on_main_at_length(error)
    except InputError as error:
        assert str(error) == "wrong"
    else:
        raise AssertionError
    assert len(set(ranks.gather(ranks.where()[2]))) == 1  # none has met the other once more often
    dist.destroy_process_group()

run_ranks(2, work)
""")
    assert Ranks().on_main_at_length(lambda: 7) == 7
