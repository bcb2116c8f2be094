"""Making data sets: packing sources into shards, indexing the shards of other tools, and verifying both."""
