"""Image transforms by name, for training and for test; their random ones draw from PyTorch's generator."""

from collections.abc import Callable, Sequence

import torchvision.transforms as T
from yacs.config import CfgNode

from kdpl.config.keys import INTERPOLATIONS, check_choice

INTERPOLATION_MODES = {name: T.InterpolationMode(name) for name in INTERPOLATIONS}
AVAILABLE = ("random_resized_crop", "random_flip", "normalize", "center_crop")  # the last is part of every test transform


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose:
    """Return the transform from a PIL image to a tensor (3, H, W) of INPUT.SIZE.

    Training applies the chosen augmentations. Test resizes the smaller edge to the larger of SIZE and crops the centre.
    Both normalise only if "normalize" is chosen.

    Args:
        choices: names of transforms in place of INPUT.TRANSFORMS.

    Raises:
        ValueError: a transform or the interpolation is unknown, or only Dassl has it.
    """
    chosen = cfg.INPUT.TRANSFORMS if choices is None else choices
    for name in chosen:
        check_choice("INPUT.TRANSFORMS", name, AVAILABLE)
    check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
    size, interpolation = tuple(cfg.INPUT.SIZE), INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    steps: list[Callable]
    if not is_train:
        steps = [T.Resize(max(size), interpolation), T.CenterCrop(size)]
    elif "random_resized_crop" in chosen:
        steps = [T.RandomResizedCrop(size, tuple(cfg.INPUT.RRCROP_SCALE), interpolation=interpolation)]
    else:
        steps = [T.Resize(size, interpolation)]
    if is_train and "random_flip" in chosen:
        steps.append(T.RandomHorizontalFlip())
    steps.append(T.ToTensor())
    if "normalize" in chosen:
        steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    print(f"Building transform_{'train' if is_train else 'test'}", *(f"+ {step}" for step in steps), sep="\n")
    return T.Compose(steps)
