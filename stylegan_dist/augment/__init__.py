"""Augmentation of everything that the discriminator sees, reals and fakes alike (docs/augmentation.md)."""

from stylegan_dist.augment.controller import CONTROLLERS, RUNNING, STEPS, TARGETS, Controller, measured
from stylegan_dist.augment.pipe import Augmentation, augmentation_of, check

__all__ = ["CONTROLLERS", "RUNNING", "STEPS", "TARGETS", "Augmentation", "Controller", "augmentation_of", "check", "measured"]
