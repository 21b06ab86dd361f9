"""Whether a trainer of a fork that learns without labels is at work in this process (kdpl.trainers.teacher_labels)."""

from typing import Any

at_work: list[Any] = []  # the `TeacherLabels` of such trainers, the innermost one last


def learns_without_labels() -> bool:
    """Whether a data set that is constructed now is for training without labels."""
    return bool(at_work)
