"""The trainers of the prompt learners: `KDPL_<Name>` learns from a teacher without labels (arXiv:2407.03056).

Importing this module registers these. Their twins `<Name>`, which learn from labels and which a fork may have itself, are
registered by `kdpl.trainers.baselines`. A learner from outside this package has the decorator `prompt_learner`; `--learner`
names its file.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path

from dassl.engine import TRAINER_REGISTRY

from kdpl import students
from kdpl.common.messages import did_you_mean, short_reason
from kdpl.config.keys import ConfigError
from kdpl.students import Student
from kdpl.trainers.distill import DistillTrainer, SupervisedTrainer

PREFIX = "KDPL_"
_loaded: set[Path] = set()  # files


def register(trainer: type) -> type:
    """Register a trainer class under its name, as a decorator, unless another module has registered that name.

    A class that is defined again in the same module (in a notebook) replaces its earlier version.
    """
    name = trainer.__name__
    if name not in TRAINER_REGISTRY.registered_names() or TRAINER_REGISTRY.get(name).__module__ == trainer.__module__:
        TRAINER_REGISTRY.register(trainer, force=True)
    return trainer


def trainers_of(student: type[Student], module: str = __name__) -> tuple[type[DistillTrainer], type[SupervisedTrainer]]:
    """Register `KDPL_<Name>` of a learner, and return it and its twin `<Name>`, which is not registered."""
    members = {"student_class": student, "__module__": module, "__doc__": student.__doc__}
    distilled = type(f"{PREFIX}{student.__name__}", (DistillTrainer,), members)
    return register(distilled), type(student.__name__, (SupervisedTrainer,), members)


KDPL_CoOp, CoOp = trainers_of(students.CoOp)
KDPL_CoCoOp, CoCoOp = trainers_of(students.CoCoOp)
KDPL_VPT, VPT = trainers_of(students.VPT)
KDPL_MaPLe, MaPLe = trainers_of(students.MaPLe)
KDPL_PromptSRC, PromptSRC = trainers_of(students.PromptSRC)
KDPL_IVLP, IVLP = trainers_of(students.IVLP)
KDPL_KgCoOp, KgCoOp = trainers_of(students.KgCoOp)
KDPL_TaskRes, TaskRes = trainers_of(students.TaskRes)
KDPL_TCP, TCP = trainers_of(students.TCP)
KDPL_KernelHead, KernelHead = trainers_of(students.KernelHead)
KDPL_MMA, MMA = trainers_of(students.MMA)
KDPL_CLIPAdapter, CLIPAdapter = trainers_of(students.CLIPAdapter)


def prompt_learner(student: type[Student]) -> type[Student]:
    """Register the trainers `KDPL_<Name>` and `<Name>` of a student class, as a decorator (docs/new_student.md).

    A trainer `<Name>` that a fork has registered stays the fork's.

    Raises:
        ConfigError: a learner of this name exists already.
    """
    distilled, supervised = trainers_of(student, student.__module__)
    if Student.known.get(student.__name__) is not student or TRAINER_REGISTRY.get(distilled.__name__) is not distilled:
        raise ConfigError(f"A prompt learner '{student.__name__}' exists already: choose another class name.")
    register(supervised)
    return student


def load_learners(paths: Iterable[str]) -> None:
    """Import files that define prompt learners; a file that is loaded already is skipped.

    Raises:
        ConfigError: a file is missing, raises an error, or registers no learner.
    """
    for given in paths:
        path = Path(os.path.realpath(given))
        if path in _loaded:
            continue
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*.py")]
            raise ConfigError(f"--learner '{given}' is not a file: expected a Python file.{did_you_mean(path.name, near)}")
        name = f"kdpl_learner_{len(_loaded)}_{path.stem}"
        spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            trainers = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names())
            if not any(getattr(trainer, "student_class", object).__module__ == name for trainer in trainers):
                raise ConfigError(
                    "expected a subclass of kdpl.students.Student with the decorator @kdpl.trainers.prompt_learner"
                )
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            where = f" in line {lines[-1]}" if lines else ""
            raise ConfigError(f"--learner '{given}' is not a prompt learner{where} ({short_reason(error)}).") from error
        _loaded.add(path)
