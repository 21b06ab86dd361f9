"""KDPL_VPT: VPT's prompts learned from a teacher, without labels (arXiv:2407.03056)."""

from kdpl.students import VPT
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import register


@register
class KDPL_VPT(DistillTrainer):
    """VPT (arXiv:2203.12119) distilled from a frozen teacher."""

    student_class = VPT
