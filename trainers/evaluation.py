"""Evaluation on a Dassl engine, shared by all trainers whose model gives logits over the data set's class names."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl.clip.loading import describe
from kdpl.clip.precision import NotFiniteError, effective_precision
from kdpl.common import distributed
from kdpl.common.images import write_bad_images
from kdpl.config.checks import check_extended, check_values
from kdpl.config.choices import check_choice
from kdpl.config.manifest import Manifest
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.inputs import follow_model, resized_as
from kdpl.trainers.tested import record, refuse_other_images, tested_images
from kdpl.training.batches import loaded
from kdpl.training.pixels import Normalize, ReadableImages, apply_crop_scale, bytes_transform

AT_ONCE = 10_000  # images whose predictions an evaluator takes in together
_REPORT = threading.excepthook  # Python's, or that of the program that this is a part of


def _report_unless_of_curves(args: threading.ExceptHookArgs) -> None:
    """Report the error of a thread; TensorBoard's writer hands its write errors to the next call, which reports them."""
    of_curves = isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")
    if not of_curves:
        _REPORT(args)


class _Curves:
    """TensorBoard curves whose write errors end the curves, not the run."""

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """Open the TensorBoard log unless it is open."""
        threading.excepthook = _report_unless_of_curves
        with self._outliving_the_curves():
            super().init_writer(log_dir)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a value to the TensorBoard log if it is open."""
        with self._outliving_the_curves():
            super().write_scalar(tag, scalar_value, global_step)

    def close_writer(self) -> None:
        """Close the TensorBoard log if it is open."""
        with self._outliving_the_curves():
            super().close_writer()

    @contextmanager
    def _outliving_the_curves(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"The TensorBoard curves end here, because they cannot be written: {error}")


class EvaluatedTrainer(_Curves, TrainerX):
    """A trainer whose model is tested on images with class names."""

    epoch = 0  # the current one, from 0
    finished_epochs = 0  # of the evaluated prompts
    learned_parameters = 0
    train_seconds = 0.0
    reported_unreadable: frozenset[str] = frozenset()  # paths of images
    manifest: Manifest | None = None  # of the run whose prompts are evaluated
    last_result: Mapping[str, Any] | None = None  # of the last test
    command: Mapping[str, Any] = MappingProxyType({})  # config_name and model_dir of the command line, for results.json

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
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is None:
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise ValueError(
                f"DATASET.ROOT '{self.cfg.DATASET.ROOT}' has no labelled test images. For an accuracy, put some into "
                "subfolders of its folder 'test', named like the classes; for predictions load the prompts with kdpl.load."
            )
        refuse_other_images(self, split, loader)
        print(f"Evaluate on the *{split}* set")
        found = [self._take_in(*pair) for pair in self.predictions(loader, split)]
        predicted, labels = torch.cat(found, dim=1).cpu()  # the evaluation's only wait for the device
        if (predicted < 0).any():
            raise NotFiniteError(
                f"The logits of the {split} images hold NaN or infinite values: there is no accuracy. Weights or prompts are "
                "damaged, or too large for the precision: load them again, or use PREC fp32."
            )
        if self._counts_alone:
            for some, theirs in zip(predicted.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                self.evaluator.process(F.one_hot(some, len(self.class_names)).float(), theirs)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        counts = torch.zeros(2, len(self.class_names), dtype=torch.long)  # right ones, all
        counts.index_add_(1, labels, torch.stack([predicted == labels, torch.ones_like(labels)]).long())
        self.last_result = record(self, split, loader, counts, results)
        return next(iter(results.values()))

    @property
    def _counts_alone(self) -> bool:
        """Whether the evaluator is the engine's own, which looks at the largest logit alone, but reads it for each batch."""
        return type(self.evaluator) is Classification

    def _take_in(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Take in a batch; return its predictions, -1 where the logits are not finite, and labels `(2, B)`, on the device."""
        if not self._counts_alone:
            self.evaluator.process(logits, labels)
        return torch.stack([logits.argmax(1).where(logits.isfinite().all(1), -1), labels])

    def predictions(self, loader: DataLoader, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits `(B, C)` and labels `(B,)` of a loader's batches; ranks share the work and all yield all batches."""
        batches, n, rank = list(loader.batch_sampler), distributed.world(), distributed.rank()
        bar = tqdm(range(0, len(batches), n), desc=split, leave=False, disable=None if distributed.is_main() else True)
        images = ReadableImages(loader.dataset, tested_images(self, loader)[1])
        with loaded(images, batches[rank::n], loader) as own:
            for start in bar:
                self.stop_if_asked()
                counts = [len(batch) for batch in batches[start : start + n]]
                counts += [0] * (n - len(counts))
                if counts[rank]:
                    images, labels = self.parse_batch_test(next(own))
                    logits = self.model_inference(images)
                else:
                    logits = torch.empty(0, len(self.class_names), device=self.device)
                    labels = torch.empty(0, dtype=torch.long, device=self.device)
                shares = (distributed.gather_rows(rows, counts).split(counts) for rows in (logits, labels))
                yield from (pair for pair in zip(*shares, strict=True) if len(pair[1]))

    def stop_if_asked(self) -> None:
        """Raise `Interrupted` if a signal was received and everything is saved."""

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
        print("\n".join(["Unreadable images, replaced by the next readable one:", *new]))


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
