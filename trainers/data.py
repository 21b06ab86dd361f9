"""The images of a trainer: its loaders, prepared as its CLIP takes them, and those that cannot be read."""

from collections.abc import Callable, Mapping
from typing import Any

import torchvision.transforms as T
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TrainerX
from yacs.config import CfgNode

from kdpl.clip.preprocessing import Preprocessing
from kdpl.common.images import write_bad_images
from kdpl.config.keys import ConfigError
from kdpl.config.merging import is_given
from kdpl.distill.views import ImageFile, image_files
from kdpl.training.pixels import apply_crop_scale


def as_model_takes(cfg: CfgNode, preprocessing: Preprocessing, key: str, name: str, override: bool = False) -> CfgNode:
    """Return the configuration with INPUT.SIZE, INTERPOLATION, PIXEL_MEAN and PIXEL_STD of a CLIP where they were not given.

    Args:
        key, name: of the CLIP, for errors: "MODEL.BACKBONE.NAME", "ViT-B/32".
        override: given values are of another CLIP, the student: they are replaced, and how images are prepared is printed.

    Raises:
        ConfigError: a given value is not the CLIP's; both are named, and what to do.
    """
    p = preprocessing
    expected = {"SIZE": p.size, "INTERPOLATION": p.interpolation, "PIXEL_MEAN": list(p.mean), "PIXEL_STD": list(p.std)}
    different = {k: value for k, value in expected.items() if not _same(cfg.INPUT[k], value)}
    given = {k: value for k, value in different.items() if is_given(cfg, f"INPUT.{k}")}
    if given and not override:
        both = "; ".join(f"INPUT.{k} {cfg.INPUT[k]} is not what {key} '{name}' takes: expected {v}" for k, v in given.items())
        pairs = " ".join(f'INPUT.{k} "{value}"' for k, value in given.items())
        raise ConfigError(
            f"{both}. Without these lines in the configuration file INPUT follows the model; or set them on the command line: "
            f"{pairs}"
        )
    if override:
        values = ", ".join(f"INPUT.{k} {value}" for k, value in expected.items())
        print(f"Images are prepared as '{name}' takes them: {values}, resize mode {p.resize_mode}")
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    for k, value in different.items():
        cfg.INPUT[k] = type(cfg.INPUT[k])(value)
    if frozen:
        cfg.freeze()
    return cfg


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


def build_loaders(trainer: TrainerX, build: Callable[[], None]) -> None:
    """Set a trainer's loaders, by the manager of a data set that reads images its own way, else by `build`, the engine's."""
    name = trainer.cfg.DATASET.NAME
    dataset = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    manager = getattr(dataset, "data_manager", None)
    if manager is None:
        build()
    else:
        trainer.dm = dm = manager(trainer.cfg)
        trainer.train_loader_x, trainer.train_loader_u = dm.train_loader_x, dm.train_loader_u
        trainer.val_loader, trainer.test_loader = dm.val_loader, dm.test_loader
        trainer.num_classes, trainer.num_source_domains = dm.num_classes, dm.num_source_domains
        trainer.lab2cname = dm.lab2cname
    if trainer.test_loader is None:
        trainer.cfg = without_test(trainer.cfg)
    if trainer.train_loader_x is not None:
        apply_crop_scale(trainer.train_loader_x.dataset.transform, trainer.cfg.INPUT.RRCROP_SCALE)


def without_test(cfg: CfgNode) -> CfgNode:
    """Return the configuration of a run without labelled images, which does not test.

    Raises:
        ValueError: the run needs labelled images to select its best epoch.
    """
    if cfg.TEST.FINAL_MODEL == "best_val":
        raise ValueError(
            f"TEST.FINAL_MODEL 'best_val' needs labelled images, and DATASET.NAME '{cfg.DATASET.NAME}' has none: "
            "set it to 'last_step'."
        )
    print("There are no labelled test images: no accuracy will be measured")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.NO_TEST = True
    cfg.freeze()
    return cfg


def dataset_root(trainer: TrainerX) -> str:
    """Return the folder below which images are named."""
    return trainer.cfg.DATASET.ROOT or getattr(trainer.dm.dataset, "dataset_dir", "")


def identified(trainer: TrainerX, items: list[Any]) -> list[ImageFile]:
    """Return names and contents of a data set's items."""
    return image_files([item.impath for item in items], dataset_root(trainer))


def report_unreadable(trainer: TrainerX, batch: Mapping[str, Any]) -> None:
    """Print and write down the images of a batch that were replaced because they could not be read, each once."""
    reported = getattr(trainer, "reported_unreadable", frozenset())
    if new := sorted({*batch.get("unreadable", ())} - reported - {""}):
        trainer.reported_unreadable = reported.union(new)
        write_bad_images(trainer.cfg.OUTPUT_DIR, new, more=True)
        print("Unreadable images, replaced by the next readable one:", *new, sep="\n")


def transform_names() -> list[str]:
    """Return the names that INPUT.TRANSFORMS may hold in the engine in use."""
    from dassl.data import transforms

    return list(transforms.AVAILABLE if hasattr(transforms, "AVAILABLE") else transforms.transforms.AVAI_CHOICES)
