"""The end of a process group: no rank waits for one that waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import run_script


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("reduction", ["flat", "buckets"])
def test_leaving_the_group_waits_for_nobody_who_waits_for_it(reduction: str, tmp_path: Path):
    """The worst case for a deadlock at the end: the interpreter lock is only given away where a call waits."""
    printed = run_script(tmp_path, f"""
import sys
import torch
import torch._dynamo  # once, not by each rank
from forking import run_ranks
from stylegan_dist.config.schema import RunConfig
from stylegan_dist.engine import Engine
from stylegan_dist.objective.result import LossResult

def train():
    sys.setswitchinterval(1000)
    engine = Engine(RunConfig(device="cpu", world_size=2, threads=1, reduction="{reduction}"))
    network = torch.nn.Linear(300, 300)
    learner = engine.learner("g", network, torch.optim.SGD(network.parameters(), lr=0.1))
    learner.step([lambda: LossResult(network(torch.ones(1, 300)).sum(), {{}})], {{}}, 0.0, False)
    engine.close()
    print("left", flush=True)

for _ in range(5):  # without the care that close() takes, every second launch hangs
    run_ranks(2, train)
""")
    assert printed.count("left") == 10
