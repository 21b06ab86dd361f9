"""Registering trainers beside those that a fork has already."""

from dassl.engine import TRAINER_REGISTRY

from kdpl.students import Student

PREFIX = "KDPL_"


def register(trainer: type) -> type:
    """Register a trainer class under its name, as a decorator; a name that a fork holds already is left to the fork.

    A fork's own copy of a file of this package takes the place of the installed trainer.
    """
    name = trainer.__name__
    if name not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register()(trainer)
    elif not is_ours(trainer) and is_ours(TRAINER_REGISTRY.get(name)):
        TRAINER_REGISTRY.register(force=True)(trainer)
    return trainer


def trainer_of(student: type[Student], base: type, prefix: str, module: str) -> type:
    """Return a new, registered trainer `<prefix><name of the student>`: a base trainer that learns this student.

    Args:
        base: `DistillTrainer` or `SupervisedTrainer`.
        module: of the name `<prefix><name>`, for pickles and for telling a fork's trainers from these.
    """
    members = {"student_class": student, "__module__": module, "__doc__": student.__doc__}
    return register(type(f"{prefix}{student.__name__}", (base,), members))


def is_ours(trainer: type) -> bool:
    return trainer.__module__.startswith("kdpl.trainers.")
