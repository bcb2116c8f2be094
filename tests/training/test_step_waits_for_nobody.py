"""Between two ticks the host only gives orders: no operation of a step makes it wait for the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import TINY
from tape import NobodyWaits, NothingIsSent

from stylegan_dist.config import load_config
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.index import load_index
from stylegan_dist.monitor.monitor import NullMonitor
from stylegan_dist.ops import native
from stylegan_dist.ranks import World
from stylegan_dist.training.loop import step
from stylegan_dist.training.memory import planning_state
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.timing import PhaseTimer

META = torch.device("meta")


@pytest.mark.parametrize(("path", "overrides"), [
    ("fused", ("precision.dtype=fp16", "loss.adversarial=relativistic", "optim.g.l1=1e-3",
               "optim.d.lr={cosine: [0.01, 0.001], until_kimg: 1}", "loss.r1_gamma={linear: [2, 1], until_kimg: 1}",
               "augment.pipe=bgcfnc", "augment.p={cosine: [0.1, 0.5], until_kimg: 1}")),
    pytest.param("closed", ("data.conditional=false", "loss.penalty=approximate", "loss.path_length_interval=1",
                            "run.batch_gpu=4", "run.recompute=8", "optim.g.name=RMSprop", "optim.g.lr=0.001",
                            "augment.pipe=bgc"),
                 marks=pytest.mark.full),
])
def test_whole_steps(path: str, overrides: tuple[str, ...], small_shards: Path):
    if path == "fused" and not native.native().devices:
        pytest.skip(native.native().reason)
    index = load_index(small_shards)
    config = load_config(None, [*TINY, f"data.shards={small_shards}", *overrides])
    resolved = resolve(config, index, World(1, "cuda", bf16=True))
    config, count, timer = resolved.config, resolved.config.run.batch, PhaseTimer(META)
    images = torch.zeros(count, index.channels, index.resolution, index.resolution, dtype=torch.uint8)
    numbers = torch.arange(count)
    with native.using(path, planned="cuda"):
        state = planning_state(resolved, index)
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["foreach"] = True  # as on a GPU

        engine = SimpleNamespace(device=META, read_later=lambda value: value)
        run: Any = SimpleNamespace(state=state, config=config, resolved=resolved, index=index, engine=engine, timer=timer,
                                   to_compile=(), monitor=NullMonitor())
        batch = Batch(numbers, {"sample": images, "label": numbers % 3})
        step(run, batch, False, batch)  # filters and the state of optimizers are made once
        state.nimg = 0
        timer.take()
        with NobodyWaits(), NothingIsSent():
            step(run, batch, False, batch)  # with all phases
    assert timer.take().keys() == {phase.name for phase in state.phases}
