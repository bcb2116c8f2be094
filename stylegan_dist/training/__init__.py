"""Training: the loop, its phases, the engine that joins the ranks, averaging, checkpoints."""
