"""Residual networks over the positions of a line of text (Gulrajani et al. 2017)."""
