"""The table of all configuration keys, keys.md: default, values, influence on the prompts, documentation; and their error."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kdpl.common.messages import did_you_mean


class Key(NamedTuple):
    """A line of the table."""

    name: str
    default: Any  # None for an option of prompt learners, which have their own
    values: str  # names in backticks, or a range in words
    influence: str  # "matters", "rounds" or "harmless"
    flags: tuple[str, ...]
    text: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that stand among its values."""
        return tuple(re.findall(r"`([^`]+)`", self.values))

    @property
    def is_choice(self) -> bool:
        """Whether it takes these names alone."""
        return bool(self.values) and not re.sub(r"`[^`]+`(, )?", "", self.values)


def _read(section: str) -> dict[str, Key]:
    found = {}
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith(("| key |", "| --- |")):
            name, default, values, influence, text = (cell.strip() for cell in line[1:-1].split("|"))
            kind, *flags = influence.split(", ")
            found[name] = Key(name, ast.literal_eval(default) if default else None, values, kind, tuple(flags), text)
    return found


_, *_SECTIONS = Path(__file__).with_name("keys.md").read_text(encoding="utf-8").split("\n## ")
ENGINE, OWN, OPTIONS = map(_read, _SECTIONS)  # of Dassl, of KDPL, and of prompt learners, as TRAINER.*.PREC
KEYS = {**ENGINE, **OWN}


def key_of(name: str) -> Key | None:
    """Return the table's line for a key of a configuration; None for one that it does not have, such as a fork's."""
    group, *_, option = name.split(".")
    return KEYS.get(name) or (OPTIONS.get(f"TRAINER.*.{option}") if group == "TRAINER" else None)


def choices(name: str) -> tuple[str, ...]:
    """Return the names that a key takes."""
    return {**KEYS, **OPTIONS}[name].choices


def defaults(keys: Iterable[Key]) -> dict[str, Any]:
    """Return new nested nodes with the defaults of keys."""
    nodes: dict[str, Any] = {}
    for key in keys:
        *path, name = key.name.split(".")
        node = nodes
        for part in path:
            node = node.setdefault(part, {})
        node[name] = list(key.default) if isinstance(key.default, list) else key.default
    return nodes


def flagged(flag: str) -> dict[str, Key]:
    """Return the keys with a flag."""
    return {name: key for name, key in KEYS.items() if flag in key.flags}


PRECISIONS = choices("TRAINER.*.PREC")
CLASS_TOKEN_POSITIONS = choices("TRAINER.*.CLASS_TOKEN_POSITION")
LOSSES = choices("TRAINER.KDPL.LOSS")
ALLOWED = choices("TRAINER.KDPL.ALLOW")
SUBSAMPLES = choices("DATASET.SUBSAMPLE_CLASSES")
INTERPOLATIONS = choices("INPUT.INTERPOLATION")
OPTIMIZERS = choices("OPTIM.NAME")
SAMPLERS = choices("DATALOADER.TRAIN_X.SAMPLER")
SPLITS = choices("TEST.SPLIT")
FINAL_MODELS = choices("TEST.FINAL_MODEL")


def is_distilled(trainer: str) -> bool:
    """Return whether the trainer of this name learns from a teacher without labels."""
    return trainer.startswith("KDPL_")


class ConfigError(ValueError):
    """A configuration has an unknown key or an invalid value."""


def check_choice(key: str, value: str, names: Iterable[str]) -> None:
    """Raise a ConfigError with the key, its value, the names that it takes and the closest of them, unless `value` is one."""
    if value not in names:
        raise ConfigError(f"{key} '{value}' is not one of {', '.join(names)}.{did_you_mean(value, names)}")
