"""What a training learns from, as Dassl trainers: a frozen teacher's distribution over names (KDPL), or labels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TrainerX
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from kdpl.clip.model import Clip
from kdpl.common import distributed
from kdpl.config.checks import check_config
from kdpl.config.defaults import student_options
from kdpl.config.keys import BY_TEACHER, ConfigError
from kdpl.distill.given import GivenTeacher
from kdpl.distill.labelled import Labelled
from kdpl.distill.loss import mean_logits
from kdpl.distill.objective import CrossEntropy, Distillation
from kdpl.text.prompts import warn_of_same_names
from kdpl.text.templates import DEFAULT
from kdpl.trainers.prompts import PromptTrainer, Tower, has_own_step
from kdpl.trainers.teachers import check_teacher, given_file, label_of, load_teacher

FIXED = {"center_crop", "normalize"}  # of INPUT.TRANSFORMS: with these alone an image is the same in every epoch


class DistillTrainer(PromptTrainer):
    """Unsupervised distillation from a frozen teacher (KDPL, arXiv:2407.03056); labels are never read.

    `loss` is the distillation loss, as in the published logs. A learner's own terms are reported beside it; their sum with
    `loss`, which is minimised, is `loss_total`.
    """

    distilled = True
    labelled: Labelled | None = None  # images whose labels the caller wants to be learned, too
    loaded_teachers: Sequence[Clip] | None = None  # the CLIPs of TRAINER.KDPL.TEACHER, if the caller has them already

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_config(cfg, "KDPL")
        check_teacher(cfg)
        if not cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
            return
        from kdpl.text.vocabulary import check_vocabulary

        learner = self.student_class
        check_vocabulary(cfg.TRAINER.KDPL.VOCABULARY)
        if learner.is_class_specific(student_options(cfg, learner.node)):
            raise ValueError(
                f"TRAINER.KDPL.CLASS_AGNOSTIC True: {learner.__name__} learns {learner.learned_for_each} for each class, and "
                "the classes are unknown. Set it to False, or choose a learner whose prompts work for any name, such as CoOp "
                "with CSC False."
            )
        if cfg.TEST.LABELS == "teacher":
            raise ConfigError(
                "TEST.LABELS teacher: class-agnostic, the teacher knows other names than the test's, expected own."
            )

    def teacher_name(self) -> str:
        return label_of(self.cfg)

    def template(self) -> str:
        """The teacher's sentence: the data set's, or a general one if the classes are unknown."""
        options = self.cfg.TRAINER.KDPL
        if not options.CLASS_AGNOSTIC:
            return super().template()
        return f"{options.CTX_INIT.replace('_', ' ')} {{}}." if options.CTX_INIT else DEFAULT

    # ------------------------------------------------------------------------------------------------------- loading

    def build_data_loader(self) -> None:
        super().build_data_loader()
        check_shots(self)

    @property
    def fixed_views(self) -> int:
        return self.cfg.TRAINER.KDPL.VIEWS

    @cached_property
    def training_names(self) -> list[str]:
        """The names of the teacher's distribution: the data set's, or a vocabulary's."""
        options = self.cfg.TRAINER.KDPL
        if not options.CLASS_AGNOSTIC:
            return self.class_names
        from kdpl.text.vocabulary import load_vocabulary

        exclude = self.class_names if options.EXCLUDE_CLASSNAMES else ()
        names = load_vocabulary(options.VOCABULARY, exclude, self.student.longest_name)
        print(f"Class-agnostic: {len(names):,} names, at most {options.K_MAX:,} selected for each batch")
        return names

    @cached_property
    def objective(self) -> Distillation:
        options, names = self.cfg.TRAINER.KDPL, self.training_names
        agnostic = bool(options.CLASS_AGNOSTIC)
        teacher = load_teacher(self.cfg, names, self.template(), self.device, agnostic, self.loaded_teachers)
        for member in () if agnostic else teacher.members:
            if len(member.text_features):  # else every image has its own
                warn_of_same_names(names, member.text_features, member.clip.name)
        if given_file(self.cfg):
            teacher.teacher.check(names, self.keys([item.impath for item in self.train_loader_x.dataset.data_source]))
        return Distillation(
            self.student,
            teacher,
            names,
            k_max=options.K_MAX if agnostic else None,
            loss=options.LOSS,
            temperature=options.TEMPERATURE,
            shard_classes=options.SHARD_CLASSES,
            labelled=self.labelled,
        )

    def frozen_towers(self) -> list[Tower]:
        """Return each teacher's tower, and behind them the frozen student's if it is read."""
        members = self.objective.teacher.members
        return [*((m.clip, m.image_features, m.image_prompts) for m in members), *super().frozen_towers()]

    # ------------------------------------------------------------------------------------------------ training, tests

    def parse_batch_train(self, batch: dict[str, Any]) -> Tensor:
        return self.images(batch)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor | None, Any, Tensor | None]:
        """Return a batch's images `(B, 3, H, W)`, and the teacher's and the frozen student's features `(B, d)` of its views.

        Any of them is None if the batch does not have it; of several teachers there is a list, of a table of probabilities the
        keys of the images.
        """
        images = self.parse_batch_train(batch) if "img" in batch else None
        keys = self.keys(batch["impath"]) if isinstance(self.objective.teacher, GivenTeacher) else None
        if not self.train_loader_x.views:
            return images, keys, None
        known, teachers = [features(batch, images) for features in self.view_features], len(self.objective.teacher.members)
        student = known[teachers] if len(known) > teachers else None
        return images, keys or (known[0] if teachers == 1 else known[:teachers]), student

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, teacher, frozen = self.features(batch)
        return self.objective(images, teacher_features=teacher, frozen_features=frozen, share=self.share)

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.objective.selection and distributed.is_main():
            self.objective.selection.write(Path(self.cfg.OUTPUT_DIR, "selected_classes.csv"))

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        images, labels = super().parse_batch_test(batch)
        return images, self.teacher_labels(batch, images) if self.cfg.TEST.LABELS == "teacher" else labels

    def teacher_labels(self, batch: dict[str, Any], images: Tensor) -> Tensor:
        """Return the teacher's most probable class `(B,)` of images `(B, 3, H, W)`."""
        teacher = self.objective.teacher
        seen = self.keys(batch["impath"]) if isinstance(teacher, GivenTeacher) else teacher.image_features(images)
        return mean_logits(teacher.logits(seen, self.student.logit_scale), self.objective.temperature).argmax(1)

    def _result(self, split: str, loader: DataLoader) -> dict[str, Any]:
        result = super()._result(split, loader)
        if self.cfg.TEST.LABELS == "teacher":
            print("Right is what the teacher says: the accuracy below is agreement with it")
            result["split"] += BY_TEACHER
        return result


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, including the learner's own terms."""

    @cached_property
    def objective(self) -> CrossEntropy:
        return CrossEntropy(self.student, self.class_names, self.cfg.TRAINER.KDPL.SHARD_CLASSES)

    @property
    def fixed_views(self) -> int:
        """One, if an image has the same features in every epoch: its transform is not random, and the image tower is frozen."""
        cfg = self.cfg
        if distributed.world() > 1 and cfg.DATASET.ON_BAD_IMAGE != "error":
            return 0  # another rank does not know the label of an image that takes the place of an unreadable one
        fixed = {*cfg.INPUT.TRANSFORMS} <= FIXED
        return int(fixed and not has_own_step(type(self)) and self.student_class.image_features_are_frozen)

    @cached_property
    def training_labels(self) -> Tensor:
        return torch.tensor([item.label for item in self.train_loader_x.dataset.data_source])

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), batch["label"].to(self.device, non_blocking=True)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Return a batch's images `(B, 3, H, W)` if it has some, labels `(B,)`, and with views their features `(B, d)`."""
        if not self.train_loader_x.views:
            return *self.parse_batch_train(batch), None
        images = self.images(batch) if "img" in batch else None
        if images is not None:  # an unreadable image has another one's features, and its label
            self.training_labels[batch["index"][batch["rows"]]] = batch["label"]
        labels = self.training_labels[batch["index"]].to(self.device, non_blocking=True)
        return images, labels, self.view_features[0](batch, images)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels, frozen = self.features(batch)
        return self.objective(None if frozen is not None else images, labels, frozen_features=frozen)


def check_shots(trainer: TrainerX) -> None:
    """Refuse TRAINER.KDPL.SHOTS random for a data set that does not know it.

    Raises:
        ValueError: the message names the data set and what to do.
    """
    if trainer.cfg.TRAINER.KDPL.SHOTS != "random" or trainer.cfg.DATASET.NUM_SHOTS <= 0:
        return
    from kdpl.datasets.base import ClassListDataset

    if not isinstance(trainer.dm.dataset, ClassListDataset):
        raise ValueError(
            f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(trainer.dm.dataset).__name__}, which is not "
            "one of kdpl.datasets: set SHOTS to 'class'."
        )
