"""INPUT.* of the configuration and the CLIPs that take the images: they must say the same."""

from collections.abc import Sequence

import torch
import torchvision.transforms as T
from yacs.config import CfgNode

from kdpl.clip.inputs import Preprocessing
from kdpl.clip.loading import load_clip
from kdpl.clip.precision import effective_precision
from kdpl.config.choices import ConfigError
from kdpl.config.merging import is_given
from kdpl.distill.teacher import Teacher


def follow_model(cfg: CfgNode, preprocessing: Preprocessing, key: str, name: str, own: bool = False) -> None:
    """Set INPUT.SIZE, INTERPOLATION, PIXEL_MEAN and PIXEL_STD to those of a CLIP, in place, where they were not given.

    Args:
        key, name: of the CLIP, for errors: "MODEL.BACKBONE.NAME", "ViT-B/32".
        own: True if given values are of another CLIP, the student: they are replaced, and that is printed.

    Raises:
        ConfigError: a given value is not the CLIP's; both are named, and the ways out.
    """
    p = preprocessing
    expected = {"SIZE": p.size, "INTERPOLATION": p.interpolation, "PIXEL_MEAN": list(p.mean), "PIXEL_STD": list(p.std)}
    different = {k: value for k, value in expected.items() if not _same(cfg.INPUT[k], value)}
    given = {k: value for k, value in different.items() if is_given(cfg, f"INPUT.{k}")}
    if given and not own:
        both = "; ".join(f"INPUT.{k} {cfg.INPUT[k]} is not what {key} '{name}' takes: expected {v}" for k, v in given.items())
        pairs = " ".join(f'INPUT.{k} "{value}"' for k, value in given.items())
        raise ConfigError(
            f"{both}. Without these lines in the configuration file INPUT follows the model; or set them on the command line: "
            f"{pairs}"
        )
    if given:
        print(f"Images are prepared as '{name}' takes them: {', '.join(f'INPUT.{k} {v}' for k, v in given.items())}")
    frozen = cfg.is_frozen()
    cfg.defrost()
    for k, value in different.items():
        cfg.INPUT[k] = type(cfg.INPUT[k])(value)
    if frozen:
        cfg.freeze()


def _same(value: object, expected: object) -> bool:
    if isinstance(expected, str):
        return value == expected
    return len(value) == len(expected) and all(abs(a - b) < 1e-6 for a, b in zip(value, expected, strict=True))


def resized_as(transform: object, preprocessing: Preprocessing) -> object:
    """Return a test transform of the engine's with the resizing of a CLIP that does not cut out the centre.

    Raises:
        ValueError: the transform does not begin with a resizing and a centre crop.
    """
    if preprocessing.resize_mode == "shortest":
        return transform
    steps = getattr(transform, "transforms", ())
    if [type(step) for step in steps[:2]] != [T.Resize, T.CenterCrop]:
        raise ValueError(
            f"The test transform {transform} does not begin with Resize and CenterCrop, which this CLIP replaces by resizing "
            f"to {preprocessing.size}: use the engine's own transform."
        )
    return T.Compose([*preprocessing.resize_steps(), *steps[2:]])


def load_teacher(cfg: CfgNode, names: Sequence[str], template: str, device: torch.device, cached: bool = False) -> Teacher:
    """Load the frozen teacher of TRAINER.KDPL over a list of names, for images that are prepared as INPUT says.

    Args:
        template, cached: as `Teacher` takes them.
    """
    options = cfg.TRAINER.KDPL
    precision = effective_precision(options.PREC, device.type, frozen=True)
    print(f"Loading teacher CLIP (backbone: {options.TEACHER}, precision: {precision})")
    clip = load_clip(options.TEACHER, precision, device)
    mean, std = tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)
    teacher = Teacher(clip, names, template, mean, std, options.TEACHER_LOGIT_SCALE, cached)
    if options.COMPILE:
        clip.compile()
    return teacher
