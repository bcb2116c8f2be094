"""Augmentation of everything that the discriminator sees, reals and fakes alike (docs/augmentation.md)."""

from stylegan_dist.augment.controller import RUNNING, SIGNS, Controller
from stylegan_dist.augment.pipe import Augmentation, augmentation_of, check

__all__ = ["RUNNING", "SIGNS", "Augmentation", "Controller", "augmentation_of", "check"]
