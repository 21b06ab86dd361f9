"""Dassl trainers of KDPL; importing this package registers them. The supervised baselines are in `kdpl.trainers.baselines`."""

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
from kdpl.trainers.prompts import SupervisedTrainer
from kdpl.trainers.registry import trainer_of

__all__ = [
    "KDPL_IVLP",
    "KDPL_VPT",
    "KDPL_CoCoOp",
    "KDPL_CoOp",
    "KDPL_KgCoOp",
    "KDPL_MaPLe",
    "KDPL_PromptSRC",
    "prompt_learner",
]


def prompt_learner(student: type[Student]) -> type[Student]:
    """Register the trainers `KDPL_<Name>` and `<Name>` of a student class, as a decorator (docs/new_student.md)."""
    trainer_of(student, DistillTrainer, "KDPL_", student.__module__)
    trainer_of(student, SupervisedTrainer, "", student.__module__)
    return student
