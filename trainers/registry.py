"""Registering trainers without replacing those of a fork."""

from typing import Any

from dassl.engine import TRAINER_REGISTRY

from kdpl.students import Student

PREFIX = "KDPL_"
_baselines: list[type] = []


def register(trainer: type) -> type:
    """Register a trainer class under its name, as a decorator, unless a fork has registered that name already.

    A fork's own copy of a file of this package replaces the installed trainer, and a class that is defined again in the same
    module (in a notebook) replaces its earlier version.
    """
    name = trainer.__name__
    if name not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register()(trainer)
        return trainer
    present = TRAINER_REGISTRY.get(name)
    if present.__module__ == trainer.__module__ or (is_ours(present) and not is_ours(trainer)):
        TRAINER_REGISTRY.register(force=True)(trainer)
    return trainer


def baseline(trainer: type) -> type:
    """Leave a trainer class that learns from labels to `register_baselines`, as a decorator."""
    _baselines.append(trainer)
    return trainer


def register_baselines() -> None:
    for trainer in _baselines:
        register(trainer)


def trainer_of(student: type[Student], base: type, prefix: str, module: str) -> type:
    """Create and register the trainer `<prefix><name of the student>` of a learner from outside this package.

    Args:
        base: `DistillTrainer` or `SupervisedTrainer`.
        module: the new class's `__module__`, for pickling and to distinguish a fork's trainers from these.
    """
    members = {"student_class": student, "__module__": module, "__doc__": student.__doc__}
    return register(type(f"{prefix}{student.__name__}", (base,), members))


def is_ours(trainer: Any) -> bool:
    """Whether a trainer class, or a method of one, is defined in this package."""
    return trainer.__module__.startswith("kdpl.trainers.")
