"""The estimate of memory against what is really allocated, and what is proposed when memory runs out."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import ROOT, TINY, finished
from torch import nn

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.engine.choice import Choice, Zero
from stylegan_dist.machine import _left_in, available_memory
from stylegan_dist.ranks import World
from stylegan_dist.training.memory import Estimate, StorageTracker, estimate_memory, is_out_of_memory, propose_batch_gpu
from stylegan_dist.training.rules import Resolved, micro_batch_sizes, resolve

MIB = 2**20
AROUND = 150 * MIB  # what a process on a CPU is given beside 1.6 times its tensors
THIN = ("generator.channel_max=64", "discriminator.channel_max=64")
NO_PENALTY = ("loss.path_length_weight=0", "loss.r1_gamma=0")


def make_index(resolution: int) -> DatasetIndex:
    return DatasetIndex(resolution, 3, "png", None, None, [Shard("a.tar", 1, 0, "", "a.npy", "")])


def resolved_for(resolution: int, *overrides: str, world_size: int = 1) -> Resolved:
    return resolve(load_config(None, list(overrides)), make_index(resolution), World(world_size, "cpu"))


def estimate(resolution: int, *overrides: str, world_size: int = 1, **options) -> Estimate:
    return estimate_memory(resolved_for(resolution, *overrides, world_size=world_size), make_index(resolution), world_size,
                           **options)


# Against real allocations


ALLOCATED = [
    (32, (*THIN, "run.batch=32", "run.batch_gpu=16", "loss.r2_gamma=1", "optim.g.name=SGD", "optim.g.lr=0.001",
          "optim.g.momentum=0.9")),
    (32, (*THIN, "run.batch=16", "run.batch_gpu=16", "discriminator.architecture=orig", "run.recompute=8", *NO_PENALTY)),
    (16, ("run.batch=4", "run.batch_gpu=4", "generator.channel_max=256", "discriminator.channel_max=256")),  # parameters
    (64, (*THIN, "run.batch=8", "run.batch_gpu=4", "run.recompute=16")),
    (32, (*THIN, "run.batch=16", "run.batch_gpu=16", "augment.pipe=bgcfnc", "augment.p=0.5")),
]
MARKS = {16: (), 32: pytest.mark.full, 64: pytest.mark.exhaustive}


@pytest.mark.parametrize(("resolution", "overrides"), [
    pytest.param(*case, marks=MARKS[case[0]]) for case in ALLOCATED])
def test_the_estimate_is_within_a_fifth_of_what_is_allocated(resolution, overrides):
    script = str(ROOT / "benchmarks/memory.py")
    result = finished([sys.executable, script, "--device", "cpu", "--resolution", str(resolution), *overrides])
    assert result.returncode == 0, result.stderr
    estimated, measured = map(float, result.stdout.splitlines()[-1].split()[1:3])
    assert measured > 20
    assert 0.8 < estimated / measured < 1.2, result.stdout


def test_the_tracker_counts_storages_once_and_only_while_they_live():
    tracker = StorageTracker()
    with tracker:
        x = torch.empty(100, device="meta")            # 400 bytes
        views = [x.view(10, 10).t(), x[50:]]
        assert tracker.alive == 400
        y = x + 1                                      # 800
        y += 1
        z = (y.double() * 2).sum()                     # 800 + 800 + 800, then one number
        assert (tracker.alive, tracker.peak) == (808, 2400)
        del x
        assert tracker.alive == 808
        del views
        assert tracker.alive == 408
    del y, z
    assert (tracker.alive, tracker.peak) == (0, 2400)


def test_the_tracker_sees_what_autograd_saves():
    tracker = StorageTracker()
    with tracker:
        layer = nn.Linear(4, 4, bias=False, device="meta")  # 64 bytes
        x = torch.empty(250, 4, device="meta")              # 4000 bytes, and so is each activation
        for _ in range(5):
            x = layer(x).exp()                              # exp saves its result, which the next layer saves, too
        assert tracker.alive == 4000 * 6 + 64
        with torch.no_grad():
            for _ in range(5):
                x = layer(x).exp()
        assert tracker.alive == 4000 + 64                   # nothing needs the graph any more


# What the estimate must know


def test_activations_grow_with_the_micro_batch_and_parameters_do_not():
    small, large = (estimate(32, *THIN, "run.batch=32", f"run.batch_gpu={n}") for n in (4, 16))
    assert small.resident == large.resident
    for name, size in small.phases.items():
        # What does not grow are double backward passes' sums over the batch, and casts of weights.
        assert 2.2 < large.phases[name] / size <= 4.01, name
    assert large.peak == sum(large.resident.values()) + max(large.phases.values())


def test_recomputation_makes_phases_of_first_order_much_smaller():
    stored, recomputed = (estimate(128, *THIN, "run.batch=4", f"run.recompute={r}") for r in (0, 8))
    for name in ("g_main", "d_main"):
        assert recomputed.phases[name] < 0.7 * stored.phases[name]
    assert stored.resident == recomputed.resident


@pytest.mark.parametrize(("name", "copies"), [("Adam", 2), ("AdamW", 2), ("RMSprop", 1), ("Adadelta", 2), ("SGD", 0)])
def test_optimizer_state(name, copies):
    resident = estimate(16, *THIN, f"optim.g.name={name}", "optim.g.lr=0.01", *NO_PENALTY).resident
    assert resident["generator: optimizer state"] == copies * resident["generator: parameters"]
    assert resident["generator: gradients"] == resident["generator: parameters"]
    assert resident["discriminator: optimizer state"] == 2 * resident["discriminator: parameters"]


@pytest.mark.full
def test_what_zero_shards_over_the_ranks():
    """Rajbhandari et al. 2020, figure 1: which of parameters, gradients and optimizer state is divided by the ranks."""
    ranks = 4
    buckets = {"reduce_bucket_size": 1000}
    whole = estimate(32, *THIN, "run.batch=16", "run.batch_gpu=4", world_size=ranks).resident
    p = whole["generator: parameters"]
    for stage in (1, 2, 3):
        zero = Zero(stage, False, buckets)
        found = estimate(32, *THIN, "run.batch=16", "run.batch_gpu=4", world_size=ranks, choice=Choice({"g": zero}))
        resident = found.resident
        assert resident["generator: optimizer state"] == 2 * p / ranks
        assert resident["generator: gradients"] == (p if stage == 1 else p / ranks)
        assert {key: value for key, value in resident.items() if "discriminator" in key} == \
            {key: value for key, value in whole.items() if "discriminator" in key}
        assert resident["generator: buffers for communication"] == 4000
    offloaded = Choice({"g": Zero(2, True, buckets)})
    on_gpu = estimate(32, *THIN, "run.batch=16", "run.batch_gpu=4", world_size=ranks, device_type="cuda", choice=offloaded)
    assert on_gpu.resident["generator: optimizer state"] == 0
    assert on_gpu.resident["generator: parameters"] == p
    here = estimate(32, *THIN, "run.batch=16", "run.batch_gpu=4", world_size=ranks, choice=offloaded)
    assert here.resident["generator: optimizer state"] == 2 * p / ranks, "the host is the device"


def test_the_average_is_where_it_is_placed():
    resident = {place: estimate(16, *THIN, "run.batch=8", f"ema.placement={place}", world_size=2, device_type="cuda").resident
            for place in ("device", "sharded", "cpu")}
    average = {place: k["averaged generator"] for place, k in resident.items()}
    assert average["sharded"] == average["device"] / 2
    assert average["cpu"] == 0


def test_a_large_network_is_estimated_without_memory_and_in_seconds():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    large = estimate(1024)
    assert time.process_time() - begin < 30  # of processor time; two are enough
    assert large.peak > 2**33
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_dry_run_prints_every_contribution_and_the_peak(labelled_shards: Path, capsys: pytest.CaptureFixture):
    assert main(["train", *TINY, f"data.shards={labelled_shards}", "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " GiB  " in line]
    assert lines[0].startswith("# memory ")
    for phase in ("g_main", "g_path", "d_main", "d_penalty"):
        assert sum(f"  {phase} on top" in line for line in lines) == 1
    assert re.search(r"GiB  peak of tensors on each rank, in [gd]_\w+$", lines[-1])


# When memory runs out


def test_failed_allocations_are_recognised():
    for attempt in (lambda: torch.empty(2**55, dtype=torch.uint8), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            attempt()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2) + torch.empty(3)
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize(("overrides", "ranks", "expected"), [
    (("run.batch=16", "discriminator.mbstd_group=4"), 1, [4, 8, 16]),
    (("run.batch=24", "discriminator.mbstd_group=2"), 2, [2, 4, 6, 12]),
    (("run.batch=24", "discriminator.mbstd_group=3", "loss.path_length_shrink=2"), 1, [6, 12, 24]),
])
def test_micro_batches_that_are_allowed(overrides, ranks, expected):
    assert micro_batch_sizes(resolved_for(16, *overrides, world_size=ranks).config, ranks) == expected
    for size in range(1, 25):  # the same as those that are not refused
        try:
            resolved_for(16, *overrides, f"run.batch_gpu={size}", world_size=ranks)
        except Exception:
            assert size not in expected
        else:
            assert size in expected


@pytest.mark.full
def test_the_largest_micro_batch_that_fits_is_proposed():
    resolved, index = resolved_for(32, *THIN, *NO_PENALTY, "run.batch=32", "run.batch_gpu=32"), make_index(32)
    peaks = {n: estimate(32, *THIN, *NO_PENALTY, "run.batch=32", f"run.batch_gpu={n}").peak for n in (4, 16)}
    assert peaks[4] < peaks[16]
    for n, peak in peaks.items():
        assert f"run.batch_gpu={n}:" in propose_batch_gpu(resolved, index, 1, "cpu", round(AROUND + 1.6 * peak) + 1)
    # Not even the smallest: recompute, and if that is too much as well, another network.
    recomputed = estimate(32, *THIN, *NO_PENALTY, "run.batch=32", "run.batch_gpu=4", "run.recompute=8").peak
    assert recomputed < 0.9 * peaks[4]
    words = propose_batch_gpu(resolved, index, 1, "cpu", round(AROUND + 1.6 * recomputed) + 1)
    assert "run.batch_gpu=4 and run.recompute=8:" in words
    words = propose_batch_gpu(resolved, index, 2, "cpu", 10 * MIB)
    for remedy in ("no smaller run.batch_gpu fits", "run.recompute=8", "zero2.yaml", "channel_base"):
        assert remedy in words


def test_a_rank_s_whole_batch_may_fit_where_a_part_does_not():
    """It adds up no gradients: of large networks for small images it needs less."""
    wide = (*NO_PENALTY, "generator.channel_max=512", "discriminator.channel_max=512", "run.batch=8", "run.recompute=8")
    peaks = {n: estimate(8, *wide, f"run.batch_gpu={n}").peak for n in (4, 8)}
    assert peaks[8] < peaks[4]
    resolved = resolved_for(8, *wide, "run.batch_gpu=8", "run.recompute=0")
    free = round(AROUND + 1.6 * peaks[8]) + 1
    assert "run.batch_gpu=8 and run.recompute=8:" in propose_batch_gpu(resolved, make_index(8), 1, "cpu", free)


def test_limits_of_control_groups(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\n")
    names = ("memory.max", "memory.current", "inactive_file")
    assert _left_in(tmp_path, *names) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_in(tmp_path, *names) == sys.maxsize
    assert _left_in(tmp_path / "none", *names) == sys.maxsize
    assert 0 < available_memory(torch.device("cpu"), 2) < available_memory(torch.device("cpu"))


LIMITED = """
import resource, sys
from pathlib import Path
import stylegan_dist.training.loop
from stylegan_dist.cli import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("mib", "words"), [
    pytest.param(350, (), marks=pytest.mark.full), (170, ("no smaller run.batch_gpu fits", "channel_base"))])
def test_a_run_that_does_not_fit_says_what_does(mib, words, labelled_shards: Path, tmp_path: Path):
    def train(*overrides: str):
        # One arena: for that of a thread glibc reserves 64 MiB of the address space, which is what is limited, and uses little.
        return finished([
            sys.executable, "-c", LIMITED, str(mib), "train", *TINY, f"data.shards={labelled_shards}", "run.kimg=0.256",
            f"run.dir={tmp_path / 'run'}", "run.batch=256", "generator.channel_base=1024", "discriminator.channel_base=1024",
            *THIN, *overrides], MALLOC_ARENA_MAX="1")

    failed = train("run.batch_gpu=256")
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    (message,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: out of memory")
    if words:
        assert all(word in message for word in words), message
        return
    proposed = re.search(r"set (run.batch_gpu=(\d+)): ", message)
    assert proposed, message
    assert int(proposed[2]) < 256
    again = train(proposed[1])
    assert again.returncode == 0, again.stderr
