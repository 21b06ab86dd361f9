"""From the names in INPUT.TRANSFORMS to torchvision transforms."""

from collections.abc import Callable, Sequence

import torchvision.transforms as T
from yacs.config import CfgNode

from dassl.data.transforms.augmentations import Cutout, GaussianNoise, RandomTranslation
from dassl.utils.registry import check_choice

INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}


def interpolation_mode(cfg: CfgNode) -> T.InterpolationMode:
    """Return the mode that INPUT.INTERPOLATION names.

    Raises:
        ValueError: it names none.
    """
    check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


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
    steps = _train_steps(cfg, chosen) if is_train else _test_steps(cfg, chosen)
    print(f"Building transform_{'train' if is_train else 'test'}")
    for step in steps:
        print(f"+ {step}")
    return T.Compose(steps)


def _train_steps(cfg: CfgNode, chosen: Sequence[str]) -> list[Callable]:
    to_size = []
    if not {"random_crop", "random_resized_crop"}.intersection(chosen):
        to_size = [T.Resize(tuple(cfg.INPUT.SIZE), interpolation_mode(cfg))]
    # The tables' order, not the order in the configuration.
    on_images = [build(cfg) for name, build in _ON_IMAGES.items() if name in chosen]
    on_tensors = [build(cfg) for name, build in _ON_TENSORS.items() if name in chosen]
    return [*to_size, *on_images, T.ToTensor(), *on_tensors]


def _test_steps(cfg: CfgNode, chosen: Sequence[str]) -> list[Callable]:
    size = tuple(cfg.INPUT.SIZE)
    steps = [T.Resize(max(size), interpolation_mode(cfg)), T.CenterCrop(size), T.ToTensor()]
    return [*steps, _normalize(cfg)] if "normalize" in chosen else steps


def _normalize(cfg: CfgNode) -> T.Normalize:
    return T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)


def _random_resized_crop(cfg: CfgNode) -> T.RandomResizedCrop:
    scale = tuple(cfg.INPUT.RRCROP_SCALE)
    return T.RandomResizedCrop(tuple(cfg.INPUT.SIZE), scale, interpolation=interpolation_mode(cfg))


def _color_jitter(cfg: CfgNode) -> T.ColorJitter:
    i = cfg.INPUT
    return T.ColorJitter(i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H)


_ON_IMAGES: dict[str, Callable[[CfgNode], Callable]] = {
    "random_translation": lambda cfg: RandomTranslation(tuple(cfg.INPUT.SIZE), 0.5, interpolation_mode(cfg)),
    "random_crop": lambda cfg: T.RandomCrop(tuple(cfg.INPUT.SIZE), padding=cfg.INPUT.CROP_PADDING, pad_if_needed=True),
    "random_resized_crop": _random_resized_crop,
    "random_flip": lambda cfg: T.RandomHorizontalFlip(),
    "randaugment": lambda cfg: T.RandAugment(cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M),
    "colorjitter": _color_jitter,
    "randomgrayscale": lambda cfg: T.RandomGrayscale(cfg.INPUT.RGS_P),
    "gaussian_blur": lambda cfg: T.RandomApply([T.GaussianBlur(cfg.INPUT.GB_K)], cfg.INPUT.GB_P),
}
_ON_TENSORS: dict[str, Callable[[CfgNode], Callable]] = {
    "cutout": lambda cfg: Cutout(cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN),
    "normalize": _normalize,
    "gaussian_noise": lambda cfg: GaussianNoise(cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD),
}
# Older configurations name what has become part of every test transform.
_IN_EVERY_TEST = ["center_crop"]
AVAILABLE = (*_ON_IMAGES, *_ON_TENSORS, *_IN_EVERY_TEST)
