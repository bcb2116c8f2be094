"""Tools for a trained generator or a shard set."""
