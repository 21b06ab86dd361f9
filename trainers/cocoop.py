"""CoCoOp with labels (arXiv:2203.05557), the supervised baseline of KDPL_CoCoOp."""

from kdpl import students
from kdpl.trainers.base import SupervisedTrainer
from kdpl.trainers.registry import register


@register
class CoCoOp(SupervisedTrainer):
    """CoCoOp trained with cross-entropy on labels."""

    student_class = students.CoCoOp
