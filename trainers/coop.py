"""CoOp with labels (arXiv:2109.01134), the supervised baseline of KDPL_CoOp."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class CoOp(SupervisedTrainer):
    """CoOp trained with cross-entropy on labels."""

    student_class = students.CoOp
