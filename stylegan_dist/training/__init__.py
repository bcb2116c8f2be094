"""Training: setup of a run, the loop and its events, averaging, checkpoints, memory estimate."""
