"""KDPL_CoCoOp: CoCoOp's prompts learned from a teacher, without labels (arXiv:2407.03056)."""

from kdpl.students import CoCoOp
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import register


@register
class KDPL_CoCoOp(DistillTrainer):
    """CoCoOp (arXiv:2203.05557) distilled from a frozen teacher."""

    student_class = CoCoOp
