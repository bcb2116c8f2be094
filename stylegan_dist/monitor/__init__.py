"""What a run shows: console, log file, metrics.jsonl (the truth), image grids and Weights & Biases."""
