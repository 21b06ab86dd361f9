"""Any Dassl trainer without labels: the cross-entropy of its own training step becomes KDPL's loss (docs/forks.md)."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, overload

import dassl.optim
import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

from kdpl.config.checks import check_extended
from kdpl.config.choices import ConfigError
from kdpl.config.registries import refuse_wrong_order
from kdpl.distill.interception import replace_cross_entropy
from kdpl.distill.loss import mean_logits
from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.distill.views import ViewFeatures, contents_of, image_files, view_features
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.evaluation import build_loaders, report_unreadable
from kdpl.trainers.inputs import load_teacher
from kdpl.trainers.records import teacher_texts, teacher_weights
from kdpl.trainers.registry import PREFIX, is_ours
from kdpl.trainers.unlabelled import UnlabelledBatch, UnlabelledLoader, check_shots, hide_labels
from kdpl.trainers.whole_state import load_whole_state, save_whole_state
from kdpl.trainers.wrappable import check_built, check_distilled, student_scale
from kdpl.training.schedule import build_schedule
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

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        self._kdpl_seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TRAINER.NAME = self.wrapped
        cfg.freeze()
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        check_distilled(cfg, self.wrapped)
        super().check_cfg(cfg)

    def build_data_loader(self) -> None:
        build_loaders(self, super().build_data_loader)
        check_shots(self)
        hide_labels(self)
        options, loader = self.cfg.TRAINER.KDPL, self.train_loader_x
        images = []
        if options.VIEWS:
            root = self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
            images = image_files([item.impath for item in loader.dataset.data_source], root)
        names = [image.name for image in images]
        self._kdpl_images = images
        self.train_loader_x = UnlabelledLoader(self, loader, self._kdpl_seed, options.VIEWS, options.VIEW_SEED, names)
        self.train_loader_x.contents = contents_of(loader.dataset.data_source, images) if images else {}

    def build_model(self) -> None:
        with _working_schedulers():
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
        allowed = [word for word in options.ALLOW.replace(",", " ").split() if word]
        labels, replaced = replace_cross_entropy(logits, options.LOSS, options.TEMPERATURE, allowed)
        shown = UnlabelledBatch(batch, labels)
        with replaced:
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
            print("\n".join(f"KDPL in {self.wrapped}: {line}" for line in lines))
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

    @property
    def _kdpl_run(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that wrote a checkpoint."""
        teacher, run = self._kdpl_teacher, {"trainer": self.wrapped, "seed": self._kdpl_seed}
        texts = {"teacher's sentences": None, "teacher's prompts": None, **teacher_texts(self.cfg, teacher)}
        return {**run, "batches in an epoch": len(self.train_loader_x), "teacher": teacher_weights(teacher), **texts}

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        super().save_model(epoch, directory, *args, **kwargs)
        if not kwargs.get("model_name") and len(args) < 3:  # of an epoch, not the best on the validation images
            save_whole_state(self, directory, epoch + 1, self._kdpl_run)

    def resume_model_if_exist(self, directory: str) -> int:
        epoch = super().resume_model_if_exist(directory)
        if epoch:
            load_whole_state(self, directory, epoch, self._kdpl_run)
        return epoch

    def use_dataset(self, cfg: CfgNode) -> None:
        """Refuse other data sets: the trainer's model is bound to its class names."""
        raise ConfigError(
            f"--eval-datasets: the model of {self.wrapped} is bound to the class names it was built with. Evaluate with "
            "--eval-only --model-dir and the data set's --dataset-config-file."
        )


@overload
def distilled(trainer_class: type, *, name: str | None = None, teacher_view: int = 0) -> type: ...
@overload
def distilled(trainer_class: None = None, *, name: str | None = None, teacher_view: int = 0) -> Callable[[type], type]: ...
def distilled(trainer_class: type | None = None, *, name: str | None = None, teacher_view: int = 0) -> Any:
    """Register and return a trainer that learns without labels, a subclass of `trainer_class` with a teacher in place of them.

    A function, `distilled(TRAINER_REGISTRY.get("TCP"))`, or a decorator, the uppermost one, with or without arguments.

    Args:
        trainer_class: a Dassl `TrainerX`.
        name: by default KDPL_<its name>; if KDPL has a trainer of that name, which is faster, that one is returned.
        teacher_view: if a batch has several views of an image, which of them the teacher sees.

    Raises:
        TypeError: it is not a `TrainerX`, or has no step of its own.
        ValueError: a fork has a trainer of that name.
    """
    if trainer_class is None:
        return lambda decorated: distilled(decorated, name=name, teacher_view=teacher_view)
    if not can_be_distilled(trainer_class):
        raise TypeError(
            f"{trainer_class!r} cannot be distilled: expected a class derived from dassl.engine.TrainerX with a "
            "forward_backward(batch) of its own, and none of KDPL's."
        )
    wrapped = trainer_class.__name__
    name = name or f"{PREFIX}{wrapped}"
    present = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.present_names() else DistilledTrainer
    if is_ours(present) and present is not DistilledTrainer:
        return present
    if not issubclass(present, DistilledTrainer):
        raise ValueError(f"{name} is a trainer of {present.__module__} already: give the wrapped one another name=.")
    members = {"wrapped": wrapped, "teacher_view": teacher_view, "__module__": trainer_class.__module__}
    members["__doc__"] = f"{wrapped} without labels (KDPL, arXiv:2407.03056)."
    made = type(name, (DistilledTrainer, trainer_class), members)
    TRAINER_REGISTRY.register(made, force=True)
    return made


def can_be_distilled(trainer_class: Any) -> bool:
    """Whether a class is a Dassl trainer with a training step of its own, and none of KDPL's."""
    return (
        isinstance(trainer_class, type)
        and issubclass(trainer_class, TrainerX)
        and not is_ours(trainer_class)
        and not issubclass(trainer_class, DistilledTrainer)
        and not hasattr(trainer_class, "student_class")
        and trainer_class.forward_backward is not TrainerX.forward_backward
    )


def offer_distilled() -> None:
    """Let `KDPL_<Name>` be in the registry for every trainer `<Name>` that can be distilled, now or later registered.

    The class is made when it is asked for. A name that KDPL or a fork has registered itself stays that one.
    """
    refuse_wrong_order(TRAINER_REGISTRY, "kdpl.trainers", "Import kdpl.trainers.baselines after the fork's own trainers")
    kind = type(TRAINER_REGISTRY)
    if getattr(kind, "offers_distilled", False):
        return

    class OffersDistilled(kind):
        offers_distilled = True

        def registered_names(self) -> list[str]:
            present = self.present_names()
            made = [f"{PREFIX}{name}" for name in present if can_be_distilled(super(OffersDistilled, self).get(name))]
            return [*present, *(name for name in made if name not in present)]

        def get(self, name: str) -> Any:
            wrapped = name.removeprefix(PREFIX)
            if name not in self.present_names() and name in self.registered_names():
                return distilled(super().get(wrapped))
            return super().get(name)

    OffersDistilled.__name__ = OffersDistilled.__qualname__ = kind.__name__
    TRAINER_REGISTRY.__class__ = OffersDistilled


@contextmanager
def _working_schedulers() -> Iterator[None]:
    """Let a trainer's `build_lr_scheduler` be KDPL's, wherever the name stands: Dassl's warm-up stops on today's PyTorch."""
    theirs = dassl.optim.build_lr_scheduler
    places = [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if value is theirs
    ]
    for module, name in places:
        setattr(module, name, build_schedule)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, theirs)
