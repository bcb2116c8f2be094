"""What the networks of all families share: layers, precision, and the interface of a generator."""
