"""Reading data sets: the index, the global sample order, storage and cache, reader processes, and the stream of batches."""
