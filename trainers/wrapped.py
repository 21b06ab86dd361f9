"""Any Dassl trainer without labels: the cross-entropy of its own training step becomes KDPL's loss (docs/forks.md)."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

from kdpl.common.rows import key_of
from kdpl.config.checks import check_extended
from kdpl.config.keys import ConfigError
from kdpl.distill.interception import replace_cross_entropy
from kdpl.distill.loss import mean_logits
from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.distill.views import ViewFeatures, contents_of, image_files, view_features
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.data import build_loaders, report_unreadable
from kdpl.trainers.manifests import teacher_design, teacher_texts, teacher_weights
from kdpl.trainers.teachers import load_teacher
from kdpl.trainers.truth import readable, without_truth
from kdpl.trainers.unlabelled import UnlabelledBatch, UnlabelledLoader, check_closed, check_shots
from kdpl.trainers.whole_state import load_whole_state, save_whole_state
from kdpl.trainers.wrappable import (
    VALIDATION,
    check_built,
    check_distilled,
    check_images,
    check_unchanged,
    learned_state,
    student_scale,
    words,
    working_schedulers,
)
from kdpl.training.seeding import SEEDS, epoch_seed


class DistilledTrainer:
    """What `distilled` puts before a trainer class: the same trainer, whose step learns from a frozen teacher.

    Attributes:
        wrapped: the name of the trainer in the registry, which it sees as its TRAINER.NAME.
        teacher_view: which of several views of an image the teacher sees.
    """

    wrapped = ""
    teacher_view = 0
    _kdpl_steps = 0  # of the running epoch
    _kdpl_training = False
    _kdpl_tested: dict[str, Tensor] | None = None  # what was learned when a test first read labels

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        self._kdpl_seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TRAINER.NAME = self.wrapped
        cfg.freeze()
        with blind(cfg):
            super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        check_distilled(cfg, self.wrapped)
        super().check_cfg(cfg)

    def build_data_loader(self) -> None:
        build = super().build_data_loader

        def build_own() -> None:
            build()
            check_images(self)

        build_loaders(self, build_own)
        check_shots(self)
        check_closed(self)
        options, loader = self.cfg.TRAINER.KDPL, self.train_loader_x
        images = []
        if options.VIEWS:
            root = self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
            images = image_files([os.fspath(item.impath) for item in loader.dataset.data_source], root)
        names = [image.name for image in images]
        self._kdpl_images = images
        self.train_loader_x = UnlabelledLoader(self, loader, self._kdpl_seed, options.VIEWS, options.VIEW_SEED, names)
        self.train_loader_x.contents = contents_of(loader.dataset.data_source, images) if images else {}

    def build_model(self) -> None:
        with working_schedulers(type(self)):
            super().build_model()
        check_built(self)

    # ------------------------------------------------------------------------------------------------------ training

    @cached_property
    def _kdpl_teacher(self) -> Teacher | Ensemble:
        names = [self.lab2cname[label] for label in sorted(self.lab2cname)]
        check_names(names)
        template = template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)
        return load_teacher(self.cfg, names, template, self.device)

    @cached_property
    def _kdpl_views(self) -> list[ViewFeatures]:
        """Each teacher's features of the views."""
        cfg = self.cfg
        pixels: list = [list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)]
        pixels += [f"view {self.teacher_view}"] if self.teacher_view or cfg.DATALOADER.K_TRANSFORMS > 1 else []
        folder = cfg.TRAINER.KDPL.CACHE_DIR
        loader, images = self.train_loader_x, self._kdpl_images
        return [
            view_features(member.clip, member.image_features, loader, images, folder, pixels, member.image_prompts)
            for member in self._kdpl_teacher.members
        ]

    def load_for_training(self) -> None:
        """Load the teacher, so that missing weights are reported before the run starts."""
        _ = self._kdpl_scale

    def forward_backward(self, batch: dict[str, Any], *others: Any) -> Any:
        """Take the trainer's own step on a batch whose labels are the teacher's argmax.

        Raises:
            UnsupportedStepError: the step does something with labels that has no meaning without them.
        """
        if others:
            raise UnsupportedStepError(
                f"{self.wrapped} takes {1 + len(others)} batches a step, KDPL replaces the labels of one."
            )
        report_unreadable(self, batch)
        options, logits = self.cfg.TRAINER.KDPL, self._teacher_logits(batch)
        labels, replaced = replace_cross_entropy(logits, options.LOSS, options.TEMPERATURE, words(options.ALLOW))
        shown = UnlabelledBatch(batch, labels)
        with blind(self.cfg), replaced:
            summary = super().forward_backward(shown)
        replaced.check(self.wrapped)
        if not self._kdpl_steps and not self.__dict__.get("_kdpl_reported"):
            self._kdpl_reported = True
            several = isinstance(batch["img"], list | tuple)
            lines = [
                *replaced.summary(),
                f"taken out of the batch: {', '.join(shown.taken_out) or 'nothing'}; 'acc' is the agreement with the teacher",
                *([f"the teacher sees view {self.teacher_view} of {len(batch['img'])} of an image"] if several else []),
            ]
            print(*(f"KDPL in {self.wrapped}: {line}" for line in lines), sep="\n")
        self._kdpl_steps += 1
        return summary

    def _teacher_logits(self, batch: dict[str, Any]) -> Tensor:
        """Return logits (B, C) of a batch's images whose softmax is the teacher's distribution."""
        images = batch["img"]
        if isinstance(images, list | tuple):
            if self.teacher_view >= len(images):
                raise UnsupportedStepError(f"Images have {len(images)} views, the teacher cannot see view {self.teacher_view}.")
            images = images[self.teacher_view]
        images = images.to(self.device, non_blocking=True)  # (B, 3, H, W)
        teacher = self._kdpl_teacher
        if self.train_loader_x.views:
            known = [features(batch, images) for features in self._kdpl_views]
            features = known if len(known) > 1 else known[0]
        else:
            features = teacher.image_features(images)
        return mean_logits(teacher.logits(features, self._kdpl_scale), self.cfg.TRAINER.KDPL.TEMPERATURE)

    @property
    def _kdpl_scale(self) -> Tensor:
        """The scale of the student's logits, where the teacher uses it."""
        scales = [member.logit_scale for member in self._kdpl_teacher.members]
        return student_scale(self) if "student" in scales else torch.ones(())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and refuse a trainer that goes on learning when it has read labels in a test."""
        self._kdpl_training, self._kdpl_tested = True, None
        with blind(self.cfg):
            result = super().train(*args, **kwargs)
        self._kdpl_training = False
        check_unchanged(self, self._kdpl_tested)
        return result

    def after_train(self) -> None:
        self._kdpl_training = False
        super().after_train()

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Test with the labels of the images that are tested, when the training is over.

        Raises:
            UnsupportedStepError: the trainer trains, and labels of a test would choose among what it has learned.
        """
        if self._kdpl_training and VALIDATION not in words(self.cfg.TRAINER.KDPL.ALLOW):
            raise UnsupportedStepError(
                f"{self.wrapped} tests while it trains, and what it learns may be chosen by the labels of the test. Set "
                f"TEST.FINAL_MODEL last_step, or TRAINER.KDPL.ALLOW {VALIDATION}, which allows such choices."
            )
        if not self._kdpl_training and self._kdpl_tested is None:
            self._kdpl_tested = learned_state(self)
        split = (args[0] if args else kwargs.get("split")) or self.cfg.TEST.SPLIT
        with readable("val" if split == "val" and self.val_loader is not None else "test"):
            return super().test(*args, **kwargs)

    def before_train(self) -> None:
        super().before_train()
        self.load_for_training()

    def before_epoch(self) -> None:
        set_random_seed(epoch_seed(self._kdpl_seed, self.epoch))  # a resumed run draws what an unbroken one does
        self._kdpl_steps = 0
        super().before_epoch()

    def after_epoch(self) -> None:
        if not self._kdpl_steps:
            raise UnsupportedStepError(f"{self.wrapped} trained an epoch without calling forward_backward(batch).")
        if self.train_loader_x.views:
            for features in self._kdpl_views:
                features.table.sync()
        super().after_epoch()

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        super().save_model(epoch, directory, *args, **kwargs)
        if not kwargs.get("model_name") and len(args) < 3:  # of an epoch, not the best on the validation images
            save_whole_state(self, directory, epoch + 1, _facts_of_run(self))

    def resume_model_if_exist(self, directory: str) -> int:
        epoch = super().resume_model_if_exist(directory)
        if epoch:
            load_whole_state(self, directory, epoch, _facts_of_run(self))
        return epoch

    def use_dataset(self, cfg: CfgNode) -> None:
        """Refuse other data sets: the trainer's model is bound to its class names."""
        raise ConfigError(
            f"--eval-datasets: the model of {self.wrapped} is bound to the class names it was built with. Evaluate with "
            "--eval-only --model-dir and the data set's --dataset-config-file."
        )


@contextmanager
def blind(cfg: CfgNode) -> Iterator[None]:
    """Run code of a trainer that no truth may reach, unless it is allowed to read that of validation images."""
    allowed = ("val",) if VALIDATION in words(cfg.TRAINER.KDPL.ALLOW) else ()
    with without_truth(), readable(*allowed):
        yield


def _facts_of_run(trainer: DistilledTrainer) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that wrote a checkpoint."""
    teacher, run = trainer._kdpl_teacher, {"trainer": trainer.wrapped, "seed": trainer._kdpl_seed}
    texts = {"teacher's sentences": None, "teacher's prompts": None, **teacher_texts(trainer.cfg, teacher)}
    clips = {"teacher": teacher_weights(teacher), "teacher's design": key_of(teacher_design(teacher)).hex()}
    return {**run, "batches in an epoch": len(trainer.train_loader_x), **clips, **texts}
