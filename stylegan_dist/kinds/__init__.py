"""Kinds of samples: images, arrays and sounds."""
