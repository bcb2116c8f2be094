"""The output of a run: console, log file, metrics.jsonl, picture grids and Weights & Biases."""
