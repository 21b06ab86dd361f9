"""The KDPL trainers: each prompt learner, distilled from a frozen teacher without labels (arXiv:2407.03056)."""

from kdpl import students
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import trainer_of

KDPL_CoOp = trainer_of(students.CoOp, DistillTrainer, "KDPL_", __name__)
KDPL_CoCoOp = trainer_of(students.CoCoOp, DistillTrainer, "KDPL_", __name__)
KDPL_VPT = trainer_of(students.VPT, DistillTrainer, "KDPL_", __name__)
KDPL_MaPLe = trainer_of(students.MaPLe, DistillTrainer, "KDPL_", __name__)
KDPL_PromptSRC = trainer_of(students.PromptSRC, DistillTrainer, "KDPL_", __name__)
KDPL_IVLP = trainer_of(students.IVLP, DistillTrainer, "KDPL_", __name__)
KDPL_KgCoOp = trainer_of(students.KgCoOp, DistillTrainer, "KDPL_", __name__)
