"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

from kdpl.config.defaults import explain_missing_nodes
from kdpl.students import Student
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.kdpl import (
    KDPL_IVLP,
    KDPL_VPT,
    KDPL_CoCoOp,
    KDPL_CoOp,
    KDPL_KgCoOp,
    KDPL_MaPLe,
    KDPL_PromptSRC,
)
from kdpl.trainers.offers import offer_distilled
from kdpl.trainers.prompts import SupervisedTrainer
from kdpl.trainers.registry import trainer_of
from kdpl.trainers.wrapped import distilled

__all__ = [
    "KDPL_IVLP",
    "KDPL_VPT",
    "KDPL_CoCoOp",
    "KDPL_CoOp",
    "KDPL_KgCoOp",
    "KDPL_MaPLe",
    "KDPL_PromptSRC",
    "distilled",
    "prompt_learner",
]

offer_distilled()
explain_missing_nodes()


def prompt_learner(student: type[Student]) -> type[Student]:
    """Register `KDPL_<Name>` and `<Name>` for a student class of your own, as a decorator (docs/new_student.md)."""
    trainer_of(student, DistillTrainer, "KDPL_", student.__module__)
    trainer_of(student, SupervisedTrainer, "", student.__module__)
    return student
