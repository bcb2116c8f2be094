"""Autoencoders that are trained here, for latents as training data."""
