"""IVLP with labels (independent text and visual prompts, arXiv:2307.06948), the supervised baseline of KDPL_IVLP."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class IVLP(SupervisedTrainer):
    """IVLP trained with cross-entropy on labels."""

    student_class = students.IVLP
