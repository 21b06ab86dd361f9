"""KDPL as a Dassl trainer: a frozen teacher's distribution over names takes the place of labels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dassl.engine import TrainerX
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from kdpl.clip.model import Clip
from kdpl.common import distributed
from kdpl.common.files import name_below
from kdpl.config.checks import check_config
from kdpl.config.defaults import student_options
from kdpl.config.keys import BY_TEACHER, ConfigError
from kdpl.distill.given import GivenTeacher
from kdpl.distill.labelled import Labelled
from kdpl.distill.loss import mean_logits
from kdpl.distill.objective import Distillation
from kdpl.distill.views import ViewFeatures, view_features
from kdpl.students import Student
from kdpl.students.base import ALWAYS
from kdpl.text.prompts import warn_of_same_names
from kdpl.text.templates import DEFAULT
from kdpl.trainers.data import dataset_root
from kdpl.trainers.prompts import PromptTrainer, has_own_step
from kdpl.trainers.teachers import check_teacher, given_file, label_of, load_teacher
from kdpl.training.batches import EpochLoader


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
        if cfg.TEST.LABELS == "teacher" and cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
            raise ConfigError(
                "TEST.LABELS teacher: class-agnostic, the teacher knows other names than the test's, expected own."
            )
        if cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
            from kdpl.text.vocabulary import check_vocabulary

            check_vocabulary(cfg.TRAINER.KDPL.VOCABULARY)
            _refuse_class_specific(self.student_class, student_options(cfg, self.student_class.node))

    def teacher_name(self) -> str:
        return label_of(self.cfg)

    def template(self) -> str:
        """The teacher's sentence: the data set's, or a general one if the classes are unknown."""
        options = self.cfg.TRAINER.KDPL
        if not options.CLASS_AGNOSTIC:
            return super().template()
        return f"{options.CTX_INIT.replace('_', ' ')} {{}}." if options.CTX_INIT else DEFAULT

    # ------------------------------------------------------------------------------------------------------- loading

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

    def build_data_loader(self) -> None:
        super().build_data_loader()
        options = self.cfg.TRAINER.KDPL
        check_shots(self)
        if options.VIEWS and self.train_loader_x is not None:
            loader = self.train_loader_x.loader
            names = [name_below(item.impath, dataset_root(self)) for item in loader.dataset.data_source]
            self.train_loader_x = EpochLoader(loader, self.seed, options.VIEWS, options.VIEW_SEED, names)

    @cached_property
    def view_features(self) -> list[ViewFeatures]:
        """With fixed views, each teacher's features of them, and the frozen student's if it reads them."""
        towers = [(member.clip, member.image_features, member.image_prompts) for member in self.objective.teacher.members]
        if self.student.reads_frozen_image_features:
            towers.append((self.clip, self.student.frozen_image_features, ""))
        pixels = [list(self.cfg.INPUT.PIXEL_MEAN), list(self.cfg.INPUT.PIXEL_STD)]
        folder = self.cfg.TRAINER.KDPL.CACHE_DIR
        loader, images = self.train_loader_x, self.training_images
        return [view_features(*tower, loader, images, folder, pixels, prompts) for *tower, prompts in towers]

    def load_for_training(self) -> None:
        super().load_for_training()
        if self.train_loader_x is not None and self.train_loader_x.views:
            features = self.view_features
            # A prompted tower or a subclass's step needs the pixels of all images, whatever features are known.
            if self.student.image_features_are_frozen and not has_own_step(type(self)):
                self.train_loader_x.wanted = lambda index, view: sum(f.missing(index, view) for f in features).bool()

    # ------------------------------------------------------------------------------------------------------ training

    def parse_batch_train(self, batch: dict[str, Any]) -> Tensor:
        return self.images(batch)

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

    def keys(self, paths: Sequence[str]) -> list[str]:
        """Return the names by which a table of probabilities knows images: their paths below the data set's folder."""
        return [name_below(path, dataset_root(self)) for path in paths]

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

    def run_epoch(self) -> None:
        super().run_epoch()
        if self.train_loader_x.views:
            for batch in self.train_loader_x.rest():  # so that all features are known after one pass over the views
                self.features(batch)
            for features in self.view_features:
                features.table.save()

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.objective.selection and distributed.is_main():
            self.objective.selection.write(Path(self.cfg.OUTPUT_DIR, "selected_classes.csv"))


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


def _refuse_class_specific(learner: type[Student], options: CfgNode) -> None:
    """Refuse class-agnostic training of a learner that has parameters of its own for each class."""
    if not learner.is_class_specific(options):
        return
    option, what = learner.learns_class_specific, f"{learner.learned_for_each} for each class"
    if option == ALWAYS:
        raise ValueError(
            f"TRAINER.KDPL.CLASS_AGNOSTIC True: {learner.__name__} learns {what}, and the classes are unknown. Set it "
            "to False, or choose a learner whose prompts work for any name, such as CoOp."
        )
    raise ValueError(
        f"TRAINER.{learner.node}.{option} True and TRAINER.KDPL.CLASS_AGNOSTIC True contradict each other: {what} cannot be "
        "learned if the classes are unknown. Set one of them to False."
    )
