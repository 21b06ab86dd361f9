"""Prompt learners from outside this package: the decorator that registers them, and the files of `--learner`."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path

from dassl.engine import TRAINER_REGISTRY

from kdpl.common.messages import did_you_mean, short_reason
from kdpl.config.keys import ConfigError
from kdpl.students import Student
from kdpl.trainers.distill import DistillTrainer
from kdpl.trainers.registry import trainer_of
from kdpl.trainers.supervised import SupervisedTrainer

_loaded: dict[Path, str] = {}  # module name by file


def prompt_learner(student: type[Student]) -> type[Student]:
    """Register the trainers `KDPL_<Name>` and `<Name>` of a student class, as a decorator (docs/new_student.md).

    A trainer `<Name>` that a fork has registered stays the fork's.

    Raises:
        ConfigError: a learner of this name exists already.
    """
    name = student.__name__
    if Student.known.get(name) is student:
        trainer_of(student, DistillTrainer, "KDPL_", student.__module__)
        if getattr(TRAINER_REGISTRY.get(f"KDPL_{name}"), "student_class", None) is student:
            trainer_of(student, SupervisedTrainer, "", student.__module__)
            return student
    raise ConfigError(f"A prompt learner '{name}' exists already: choose another class name.")


def load_learners(paths: Iterable[str]) -> None:
    """Import files that define prompt learners; a file that is loaded already is skipped.

    Raises:
        ConfigError: a file is missing, raises an error, or registers no learner.
    """
    for path in paths:
        _load(path, Path(os.path.realpath(path)))


def _load(given: str, path: Path) -> None:
    if path in _loaded:
        return
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--learner '{given}' {what}: expected a Python file.{did_you_mean(path.name, near)}")
    name = f"kdpl_learner_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise ConfigError(f"--learner '{given}' cannot be imported{where} ({short_reason(error)}).") from error
    trainers = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names())
    if not any(getattr(trainer, "student_class", object).__module__ == name for trainer in trainers):
        raise ConfigError(
            f"--learner '{given}' defines no prompt learner: expected a subclass of kdpl.students.Student with the decorator "
            "@kdpl.trainers.prompt_learner."
        )
    _loaded[path] = name
