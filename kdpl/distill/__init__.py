"""The method: objective, loss, teacher, selection of names, and the features of fixed views."""

from kdpl.distill.loss import distillation_loss
from kdpl.distill.objective import CrossEntropy, Distillation
from kdpl.distill.teacher import Ensemble, PromptedTeacher, Teacher

__all__ = ["CrossEntropy", "Distillation", "Ensemble", "PromptedTeacher", "Teacher", "distillation_loss"]
