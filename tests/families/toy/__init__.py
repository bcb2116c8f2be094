"""The smallest family: one linear layer makes samples, one judges them."""
