"""The trainers of a fork, offered without labels: `distilled` for one class, `offer_distilled` for all of a `train.py`."""

import sys
from typing import Any

from dassl.engine import TRAINER_REGISTRY, SimpleTrainer

from kdpl.trainers.learners import PREFIX
from kdpl.trainers.prompts import is_ours
from kdpl.trainers.wrapped import DistilledTrainer

OF_THE_FORK = "Wrapped_"  # before the name of a fork's trainer that KDPL has one of, too


def distilled(trainer_class: type | None = None, *, name: str | None = None, teacher_view: int = 0) -> Any:
    """Register and return a trainer that learns without labels, a subclass of `trainer_class` with a teacher in place of them.

    A function, `distilled(TRAINER_REGISTRY.get("TCP"))`, or a decorator, the uppermost one, with or without arguments.

    Args:
        trainer_class: a Dassl `TrainerX` or `TrainerXU`.
        name: by default KDPL_<its name>; if KDPL has a trainer of that name, which is faster, that one is returned.
        teacher_view: if a batch has several views of an image, which of them the teacher sees.

    Raises:
        TypeError: it is no such trainer, or has no step of its own.
    """
    if trainer_class is None:
        return lambda decorated: distilled(decorated, name=name, teacher_view=teacher_view)
    if why := why_not(trainer_class):
        raise TypeError(f"{trainer_class!r} cannot be distilled: {why}.")
    name = name or f"{PREFIX}{trainer_class.__name__}"
    if name in TRAINER_REGISTRY.registered_names() and is_ours(present := TRAINER_REGISTRY.get(name)):
        return present
    return _made(trainer_class, name, teacher_view)


def _made(trainer_class: type, name: str, teacher_view: int = 0) -> type:
    wrapped = trainer_class.__name__
    members = {"wrapped": wrapped, "teacher_view": teacher_view, "__module__": trainer_class.__module__}
    members["__doc__"] = f"{wrapped} without labels (KDPL, arXiv:2407.03056)."
    made = type(name, (DistilledTrainer, trainer_class), members)
    TRAINER_REGISTRY.register(made, force=True)
    return made


def why_not(trainer_class: Any) -> str:
    """Return why a class cannot be distilled: it must be a Dassl trainer with its own training step, and none of KDPL's."""
    if not isinstance(trainer_class, type) or not issubclass(trainer_class, SimpleTrainer):
        return "it is not derived from dassl.engine.TrainerX or TrainerXU"
    if is_ours(trainer_class) or issubclass(trainer_class, DistilledTrainer) or hasattr(trainer_class, "student_class"):
        return "it is a trainer of KDPL"
    own = [c for c in trainer_class.__mro__ if not c.__module__.startswith("dassl.engine.") and c is not object]
    if not any("forward_backward" in vars(c) for c in own):
        return "it has no forward_backward(batch) of its own, the step whose labels KDPL replaces"
    return ""


def offer_distilled() -> None:
    """Register every trainer of a fork without labels, and take `--trainer` of the command line as the fork knows it.

    `<Name>` is offered as `KDPL_<Name>`, or, if KDPL has that one itself, as `Wrapped_<Name>`; the fork's code then reads
    `--trainer <Name>`, by which it finds options and files. The data sets of KDPL are registered too.

    Raises:
        SystemExit: the command line asks for a trainer that cannot be offered; the message has the reason.
    """
    import kdpl.datasets  # noqa: F401  behind the fork's own

    classes = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    offered = {}
    for name, trainer_class in classes.items():
        if not why_not(trainer_class):
            offer = f"{OF_THE_FORK if is_ours(classes.get(f'{PREFIX}{name}', object)) else PREFIX}{name}"
            if issubclass(classes.get(offer, DistilledTrainer), DistilledTrainer):
                offered[offer] = classes.get(offer) or distilled(trainer_class, name=offer)
    _take_command_line(offered)


def _take_command_line(offered: dict[str, type]) -> None:
    """Let the fork read the name of its own trainer in sys.argv, and build that one without labels."""
    names = TRAINER_REGISTRY.registered_names()
    for i, word in enumerate(sys.argv[1:], 1):
        flag = "--trainer=" if word.startswith("--trainer=") else ""
        asked = word.removeprefix(flag) if flag or sys.argv[i - 1] == "--trainer" else ""
        theirs = asked.removeprefix(PREFIX).removeprefix(OF_THE_FORK)
        if trainer := offered.get(asked):
            sys.argv[i] = f"{flag}{theirs}"
            _made(trainer.__mro__[2], theirs, trainer.teacher_view)
            print(f"{asked}: {theirs} of {trainer.__module__} without labels; its code reads --trainer {theirs}")
        elif asked != theirs and (other := offered.get(f"{OF_THE_FORK}{theirs}")):
            print(f"{asked} is KDPL's own, not {theirs} of {other.__module__}: for that one, --trainer {other.__name__}.")
        elif asked not in names and asked != theirs and theirs in names and (why := why_not(TRAINER_REGISTRY.get(theirs))):
            sys.exit(f"--trainer {asked}: {theirs} cannot learn without labels: {why}.")
