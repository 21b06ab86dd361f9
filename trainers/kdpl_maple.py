"""KDPL_MaPLe: MaPLe's prompts learned from a teacher, without labels (arXiv:2407.03056)."""

from kdpl.students import MaPLe
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import register


@register
class KDPL_MaPLe(DistillTrainer):
    """MaPLe (arXiv:2210.03117) distilled from a frozen teacher."""

    student_class = MaPLe
