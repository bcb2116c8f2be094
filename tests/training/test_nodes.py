"""What machines have in use."""

import torch

from stylegan_dist.training.nodes import SHOWN_NODES, node_metrics, usage


def test_machines_in_the_order_of_their_ranks():
    metrics = node_metrics(["b", "b", "a"], [(10.0, 1.0, 3.0), (20.0, 1.0, 5.0), (30.0, 2.0, 4.0)])
    assert metrics == {"node/0/cpu_percent": 20.0, "node/1/cpu_percent": 30.0,
                       "node/0/memory_gib": 1.0, "node/1/memory_gib": 2.0,
                       "node/0/gpu_memory_gib": 5.0, "node/1/gpu_memory_gib": 4.0}


def test_many_machines_are_three_numbers():
    hosts = [str(number) for number in range(SHOWN_NODES + 1)]
    metrics = node_metrics(hosts, [(float(number), 1.0, 0.0) for number in range(len(hosts))])
    assert [metrics[f"node/{which}/cpu_percent"] for which in ("least", "median", "most")] == [0, 8, 16]
    assert len(metrics) == 6


def test_this_machine():
    percent, memory, gpu = usage(torch.device("cpu"))
    assert percent >= 0
    assert memory > 0
    assert gpu == 0
