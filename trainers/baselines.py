"""The supervised baselines and the zero-shot trainers; importing this module registers them. A fork has its own."""

from kdpl.students import LEARNERS
from kdpl.trainers.prompts import SupervisedTrainer
from kdpl.trainers.registry import trainer_of
from kdpl.trainers.zeroshot import ZeroshotCLIP, ZeroshotCLIP2, ZeroshotTeacher

TRAINERS = {student.__name__: trainer_of(student, SupervisedTrainer, "", __name__) for student in LEARNERS}
globals().update(TRAINERS)

__all__ = ["TRAINERS", "ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotTeacher"]
