"""Evaluation on a Dassl engine, shared by all trainers whose model gives logits over the data set's class names.

The result of a test is added to `results.json`, never in place of one on other images.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl.clip.loading import describe
from kdpl.clip.model import NotFiniteError, effective_precision
from kdpl.clip.preprocessing import Normalize
from kdpl.common import distributed
from kdpl.common.files import key_of
from kdpl.common.signals import StopRequest
from kdpl.common.tensor_files import update_digest
from kdpl.config.checks import check_extended, check_values
from kdpl.config.keys import ConfigError, check_choice
from kdpl.config.manifest import Manifest, read_manifest
from kdpl.distill.views import ImageFile, images_digest
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.data import as_model_takes, build_loaders, identified, report_unreadable, resized_as, transform_names
from kdpl.trainers.manifests import on_main
from kdpl.training.batches import loaded
from kdpl.training.pixels import ReadableImages, bytes_transform
from kdpl.training.results import check_result, write_results

AT_ONCE = 10_000  # images whose predictions an evaluator takes in together


class EvaluatedTrainer(TrainerX):
    """A trainer whose model is tested on images with class names."""

    distilled = False  # whether it learns from a teacher
    epoch = 0  # the current one, from 0
    finished_epochs = 0  # of the evaluated prompts
    learned_parameters = 0
    train_seconds = 0.0
    reported_unreadable: frozenset[str] = frozenset()  # paths of images
    manifest: Manifest | None = None  # of the run whose prompts are evaluated
    last_result: Mapping[str, Any] | None = None  # of the last test
    command: Mapping[str, Any] = MappingProxyType({})  # config_name and model_dir of the command line, for results.json
    stop = StopRequest()  # which never comes, unless a training installs its own

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        check_values(cfg)
        super().__init__(self.follow_model(cfg))

    # ------------------------------------------------------------------------------------------------------ building

    @property
    def class_names(self) -> list[str]:
        """The data set's class names, in the order of their labels."""
        return [self.lab2cname[label] for label in sorted(self.lab2cname)]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        check_choice("TEST.EVALUATOR", cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
        known = transform_names()
        for name in cfg.INPUT.TRANSFORMS:
            check_choice("INPUT.TRANSFORMS", name, known)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        if cfg.TEST.LABELS == "teacher" and not self.distilled:
            raise ConfigError(f"TEST.LABELS teacher: '{cfg.TRAINER.NAME}' has no teacher, expected own.")

    def follow_model(self, cfg: CfgNode) -> CfgNode:
        """Return the configuration whose INPUT is as the evaluated CLIP takes its images, and remember how.

        Raises:
            ConfigError: a value that was given contradicts it.
            ModelNameError, WeightsError: as `describe`.
        """
        name = cfg.MODEL.BACKBONE.NAME
        self.preprocessing = describe(name).preprocessing
        return as_model_takes(cfg, self.preprocessing, "MODEL.BACKBONE.NAME", name)

    def build_data_loader(self) -> None:
        build_loaders(self, super().build_data_loader)
        self._tested_images: dict[DataLoader, str] = {}  # their digests
        mean, std = tuple(self.cfg.INPUT.PIXEL_MEAN), tuple(self.cfg.INPUT.PIXEL_STD)
        self.normalize = Normalize(mean, std)
        for loader in {self.val_loader, self.test_loader} - {None}:
            loader.dataset.transform = resized_as(loader.dataset.transform, self.preprocessing)
        for loader in {self.train_loader_x, self.val_loader, self.test_loader} - {None}:
            if transform := bytes_transform(loader.dataset.transform, mean, std):
                loader.dataset.transform = transform
        check_names(self.class_names)

    @cached_property
    def training_images(self) -> list[ImageFile]:
        """Names and contents of the training images."""
        return identified(self, self.train_loader_x.dataset.data_source)

    def use_dataset(self, cfg: CfgNode) -> None:
        """Switch to another data set, with its images and class names, for evaluation of the same model."""
        self.cfg = self.follow_model(cfg)
        self.build_data_loader()
        self.evaluator = build_evaluator(self.cfg, lab2cname=self.lab2cname)
        self.use_class_names()

    def use_class_names(self) -> None:
        """Compute the constants that depend on `class_names`."""
        raise NotImplementedError

    def template(self) -> str:
        """The hand-written sentence of the data set."""
        return template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)

    def teacher_name(self) -> str | None:
        """The teacher's name, or None for a trainer without teacher."""
        return None

    def effective_precision(self, key: str, value: str, frozen: bool = False) -> str:
        """Return the precision used on the trainer's device for a value of PREC, and print it if it differs."""
        here = effective_precision(value, self.device.type, frozen)
        if here != value:
            print(f"{key} {value} is for GPUs: on this CPU it is {here}{' in the frozen image tower' if frozen else ''}")
        return here

    def load_for_training(self) -> None:
        """Load everything that only training needs, so that missing files are reported before the run starts."""

    # ------------------------------------------------------------------------------------------------- images, logits

    def images(self, batch: dict[str, Any]) -> Tensor:
        """Return the batch's images (B, 3, H, W) on the device, normalised; if possible they are moved as bytes."""
        if "unreadable" in batch:
            report_unreadable(self, batch)
        return self.normalize(batch["img"].to(self.device, non_blocking=True))

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), batch["label"].to(self.device, non_blocking=True)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of images `(B, 3, H, W)` over `class_names`."""
        raise NotImplementedError

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        return self.logits(images)

    # -------------------------------------------------------------------------------------------------------- a test

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split, print and log the results, add them to `results.json`, and return the accuracy in percent.

        Args:
            split: "test" or "val", which is the test images if there are no validation images.

        Raises:
            ValueError: there are no labelled images.
            OtherRunError: the output folder has a result on other images.
            NotFiniteError: so are not all logits.
        """
        split, classes = split or self.cfg.TEST.SPLIT, len(self.class_names)
        split = "test" if split == "val" and self.val_loader is None else split
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise ValueError(
                f"DATASET.ROOT '{self.cfg.DATASET.ROOT}' has no labelled test images. For an accuracy, put some into "
                "subfolders of its folder 'test', named like the classes; for predictions load the prompts with kdpl.load."
            )
        self.set_model_mode("eval")
        self.evaluator.reset()
        result = self._result(split, loader)
        on_main(lambda: check_result(self.cfg.OUTPUT_DIR, self._run(), result))
        print(f"Evaluate on the *{split}* set")
        # The engine's own evaluator looks at the largest logit alone, but reads it for each batch.
        own_evaluator, found = type(self.evaluator) is Classification, []
        for logits, labels in self._predictions(split, loader):
            if not own_evaluator:
                self.evaluator.process(logits, labels)
            found.append(torch.stack([logits.argmax(1).where(logits.isfinite().all(1), -1), labels]))
        predicted, labels = torch.cat(found, dim=1).cpu()  # the evaluation's only wait for the device
        if (predicted < 0).any():
            raise NotFiniteError(
                f"The logits of the {split} images hold NaN or infinite values: there is no accuracy. Weights or prompts are "
                "damaged, or too large for the precision: load them again, or use PREC fp32."
            )
        if own_evaluator:
            for some, theirs in zip(predicted.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                self.evaluator.process(F.one_hot(some, classes).float(), theirs)
        metrics = self.evaluator.evaluate()
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        counts = torch.zeros(2, classes, dtype=torch.long)  # right ones, all
        counts.index_add_(1, labels, torch.stack([predicted == labels, torch.ones_like(labels)]).long())
        self._write_result(result, counts, metrics)
        return next(iter(metrics.values()))

    def _predictions(self, split: str, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits `(B, C)` and labels `(B,)` of all batches; ranks share the work and all yield all batches."""
        batches, n, rank = list(loader.batch_sampler), distributed.world(), distributed.rank()
        bar = tqdm(range(0, len(batches), n), desc=split, leave=False, disable=None if distributed.is_main() else True)
        readable = ReadableImages(loader.dataset)
        with loaded(readable, batches[rank::n], loader) as shares:
            for start in bar:
                # After the last epoch all is saved; before, the next step saves.
                if self.finished_epochs == self.max_epoch and distributed.any_rank(bool(self.stop.signal)):
                    self.stop.leave()
                counts = [len(batch) for batch in batches[start : start + n]]
                counts += [0] * (n - len(counts))
                if counts[rank]:
                    images, labels = self.parse_batch_test(next(shares))
                    logits = self.model_inference(images)
                else:
                    logits = torch.empty(0, len(self.class_names), device=self.device)
                    labels = torch.empty(0, dtype=torch.long, device=self.device)
                by_rank = (distributed.gather_rows(rows, counts).split(counts) for rows in (logits, labels))
                yield from (pair for pair in zip(*by_rank, strict=True) if len(pair[1]))

    def _result(self, split: str, loader: DataLoader) -> dict[str, Any]:
        """Return what a result is of; the digests of the images are the main rank's on all ranks."""
        items = loader.dataset.data_source
        if loader not in self._tested_images:
            self._tested_images[loader] = on_main(lambda: images_digest(items, identified(self, items), True))
        dataset = self.cfg.DATASET
        return {
            "dataset": dataset.NAME,
            "split": split,
            "classes": dataset.SUBSAMPLE_CLASSES,
            "source_domains": list(dataset.SOURCE_DOMAINS),
            "target_domains": list(dataset.TARGET_DOMAINS),
            "images": self._tested_images[loader],
        }

    def _write_result(self, result: dict[str, Any], counts: Tensor, metrics: Mapping[str, float]) -> None:
        """Add a result to `results.json` in the output folder, on the main rank.

        Args:
            counts: by class the images that were predicted right, and all `(2, C)`.
            metrics: accuracy, error_rate and macro_f1 in percent.
        """
        if not distributed.is_main():
            self.last_result = None
            return
        self.last_result = {
            **result,
            "num_classes": len(self.class_names),
            "num_images": int(counts[1].sum()),
            "class_names": key_of(*self.class_names).hex(),
            "right_by_class": " ".join(f"{right}/{images}" for right, images in counts.T.tolist()),
            **{name: float(metrics[name]) for name in ("accuracy", "error_rate", "macro_f1")},
        }
        folder, where = self.cfg.OUTPUT_DIR, [result["dataset"], result["split"], result["classes"], *result["target_domains"]]
        if self.manifest is not None:
            self.manifest = replace(self.manifest, tests={**self.manifest.tests, " ".join(where): result["images"]})
        write_results(folder, {**self._run(), "prompts": self._prompts_digest()}, self.last_result)
        written = read_manifest(folder)
        if self.manifest is not None and written is not None and written.digest == self.manifest.digest:
            self.manifest.write(folder)

    def _run(self) -> dict[str, Any]:
        """Return the facts of the run for `results.json`."""
        cfg, teacher = self.cfg, self.teacher_name()
        return {
            "trainer": cfg.TRAINER.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "teacher": teacher,
            "class_agnostic": teacher is not None and bool(cfg.TRAINER.KDPL.CLASS_AGNOSTIC),
            "seed": cfg.SEED,
            "shots": cfg.DATASET.NUM_SHOTS,
            "learned_parameters": self.learned_parameters,
            "train_seconds": round(self.train_seconds, 2),
            "epoch": self.finished_epochs,
            "config": cfg.dump(),
            "manifest": self.manifest and self.manifest.to_dict(),
            **self.command,
        }

    def _prompts_digest(self) -> str:
        """Return a digest of the learned prompts; empty for a zero-shot CLIP, which has none."""
        if not hasattr(self, "student"):
            return ""
        content = hashlib.sha256()
        update_digest(content, self.student.learned.state_dict())
        return content.hexdigest()[:16]

    # ---------------------------------------------------------------------------------------------------- TensorBoard

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """Open the TensorBoard log, on the main rank, unless it is open."""
        if distributed.is_main() and self._writer is None:
            self._log(super().init_writer, log_dir)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a value to the TensorBoard log if it is open."""
        if self._writer is not None:
            self._log(super().write_scalar, tag, scalar_value, global_step)

    def close_writer(self) -> None:
        self._log(super().close_writer)

    def _log(self, write: Callable[..., None], *args: Any) -> None:
        """Call a method of the log; an error of writing ends the log, not the run."""
        try:
            write(*args)
        except OSError as error:
            print(f"The TensorBoard curves end here, because they cannot be written: {error}")
            self._writer = None
