"""KDPL_IVLP: IVLP's prompts learned from a teacher, without labels (arXiv:2407.03056)."""

from kdpl.students import IVLP
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import register


@register
class KDPL_IVLP(DistillTrainer):
    """IVLP (independent text and visual prompts, arXiv:2307.06948) distilled from a frozen teacher."""

    student_class = IVLP
