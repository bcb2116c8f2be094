"""The output of a run: console, log file, metrics.jsonl, picture grids, Weights & Biases and TensorBoard."""
