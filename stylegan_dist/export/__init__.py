"""A trained generator for use elsewhere: weights with a description, graphs for PyTorch and ONNX, a model card."""

from stylegan_dist.export.pretrained import from_pretrained

__all__ = ["from_pretrained"]
