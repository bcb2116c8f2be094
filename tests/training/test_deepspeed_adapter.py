"""What is used of DeepSpeed though it is not documented: there, and as it was."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import deepspeed
import pytest
from launching import finished

from stylegan_dist.engine import deepspeed_adapter
from stylegan_dist.errors import InputError

# One rank, in a process of its own: DeepSpeed keeps state of its own in a process.
STEPS = """
import sys
import torch
from stylegan_dist.engine import Job
from stylegan_dist.engine.choice import Zero
from stylegan_dist.engine.data_parallel import FlatLearner
from stylegan_dist.engine.zero import ZeroLearner
from stylegan_dist.objective.result import LossResult
from stylegan_dist.ranks import ALONE, Sharded

def trained(make):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    learner = make(network, torch.optim.Adam(network.parameters(), lr=0.1))
    for _ in range(2):
        learner.step([Job(lambda x: LossResult(network(x).square().mean(), {}), torch.ones(2, 3))], {}, 0.01, True)
    state = {**learner.parameters(), **learner.optimizer_state()}
    state = {name: (value.read() if isinstance(value, Sharded) else value).clone() for name, value in state.items()}
    learner.restore({name: state[name] for name in learner.shapes},
                    {name: value for name, value in state.items() if name not in learner.shapes})
    learner.close()
    return state

zero = Zero(int(sys.argv[1]), sys.argv[2] == "offload")
expected = trained(lambda *arguments: FlatLearner(*arguments, ALONE))
found = trained(lambda *arguments: ZeroLearner(*arguments, ALONE, zero, 60))
assert found.keys() == expected.keys()
for name, value in expected.items():
    assert torch.equal(value, found[name]), name
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("stage", "where"), [
    pytest.param(1, "device", marks=pytest.mark.full), pytest.param(2, "offload", marks=pytest.mark.exhaustive), (3, "device"),
    pytest.param(3, "offload", marks=pytest.mark.full)])
def test_this_version_is_one_that_we_know(stage: int, where: str):
    """Every private attribute is there, and a step through them gives what data parallel training gives."""
    done = finished([sys.executable, "-c", STEPS, str(stage), where], LOCAL_RANK="0")
    assert done.returncode == 0, done.stderr


def test_a_changed_attribute_is_named():
    optimizer = SimpleNamespace(averaged_gradients={}, fp32_partitioned_groups_flat=[])
    with pytest.raises(InputError) as raised:
        deepspeed_adapter.expect(optimizer, deepspeed_adapter.OPTIMIZER[True])
    assert "get_param_id" in str(raised.value)
    assert deepspeed.__version__ in str(raised.value)
