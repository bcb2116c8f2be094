"""Ranks that are forked from one process, which has paid for the imports once; for tests with many launches."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable

from launching import free_port


def run_ranks(world: int, work: Callable[[], object]) -> None:
    """Run `work` in `world` new processes that find each other as after a launcher; returns when all have succeeded.

    No thread may have been started in this process. Raises: SystemExit: a rank has failed; the others are killed then.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world),
                   "LOCAL_WORLD_SIZE": str(world)}
    sys.stdout.flush()
    gc.freeze()  # the ranks need not look through all that was imported
    ranks = set()
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                work()
            except BaseException:
                traceback.print_exc()
                status = 1
            else:
                status = 0
            sys.stdout.flush()
            sys.stderr.flush()
            # Not by the interpreter, where threads of PyTorch abort one of some hundred processes whose work is done. Tests of
            # whole programs end as programs do.
            os._exit(status)
        ranks.add(pid)
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a rank of {world} has failed")
