"""What KDPL's trainers are compared with: their twins that learn from labels, and zero-shot CLIP, student and teacher.

Importing this module registers them; a fork has its own.
"""

import torch
from torch import Tensor
from yacs.config import CfgNode

from kdpl.clip.loading import describe, load_clip
from kdpl.clip.model import normalized, similarity_logits
from kdpl.config.checks import check_config, teacher_names
from kdpl.distill.loss import mean_logits
from kdpl.students import LEARNERS
from kdpl.text.prompts import ensemble_features, sentence_features, warn_of_same_names
from kdpl.text.templates import fill, imagenet_templates
from kdpl.trainers.checkpoints import zero_shot_manifest
from kdpl.trainers.evaluation import EvaluatedTrainer, as_model_takes
from kdpl.trainers.learners import *  # noqa: F403  kdpl.trainers.baselines.CoOp, ...
from kdpl.trainers.learners import register
from kdpl.trainers.teachers import check_teacher, clip_teacher, label_of, load_towers, teacher_over

for _learner in LEARNERS:
    register(globals()[_learner.__name__])


class ZeroshotTrainer(EvaluatedTrainer):
    """Evaluates a frozen CLIP, with nothing to train, save or load."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_config(cfg)

    def build_model(self) -> None:
        name = self.cfg.MODEL.BACKBONE.NAME
        precision = self.effective_precision("TRAINER.COOP.PREC", self.cfg.TRAINER.COOP.PREC)
        print(f"Loading CLIP (backbone: {name})")
        self.clip = load_clip(name, precision, self.device)
        self.use_class_names()

    def use_class_names(self) -> None:
        self.text_features = self.encode_names()  # (C, d)
        warn_of_same_names(self.class_names, self.text_features, self.clip.name)
        self.manifest = zero_shot_manifest(self)

    def encode_names(self) -> Tensor:
        """Return the normalised text features `(C, d)` of the class names."""
        return sentence_features(self.clip, fill(self.template(), self.class_names))

    def logits(self, images: Tensor) -> Tensor:
        features = normalized(self.clip.image_features(images))
        return similarity_logits(self.clip.logit_scale, features, self.text_features)

    def train(self) -> None:
        print("A zero-shot CLIP has nothing to train: it is only evaluated")
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Do nothing: a zero-shot CLIP has no learned prompts."""


@register
class ZeroshotCLIP(ZeroshotTrainer):
    """The student with the data set's hand-written sentence, or with DATASET.TEMPLATE."""


@register
class ZeroshotCLIP2(ZeroshotTrainer):
    """The student with the mean over the hand-written sentence and the 80 ImageNet templates of OpenAI."""

    def encode_names(self) -> Tensor:
        templates = list(dict.fromkeys([*imagenet_templates(), self.template()]))
        return ensemble_features(self.clip, self.class_names, templates)


@register
class ZeroshotTeacher(ZeroshotTrainer):
    """The teacher's own accuracy, on images prepared its way, whatever INPUT says of the student's.

    Of several teachers the mean distribution is evaluated, at the scale and temperature of the training. Images are prepared as
    the one with the largest input takes them; the others resize and normalise these, as they do in a training.
    """

    def teacher_name(self) -> str:
        return label_of(self.cfg)

    def follow_model(self, cfg: CfgNode) -> CfgNode:
        clip_teacher(cfg, type(self).__name__)
        check_teacher(cfg)
        name = max(teacher_names(cfg.TRAINER.KDPL.TEACHER), key=lambda name: describe(name).resolution)
        self.preprocessing = describe(name).preprocessing
        return as_model_takes(cfg, self.preprocessing, name, of_student=False)

    def build_model(self) -> None:
        options = self.cfg.TRAINER.KDPL
        precision = self.effective_precision("TRAINER.KDPL.PREC", options.PREC)
        print(f"Loading CLIP (backbone: {self.teacher_name()})")
        self.towers = load_towers(self.cfg, precision, self.device)
        self.scale, self.student_scale = "own", torch.ones(())  # the order of one teacher's names depends on no scale
        if len(self.towers) > 1:
            self.scale = options.TEACHER_LOGIT_SCALE
            if self.scale == "student":
                self.student_scale = load_clip(self.cfg.MODEL.BACKBONE.NAME).logit_scale.to(self.device)
        self.use_class_names()

    def use_class_names(self) -> None:
        self.teacher = teacher_over(self.cfg, self.towers, self.class_names, self.template(), self.scale)
        self.manifest = zero_shot_manifest(self, self.teacher)

    def logits(self, images: Tensor) -> Tensor:
        logits = self.teacher.logits(self.teacher.image_features(images), self.student_scale)
        return mean_logits(logits, self.cfg.TRAINER.KDPL.TEMPERATURE)
