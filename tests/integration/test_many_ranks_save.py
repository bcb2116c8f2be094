"""Checkpoints that several ranks write: from parts, and a failure of one is a failure of all. Ranks that hang."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from launching import TIMEOUT, alive, descendants, finished, started, train_command, wait_for, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.full]

SCRIPT = """
    import resource, signal, sys
    from pathlib import Path
    import torch
    from stylegan_dist.errors import InputError
    sys.path.insert(0, HELPERS)
    from saving import save_checkpoint
    from stylegan_dist.errors import Diverged
    from stylegan_dist.training.checkpoint import check_checkpoint, list_checkpoints
    from stylegan_dist.config.schema import RunConfig
    from stylegan_dist.engine import Engine
    from stylegan_dist.ranks import Sharded, assemble
    from stylegan_dist.training.saved import NAMES, SavedTensors

    def say(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")  # in one call: the ranks write into one pipe, unbuffered

    engine = Engine(RunConfig(device="cpu", threads=1, timeout=600))
    ranks, folder = engine.world_size, Path(sys.argv[1])
    COUNT, SIZE = 24, 40_000  # tensors, numbers in each

    def read(number):
        part = torch.arange(SIZE // ranks).float() + engine.rank * SIZE // ranks + number
        return assemble(torch.Size([SIZE]), part, engine.rank * SIZE // ranks, engine)

    def tensors():
        return {name: {} for name in NAMES} | {
            "g": {f"w{i}": Sharded(torch.Size([SIZE]), torch.float32, lambda i=i: read(i)) for i in range(COUNT)},
            "d": {"b": torch.ones(3)}}

    data = {"fingerprint": "x", "resolution": 8, "channels": 3, "num_classes": 0}
    facts = {"nimg": 1, "segment": 0, "path_mean": 0.5, "statistics": {}, "data": data, "config": {}}
    engine.on_main(folder.mkdir)
    save_checkpoint(folder, 1, tensors(), facts, engine, file_bytes=4 * SIZE * 4)
    if engine.is_main:
        (_, saved), = list_checkpoints(folder)
        assert check_checkpoint(saved) is None
        loaded = SavedTensors(saved, "g")
        assert all(torch.equal(loaded[f"w{i}"], torch.arange(SIZE).float() + i) for i in range(COUNT))
        say("files", len(list(saved.glob("g-*-of-00006.safetensors"))))

    bad = {name: {} for name in NAMES} | {"d": {"b": torch.tensor([1.0, float("nan")])}}
    try:
        save_checkpoint(folder, 2, bad, facts, engine)
    except Diverged as error:
        say("diverged", engine.rank, error)
    if engine.rank == 1:  # as if its disk were full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(folder, 2, tensors(), facts, engine, file_bytes=4 * SIZE * 4)
        say("saved", engine.rank)
    except InputError as error:
        say("refused", engine.rank, "too large" in str(error))
    engine.together(lambda: None)
    if engine.is_main:
        say("left", sorted(path.name for path in (folder / "checkpoints").iterdir()))
    engine.close()
"""


def test_one_rank_that_cannot_write_fails_all(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("HELPERS", repr(str(Path(__file__).parents[1] / "helpers"))))
    done = finished([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script),
                     str(tmp_path / "run")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files 6" in done.stdout
    assert "diverged 0 b in d.safetensors" in done.stdout
    assert "diverged 1 b in d.safetensors" in done.stdout
    assert "refused 0 True" in done.stdout
    assert "refused 1 True" in done.stdout
    assert "left ['nimg-00000001']" in done.stdout


@pytest.mark.parametrize("config", ["cpu.yaml", pytest.param("zero2.yaml", marks=pytest.mark.exhaustive)])
def test_a_rank_that_hangs_is_reported_in_time(config: str, labelled_shards: Path, tmp_path: Path):
    """DeepSpeed makes process groups of its own, which must not wait longer than asked for, either."""
    command = train_command(labelled_shards, tmp_path / "run", "run.kimg=1000", "run.timeout=20", processes=2, config=config)
    with started(command) as launcher:
        wait_for(tmp_path / "run/checkpoints/nimg-00000080/manifest.json", launcher)
        workers = {}
        for pid in descendants(launcher.pid):
            for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                if entry.startswith("RANK="):
                    workers.setdefault(entry.removeprefix("RANK="), pid)
        os.kill(workers["1"], signal.SIGSTOP)
        wait_until(lambda: not alive(workers["0"]))  # less than the half hour that such a group waits otherwise
        os.kill(workers["1"], signal.SIGKILL)
        _, err = launcher.communicate(timeout=TIMEOUT)
        assert launcher.returncode != 0
    line, = {line for line in err.splitlines() if line.startswith("error: ")}  # said twice: where it happened, and last
    assert "lost contact with another rank" in line
    assert re.search(rf"rank 1 \(\S+, process {workers['1']}\) does not answer.* last heard of it was \w+", line)
    assert "Traceback" not in err.partition("torch/distributed/elastic")[0]
    assert (tmp_path / "run/log.txt").read_text().splitlines()[-1].endswith(line)
