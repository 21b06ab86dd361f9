"""The supervised baselines and the zero-shot trainers; importing this module registers them. A fork has its own."""

from kdpl import students
from kdpl.trainers.prompts import SupervisedTrainer
from kdpl.trainers.registry import trainer_of
from kdpl.trainers.zeroshot import ZeroshotCLIP, ZeroshotCLIP2, ZeroshotTeacher

CoOp = trainer_of(students.CoOp, SupervisedTrainer, "", __name__)
CoCoOp = trainer_of(students.CoCoOp, SupervisedTrainer, "", __name__)
VPT = trainer_of(students.VPT, SupervisedTrainer, "", __name__)
MaPLe = trainer_of(students.MaPLe, SupervisedTrainer, "", __name__)
PromptSRC = trainer_of(students.PromptSRC, SupervisedTrainer, "", __name__)
IVLP = trainer_of(students.IVLP, SupervisedTrainer, "", __name__)
KgCoOp = trainer_of(students.KgCoOp, SupervisedTrainer, "", __name__)

__all__ = [
    "IVLP",
    "VPT",
    "CoCoOp",
    "CoOp",
    "KgCoOp",
    "MaPLe",
    "PromptSRC",
    "ZeroshotCLIP",
    "ZeroshotCLIP2",
    "ZeroshotTeacher",
]
