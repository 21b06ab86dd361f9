"""Image transforms by name, for training and for test."""

from dassl.data.transforms.augmentations import Cutout, GaussianNoise, RandomTranslation
from dassl.data.transforms.build import AVAILABLE, INTERPOLATION_MODES, build_transform, interpolation_mode

__all__ = [
    "AVAILABLE",
    "INTERPOLATION_MODES",
    "Cutout",
    "GaussianNoise",
    "RandomTranslation",
    "build_transform",
    "interpolation_mode",
]
