"""What a training learns from, as Dassl trainers: a frozen teacher's distribution over names (KDPL), or labels."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from kdpl.clip.model import Clip
from kdpl.common import distributed
from kdpl.common.tensor_files import FeatureFile
from kdpl.config.checks import check_config
from kdpl.config.defaults import student_options
from kdpl.config.keys import BY_TEACHER, ConfigError
from kdpl.distill.given import GivenTeacher
from kdpl.distill.loss import mean_logits
from kdpl.distill.objective import CrossEntropy, Distillation, Labelled
from kdpl.distill.views import ViewFeatures
from kdpl.text.templates import DEFAULT
from kdpl.trainers.prompts import PromptTrainer, is_ours
from kdpl.trainers.teachers import check_teacher, given_file, label_of, load_teacher

STEP = ("forward_backward", "compute_loss", "features", "parse_batch_train")  # what sees a batch in a training step


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
        if cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
            from kdpl.text.vocabulary import check_vocabulary

            check_vocabulary(cfg.TRAINER.KDPL.VOCABULARY)
            learner = self.student_class
            if learner.is_class_specific(student_options(cfg, learner.node)):
                raise ConfigError(
                    f"TRAINER.KDPL.CLASS_AGNOSTIC True: {learner.__name__} learns something for each class, and the classes "
                    "are unknown. Set it to False, or choose a learner of prompts for any name, such as CoOp with CSC False."
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

    @cached_property
    def view_features(self) -> list[ViewFeatures]:
        """The features of fixed views by each teacher, and behind them by the frozen student if it is read."""
        members, student = self.objective.teacher.members, self.student
        found = [self._features_of(m.clip, m.image_features, m.image_prompts) for m in members]
        return [*found, *([self._features_of(self.clip, student.frozen_image_features)] * student.reads_frozen_image_features)]

    def _features_of(self, clip: Clip, compute: Callable[[Tensor], Tensor], prompts: str = "") -> ViewFeatures:
        """Return a frozen tower's features of the views, those in a cache on disk too; `prompts` is a digest of its own."""
        autocast, options, loader = clip.frozen_autocast_dtype, self.cfg.TRAINER.KDPL, self.train_loader_x
        halved = clip.dtype != torch.float32 or autocast is not None
        dtype = torch.float16 if halved else torch.float32  # exact for fp32, half the size for half precision
        store = None
        if options.CACHE_DIR:
            pixels = [list(self.cfg.INPUT.PIXEL_MEAN), list(self.cfg.INPUT.PIXEL_STD)]
            meaning = {
                "weights": clip.digest("image"),
                "precision": [str(clip.dtype), str(autocast), str(dtype)],
                "device": clip.device.type,
                "transform": [repr(loader.dataset.transform), pixels],
                "views drawn by": loader.seed_of_views,
                "versions": [PIL.__version__, torchvision.__version__],
                **({"prompts": prompts} if prompts else {}),
            }
            store = FeatureFile(Path(options.CACHE_DIR, "views"), meaning, clip.embed_dim, dtype)
        chunk = -(-loader.loader.batch_size // self.ranks)
        found = ViewFeatures(self.training_images, loader.views, clip.embed_dim, dtype, store, compute, chunk, clip.device)
        if store is not None:
            print(f"Features of {int(found.known.sum()):,} of {found.known.numel():,} views found for {clip.name}")
        return found

    def load_for_training(self) -> None:
        super().load_for_training()
        # A prompted tower or a subclass's step needs the pixels of all images, whatever features are known.
        if self.train_loader_x is not None and self.train_loader_x.views:
            known = self.view_features
            if self.student.image_features_are_frozen and not has_own_step(type(self)):
                self.train_loader_x.wanted = lambda index, view: sum(f.missing(index, view) for f in known).bool()

    # ------------------------------------------------------------------------------------------------ training, tests

    def parse_batch_train(self, batch: dict[str, Any]) -> Tensor:
        """Return a batch's images `(B, 3, H, W)`, normalised; if possible they are moved as bytes."""
        return self.normalize(batch["img"].to(self.device, non_blocking=True))

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

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return a batch's images `(B, 3, H, W)`, normalised, and labels `(B,)`."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return self.normalize(images), labels

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(*self.parse_batch_train(batch))


def has_own_step(trainer: type[PromptTrainer]) -> bool:
    """Whether a trainer class from outside this package sees the batches of a training: it defines a part of the step."""
    return any(not is_ours(part) for name in STEP if (part := getattr(trainer, name, None)) is not None)
