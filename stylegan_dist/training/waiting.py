"""Waiting for data: until it is there or the run is asked to stop; and what it means that there was so much of it."""

from __future__ import annotations

import time

from stylegan_dist.data.stream import LOOK_SECONDS, BatchStream
from stylegan_dist.training.engine import Ranks
from stylegan_dist.training.interruption import StopRequest

WAIT_ALLOWED = 0.02  # share of a tick that may go by waiting for data without a warning
LEAST_WAIT = 1.0     # seconds; of less, such as the start of the readers in a short tick, nothing follows
STOP_SECONDS = 10.0  # that one of several ranks waits for data after a request to stop; there may be 30 until it is killed


def wait_for_data(stream: BatchStream, stop: StopRequest, patient: bool) -> bool:
    """Wait for the next batch; returns whether it is there. If it is not, the run is asked to stop.

    Args:
        patient: wait a little longer then, as the other ranks need this one to save their state.
    """
    asked = None  # when
    while not stream.ready(LOOK_SECONDS):
        if stop.requested:
            asked = asked or time.monotonic()
            if not patient or time.monotonic() - asked > STOP_SECONDS:
                return False
    return True


def what_waiting_means(ranks: Ranks, stream: BatchStream, seconds: float, workers: int, cached: bool) -> str:
    """Advice, where any rank spends too much of a tick of so many seconds waiting for data, else nothing."""
    here = [stream.seconds_waited / seconds, stream.seconds_waited, stream.seconds_read, stream.seconds_decode]
    everywhere = ranks.gather(here)
    waited, seconds_waited, read, decode = worst = max(everywhere)
    if waited <= WAIT_ALLOWED or seconds_waited < LEAST_WAIT:
        return ""
    if read > decode:
        cause, remedy = ("network", "a larger cache on a local disk, or more reader processes (data.workers)") \
            if cached else ("disk", "a local disk, or more reader processes (data.workers)")
    else:
        cause, remedy = "decode", "more reader processes (data.workers), or a data set packed as jpg"
    return (f"waiting for data took {waited:.0%} of the time on rank {everywhere.index(worst)}; the cause is {cause} (reading "
            f"{read:.1f} s, decoding {decode:.1f} s in {max(workers, 1)} readers): try {remedy}; stylegan-dist bench-data "
            "measures what is possible")
