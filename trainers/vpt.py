"""VPT with labels (arXiv:2203.12119), the supervised baseline of KDPL_VPT."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class VPT(SupervisedTrainer):
    """VPT trained with cross-entropy on labels."""

    student_class = students.VPT
