"""PromptSRC with labels (arXiv:2307.06948), the supervised baseline of KDPL_PromptSRC."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class PromptSRC(SupervisedTrainer):
    """PromptSRC trained with cross-entropy on labels."""

    student_class = students.PromptSRC
