"""MaPLe with labels (arXiv:2210.03117), the supervised baseline of KDPL_MaPLe."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class MaPLe(SupervisedTrainer):
    """MaPLe trained with cross-entropy on labels."""

    student_class = students.MaPLe
