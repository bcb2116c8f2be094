"""Data sets: the shard format, packing and checking, the global sample order, and the stream of batches."""
