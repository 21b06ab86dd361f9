"""KDPL_CoOp: CoOp's prompts learned from a teacher, without labels (arXiv:2407.03056)."""

from kdpl.students import CoOp
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import register


@register
class KDPL_CoOp(DistillTrainer):
    """CoOp (arXiv:2109.01134) distilled from a frozen teacher."""

    student_class = CoOp
