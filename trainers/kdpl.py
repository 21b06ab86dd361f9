"""The KDPL trainers: each prompt learner, distilled from a frozen teacher without labels (arXiv:2407.03056)."""

from kdpl.students import LEARNERS
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import trainer_of

TRAINERS = {f"KDPL_{student.__name__}": trainer_of(student, DistillTrainer, "KDPL_", __name__) for student in LEARNERS}
globals().update(TRAINERS)
