"""The bundle of a head: everything that `kdpl predict` needs, as trained prompts have it."""

from collections.abc import Sequence

from kdpl.bundle import Bundle, Decision
from kdpl.photos.answers import Words
from kdpl.photos.learn import Task
from kdpl.students.kernel_head import KernelHead, Solved


def head_bundle(
    task: Task, words: Words, names: Sequence[str], solved: Solved, factor: float, photos: int, decision: Decision
) -> Bundle:
    """Return the bundle of a head, whose logits are its scores of the names times the factor."""
    clip = words.student
    return Bundle(
        parameters=KernelHead.parameters_of(solved, factor),
        variant=KernelHead.__name__,
        trainer=f"KDPL_{KernelHead.__name__}",
        backbone=task.student,
        backbone_sha256=clip.weights_digest,
        options={**KernelHead.defaults, "PREC": words.precision},
        preprocessing=clip.preprocessing,
        dataset=f"{photos:,} photos",
        template=task.template,
        classnames=list(names),
        teacher=task.teacher,
        class_agnostic=False,
        epoch=1,
        results=[],
        config="",
        decision=decision,
        backbone_design=clip.design,
    )
