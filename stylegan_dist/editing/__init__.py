"""Editing samples in W: directions, mixing, walks, truncation, sheets of what layers do, blended generators."""
