"""Distributed training of StyleGAN-class GANs: a run is a pure function of (config, data, seed)."""

__version__ = "0.1.0"
