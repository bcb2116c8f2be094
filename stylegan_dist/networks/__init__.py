"""Generators and discriminators: one file a family, layers shared between families in layers.py."""
