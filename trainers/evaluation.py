"""Images and tests on a Dassl engine, shared by all trainers whose model gives logits over the data set's class names.

Loaders prepare images as the CLIP takes them. The result of a test is added to `results.json`, never in place of one on other
images.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
from dassl.data import transforms
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl.clip.loading import describe
from kdpl.clip.model import Normalize, check_finite, effective_precision
from kdpl.clip.preprocessing import Preprocessing
from kdpl.common import distributed
from kdpl.common.command import leave, stop_signal
from kdpl.common.files import key_of, name_below
from kdpl.common.tensor_files import update_digest
from kdpl.config.checks import check_extended, check_values
from kdpl.config.defaults import is_given
from kdpl.config.keys import ConfigError, check_choice
from kdpl.config.manifest import Manifest
from kdpl.distill.views import ImageFile, image_files, images_digest
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.training.batches import apply_crop_scale, bytes_transform, loaded
from kdpl.training.results import check_result, write_results

AT_ONCE = 10_000  # images whose predictions an evaluator takes in together


class EvaluatedTrainer(TrainerX):
    """A trainer whose model is tested on images with class names."""

    distilled = False  # whether it learns from a teacher
    epoch = 0  # the current one, from 0
    finished_epochs = 0  # of the evaluated prompts
    learned_parameters = 0
    train_seconds = 0.0
    reported_unreadable: frozenset[str] = frozenset()  # reasons, each with the path of its image
    manifest: Manifest | None = None  # of the run whose prompts are evaluated
    last_result: Mapping[str, Any] | None = None  # of the last test
    command: Mapping[str, Any] = MappingProxyType({})  # config_name and model_dir of the command line, for results.json

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
        engine = transforms if hasattr(transforms, "AVAILABLE") else transforms.transforms  # bundled, or an installed Dassl
        for name in cfg.INPUT.TRANSFORMS:
            check_choice("INPUT.TRANSFORMS", name, getattr(engine, "AVAILABLE", None) or engine.AVAI_CHOICES)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        if cfg.TEST.LABELS == "teacher" and (not self.distilled or cfg.TRAINER.KDPL.CLASS_AGNOSTIC):
            raise ConfigError(f"TEST.LABELS teacher: '{cfg.TRAINER.NAME}' has no teacher of the test's names, expected own.")

    def follow_model(self, cfg: CfgNode) -> CfgNode:
        """Return the configuration whose INPUT is as the evaluated CLIP takes its images, and remember how.

        Raises:
            ConfigError: a value that was given contradicts it.
            ModelNameError, WeightsError: as `describe`.
        """
        name = cfg.MODEL.BACKBONE.NAME
        self.preprocessing = describe(name).preprocessing
        return as_model_takes(cfg, self.preprocessing, name)

    def build_data_loader(self) -> None:
        build_loaders(self, super().build_data_loader)
        self._tested_images: dict[str, str] = {}  # digests by split
        mean, std = tuple(self.cfg.INPUT.PIXEL_MEAN), tuple(self.cfg.INPUT.PIXEL_STD)
        self.normalize = Normalize(mean, std)
        for loader in {self.val_loader, self.test_loader} - {None}:
            steps = loader.dataset.transform.transforms
            if [type(step) for step in steps[:2]] != [T.Resize, T.CenterCrop]:
                raise ValueError(
                    f"The test transform {loader.dataset.transform} does not begin with Resize and CenterCrop, which those of "
                    "the CLIP replace: use the engine's own transform."
                )
            loader.dataset.transform = T.Compose([*self.preprocessing.resize_steps(), *steps[2:]])
        for loader in {self.train_loader_x, self.val_loader, self.test_loader} - {None}:
            if transform := bytes_transform(loader.dataset.transform, mean, std):
                loader.dataset.transform = transform
        check_names(self.class_names)

    @property
    def root(self) -> str:
        """The folder below which images are named."""
        return self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")

    @cached_property
    def training_images(self) -> list[ImageFile]:
        """Names and contents of the training images."""
        return image_files([item.impath for item in self.train_loader_x.dataset.data_source], self.root)

    def keys(self, paths: Sequence[str]) -> list[str]:
        """Return the names of images: their paths below the data set's folder."""
        return [name_below(path, self.root) for path in paths]

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

    # ------------------------------------------------------------------------------------------------- images, logits

    def report_unreadable(self, reasons: Sequence[str]) -> None:
        """Print and list the images of a batch that were replaced because they cannot be read, each once."""
        if new := sorted({*reasons} - self.reported_unreadable - {""}):
            self.reported_unreadable |= {*new}
            print("Unreadable images, replaced by the next readable one:", *new, sep="\n")

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return a batch's images `(B, 3, H, W)`, normalised, and labels `(B,)`; if possible images are moved as bytes."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return self.normalize(images), labels

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
        run, result = self._run(), self._result(split, loader)
        if distributed.is_main():
            check_result(self.cfg.OUTPUT_DIR, run, result)
        print(f"Evaluate on the *{split}* set")
        # The engine's own evaluator looks at the largest logit alone, but reads it for each batch.
        own_evaluator, found = type(self.evaluator) is Classification, []
        for logits, labels in self._predictions(split, loader):
            if not own_evaluator:
                self.evaluator.process(logits, labels)
            found.append(torch.stack([logits.argmax(1).where(logits.isfinite().all(1), -1), labels]))
        predicted, labels = torch.cat(found, dim=1).cpu()  # the evaluation's only wait for the device
        check_finite(predicted.where(predicted >= 0, torch.nan), f"logits of the {split} images")
        if own_evaluator:
            for some, theirs in zip(predicted.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                self.evaluator.process(F.one_hot(some, classes).float(), theirs)
        metrics = self.evaluator.evaluate()
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        right, images = (torch.bincount(some, minlength=classes).tolist() for some in (labels[predicted == labels], labels))
        self.last_result = {
            **result,
            "num_classes": classes,
            "num_images": len(labels),
            "class_names": key_of(*self.class_names).hex(),
            "right_by_class": " ".join(f"{r}/{n}" for r, n in zip(right, images, strict=True)),
            **{name: float(metrics[name]) for name in ("accuracy", "error_rate", "macro_f1")},
        }
        if distributed.is_main():
            write_results(self.cfg.OUTPUT_DIR, {**run, "prompts": self._prompts_digest()}, self.last_result)
        return next(iter(metrics.values()))

    def _predictions(self, split: str, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits `(B, C)` and labels `(B,)` of all batches; ranks share the work and all yield all batches."""
        batches, n, rank = list(loader.batch_sampler), distributed.world(), distributed.rank()
        bar = tqdm(range(0, len(batches), n), desc=split, leave=False, disable=None if distributed.is_main() else True)
        with loaded(loader.dataset, batches[rank::n], loader, self.report_unreadable) as shares:
            for start in bar:
                # After the last epoch all is saved; before, the next step saves.
                if self.finished_epochs == self.max_epoch and distributed.any_rank(bool(stop_signal())):
                    leave()
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
        dataset, items = self.cfg.DATASET, loader.dataset.data_source
        if split not in self._tested_images:
            files = image_files([item.impath for item in items], self.root) if distributed.is_main() else ()
            self._tested_images[split] = distributed.from_main(files and images_digest(items, files, True))
        return {
            "dataset": dataset.NAME,
            "split": split,
            "classes": dataset.SUBSAMPLE_CLASSES,
            "source_domains": list(dataset.SOURCE_DOMAINS),
            "target_domains": list(dataset.TARGET_DOMAINS),
            "images": self._tested_images[split],
        }

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
        content = hashlib.sha256()
        if not hasattr(self, "student"):
            return ""
        update_digest(content, self.student.learned.state_dict())
        return content.hexdigest()[:16]

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        """Open the TensorBoard log, on the main rank."""
        if distributed.is_main():
            super().init_writer(log_dir)


def as_model_takes(cfg: CfgNode, preprocessing: Preprocessing, name: str, of_student: bool = True) -> CfgNode:
    """Return the configuration with INPUT.SIZE, INTERPOLATION, PIXEL_MEAN and PIXEL_STD of a CLIP where they were not given.

    Args:
        of_student: else given values are of another CLIP, the student, and replaced.

    Raises:
        ConfigError: a given value is not the CLIP's; both are named, and what to do.
    """
    p, node = preprocessing, cfg.INPUT
    expected = {"SIZE": p.size, "INTERPOLATION": p.interpolation, "PIXEL_MEAN": list(p.mean), "PIXEL_STD": list(p.std)}
    same = {"SIZE": tuple(node.SIZE) == tuple(p.size), "INTERPOLATION": p.interpolation == node.INTERPOLATION}
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        same[key] = all(abs(a - b) < 1e-6 for a, b in zip(node[key], expected[key], strict=True))
    different = {key: value for key, value in expected.items() if not same[key]}
    if of_student and (given := [key for key in different if is_given(cfg, f"INPUT.{key}")]):
        both = (f"INPUT.{k} {node[k]} is not what MODEL.BACKBONE.NAME '{name}' takes: expected {expected[k]}" for k in given)
        pairs = " ".join(f'INPUT.{key} "{expected[key]}"' for key in given)
        raise ConfigError(
            f"{'; '.join(both)}. Without these lines in the configuration file INPUT follows the model; or set them on the "
            f"command line: {pairs}"
        )
    return changed(cfg, "INPUT", **{key: type(node[key])(value) for key, value in different.items()})


def changed(cfg: CfgNode, node: str, **values: Any) -> CfgNode:
    """Return a configuration with other values of a node, as frozen as before."""
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg[node].update(values)
    if frozen:
        cfg.freeze()
    return cfg


def build_loaders(trainer: TrainerX, build: Callable[[], None]) -> None:
    """Set a trainer's loaders, by the manager of a data set that reads images its own way, else by `build`, the engine's."""
    name = trainer.cfg.DATASET.NAME
    dataset = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
    manager = getattr(dataset, "data_manager", None)
    if manager is None:
        build()
    else:
        trainer.dm = dm = manager(trainer.cfg)
        for key in ("train_loader_x", "train_loader_u", "val_loader", "test_loader", "num_classes", "num_source_domains"):
            setattr(trainer, key, getattr(dm, key))
        trainer.lab2cname = dm.lab2cname
    if trainer.test_loader is None:
        print("There are no labelled test images: no accuracy will be measured, and no epoch chosen by it")
        trainer.cfg = changed(trainer.cfg, "TEST", NO_TEST=True)
    if trainer.cfg.TRAINER.KDPL.SHOTS == "random" and trainer.cfg.DATASET.NUM_SHOTS > 0:
        from kdpl.datasets.base import ClassListDataset

        if not isinstance(trainer.dm.dataset, ClassListDataset):
            raise ValueError(
                f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(trainer.dm.dataset).__name__}, which is not "
                "one of kdpl.datasets: set SHOTS to 'class'."
            )
    if trainer.train_loader_x is not None:
        apply_crop_scale(getattr(trainer.train_loader_x.dataset, "transform", None), trainer.cfg.INPUT.RRCROP_SCALE)
