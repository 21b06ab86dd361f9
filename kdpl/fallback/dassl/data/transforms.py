"""Image transforms by name, for training and for test; their random ones draw from PyTorch's generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision.transforms as T
from torchvision.transforms.v2 import GaussianNoise
from yacs.config import CfgNode

from kdpl.config.keys import INTERPOLATIONS, check_choice

INTERPOLATION_MODES = {name: T.InterpolationMode(name) for name in INTERPOLATIONS}


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
    """Return the transform from a PIL image to a tensor (3, H, W) of INPUT.SIZE, or None if INPUT.NO_TRANSFORM.

    Training applies the chosen augmentations. Test resizes the smaller edge to the larger of SIZE and crops the centre.
    Both normalise only if "normalize" is chosen.

    Args:
        choices: names of transforms in place of INPUT.TRANSFORMS.

    Raises:
        ValueError: a transform or the interpolation is unknown.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied")
        return None
    chosen = cfg.INPUT.TRANSFORMS if choices is None else choices
    for name in chosen:
        check_choice("INPUT.TRANSFORMS", name, AVAILABLE)
    steps = train_steps(cfg, chosen) if is_train else _test_steps(cfg, chosen)
    print(f"Building transform_{'train' if is_train else 'test'}")
    for step in steps:
        print(f"+ {step}")
    return T.Compose(steps)


def train_steps(cfg: CfgNode, chosen: Sequence[str]) -> list[Callable]:
    """Return the steps of a training transform: with no augmentation chosen, resize the image to INPUT.SIZE."""
    to_size = []
    if not {"random_crop", "random_resized_crop"}.intersection(chosen):
        to_size = [T.Resize(tuple(cfg.INPUT.SIZE), _interpolation(cfg))]
    # The tables' order, not the order in the configuration.
    on_images = [build(cfg) for name, build in _ON_IMAGES.items() if name in chosen]
    on_tensors = [build(cfg) for name, build in _ON_TENSORS.items() if name in chosen]
    return [*to_size, *on_images, T.ToTensor(), *on_tensors]


def _test_steps(cfg: CfgNode, chosen: Sequence[str]) -> list[Callable]:
    size = tuple(cfg.INPUT.SIZE)
    steps = [T.Resize(max(size), _interpolation(cfg)), T.CenterCrop(size), T.ToTensor()]
    return [*steps, _normalize(cfg)] if "normalize" in chosen else steps


def _interpolation(cfg: CfgNode) -> T.InterpolationMode:
    check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


@dataclass
class Cutout:
    """Set `n_holes` random squares of side `length` of an image tensor to 0 (DeVries and Taylor, arXiv:1708.04552).

    A square's centre lies anywhere in the image, so squares at the border are smaller.
    """

    n_holes: int
    length: int

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        image = image.clone()  # (channels, H, W)
        for _ in range(self.n_holes):
            top, left = (int(torch.randint(side, (1,))) - self.length // 2 for side in image.shape[-2:])
            image[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return image


def _moved(cfg: CfgNode) -> T.Compose:
    """Enlarge every other image by an eighth over INPUT.SIZE, and crop a random window of that size; resize the others."""
    size, interpolation = tuple(cfg.INPUT.SIZE), _interpolation(cfg)
    larger = T.Resize([round(1.125 * side) for side in size], interpolation)
    return T.Compose([T.RandomApply([larger, T.RandomCrop(size)], 0.5), T.Resize(size, interpolation)])


def _normalize(cfg: CfgNode) -> T.Normalize:
    return T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)


_ON_IMAGES: dict[str, Callable[[CfgNode], Callable]] = {
    "random_translation": _moved,
    "random_crop": lambda cfg: T.RandomCrop(tuple(cfg.INPUT.SIZE), padding=cfg.INPUT.CROP_PADDING, pad_if_needed=True),
    "random_resized_crop": lambda cfg: T.RandomResizedCrop(
        tuple(cfg.INPUT.SIZE), tuple(cfg.INPUT.RRCROP_SCALE), interpolation=_interpolation(cfg)
    ),
    "random_flip": lambda cfg: T.RandomHorizontalFlip(),
    "randaugment": lambda cfg: T.RandAugment(cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M),
    "colorjitter": lambda cfg: T.ColorJitter(*(cfg.INPUT[f"COLORJITTER_{part}"] for part in "BCSH")),
    "randomgrayscale": lambda cfg: T.RandomGrayscale(cfg.INPUT.RGS_P),
    "gaussian_blur": lambda cfg: T.RandomApply([T.GaussianBlur(cfg.INPUT.GB_K)], cfg.INPUT.GB_P),
}
_ON_TENSORS: dict[str, Callable[[CfgNode], Callable]] = {
    "cutout": lambda cfg: Cutout(cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN),
    "normalize": _normalize,
    "gaussian_noise": lambda cfg: T.RandomApply([GaussianNoise(cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD, clip=False)], 0.5),
}
AVAILABLE = (*_ON_IMAGES, *_ON_TENSORS, "center_crop")  # older configurations name that, which is part of every test transform
