"""Evaluation on a Dassl engine, shared by all trainers whose model gives logits over the data set's class names."""

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, build_evaluator
from torch import Tensor
from yacs.config import CfgNode

from kdpl.clip.inputs import Normalize
from kdpl.clip.loading import describe
from kdpl.clip.model import effective_precision
from kdpl.common import distributed
from kdpl.common.images import write_bad_images
from kdpl.common.signals import StopRequest
from kdpl.config.checks import check_extended, check_values
from kdpl.config.keys import check_choice
from kdpl.config.manifest import Manifest
from kdpl.distill.views import ImageFile, image_files
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.inputs import follow_model, resized_as
from kdpl.trainers.tested import Evaluation
from kdpl.training import curves
from kdpl.training.curves import Curves
from kdpl.training.pixels import apply_crop_scale, bytes_transform


class EvaluatedTrainer(TrainerX):
    """A trainer whose model is tested on images with class names."""

    epoch = 0  # the current one, from 0
    finished_epochs = 0  # of the evaluated prompts
    learned_parameters = 0
    train_seconds = 0.0
    reported_unreadable: frozenset[str] = frozenset()  # paths of images
    manifest: Manifest | None = None  # of the run whose prompts are evaluated
    last_result: Mapping[str, Any] | None = None  # of the last test
    command: Mapping[str, Any] = MappingProxyType({})  # config_name and model_dir of the command line, for results.json
    stop = StopRequest()  # which never comes, unless a training installs its own

    @property
    def class_names(self) -> list[str]:
        """The data set's class names, in the order of their labels."""
        return [self.lab2cname[label] for label in sorted(self.lab2cname)]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        check_extended(cfg)
        check_values(cfg)
        check_choice("TEST.EVALUATOR", cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
        known = transform_names()
        for name in cfg.INPUT.TRANSFORMS:
            check_choice("INPUT.TRANSFORMS", name, known)
        self.follow_model(cfg)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)

    @cached_property
    def training_images(self) -> list[ImageFile]:
        """Names and contents of the training images."""
        root = self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
        return image_files([item.impath for item in self.train_loader_x.dataset.data_source], root)

    def template(self) -> str:
        """The hand-written sentence of the data set."""
        return template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)

    def follow_model(self, cfg: CfgNode) -> None:
        """Set INPUT of the configuration, in place, as the evaluated CLIP takes its images, and remember how.

        Raises:
            ConfigError: a value that was given contradicts it.
            ModelNameError, WeightsError: as `describe`.
        """
        name = cfg.MODEL.BACKBONE.NAME
        self.preprocessing = describe(name).preprocessing
        follow_model(cfg, self.preprocessing, "MODEL.BACKBONE.NAME", name)

    def build_data_loader(self) -> None:
        build_loaders(self, super().build_data_loader)
        mean, std = tuple(self.cfg.INPUT.PIXEL_MEAN), tuple(self.cfg.INPUT.PIXEL_STD)
        self.normalize = Normalize(mean, std)
        for loader in {id(each): each for each in (self.val_loader, self.test_loader) if each is not None}.values():
            loader.dataset.transform = resized_as(loader.dataset.transform, self.preprocessing)
        for loader in (self.train_loader_x, self.val_loader, self.test_loader):
            if loader is not None and (transform := bytes_transform(loader.dataset.transform, mean, std)):
                loader.dataset.transform = transform
        check_names(self.class_names)

    def use_dataset(self, cfg: CfgNode) -> None:
        """Switch to another data set, with its images and class names, for evaluation of the same model."""
        self.follow_model(cfg)
        self.cfg = cfg
        self.build_data_loader()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.use_class_names()

    def use_class_names(self) -> None:
        """Compute the constants that depend on `class_names`."""
        raise NotImplementedError

    def load_for_training(self) -> None:
        """Load everything that only training needs, so that missing files are reported before the run starts."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of images `(B, 3, H, W)` over `class_names`."""
        raise NotImplementedError

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        return self.logits(images)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split, print and log the results, add them to `results.json`, and return the accuracy in percent."""
        return Evaluation(self, split or self.cfg.TEST.SPLIT).run()

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """Open the TensorBoard log, on the main rank, unless it is open."""
        if distributed.is_main() and self._writer is None:
            with curves.errors_reported():
                super().init_writer(log_dir)
                self._writer = Curves(self._writer)

    def teacher_name(self) -> str | None:
        """The teacher's name, or None for a trainer without teacher."""
        return None

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), batch["label"].to(self.device, non_blocking=True)

    def images(self, batch: dict[str, Any]) -> Tensor:
        """Return the batch's images (B, 3, H, W) on the device, normalised; if possible they are moved as bytes."""
        report_unreadable(self, batch)
        return self.normalize(batch["img"].to(self.device, non_blocking=True))

    def effective_precision(self, key: str, value: str, frozen: bool = False) -> str:
        """Return the precision used on the trainer's device for a value of PREC, and print it if it differs."""
        here = effective_precision(value, self.device.type, frozen)
        if here != value:
            print(f"{key} {value} is for GPUs: on this CPU it is {here}{' in the frozen image tower' if frozen else ''}")
        return here


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


def report_unreadable(trainer: TrainerX, batch: Mapping[str, Any]) -> None:
    """Print and write down the images of a batch that were replaced because they could not be read, each once."""
    reported = getattr(trainer, "reported_unreadable", frozenset())
    if new := sorted({*batch.get("unreadable", ())} - reported - {""}):
        trainer.reported_unreadable = reported.union(new)
        write_bad_images(trainer.cfg.OUTPUT_DIR, new, more=True)
        print("Unreadable images, replaced by the next readable one:", *new, sep="\n")


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


def transform_names() -> list[str]:
    """Return the names that INPUT.TRANSFORMS may hold in the engine in use."""
    from dassl.data import transforms

    return list(transforms.AVAILABLE if hasattr(transforms, "AVAILABLE") else transforms.transforms.AVAI_CHOICES)
