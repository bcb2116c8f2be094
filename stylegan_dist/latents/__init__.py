"""Tools that work in the latent space of a trained generator. What they have in common is in `trained.py`."""
