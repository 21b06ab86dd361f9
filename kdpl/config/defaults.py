"""The configuration nodes that KDPL adds to a Dassl configuration."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from kdpl.config.choices import ConfigError

KDPL = {
    "TEACHER": "ViT-H-14-quickgelu",
    "CLASS_AGNOSTIC": False,
    "K_MAX": 1000,
    "CTX_INIT": "a photo of a",
    "PREC": "fp16",
    "VOCABULARY": "imagenet21k",
    "EXCLUDE_CLASSNAMES": False,
    "SHOTS": "class",
    "LOSS": "symmetric",
    "TEMPERATURE": 1.0,
    "TEACHER_LOGIT_SCALE": "student",
    "VIEWS": 0,
    "VIEW_SEED": 0,
    "CACHE_DIR": "",
    "COMPILE": False,
    "MAX_TEXT_ROWS": 8192,
    "SHARD_CLASSES": False,
}
DATASET = {"SUBSAMPLE_CLASSES": "all", "TEMPLATE": "", "CLASSNAMES": "", "ON_BAD_IMAGE": "skip"}
TRAIN = {"CHECKPOINT_EVERY_MINUTES": 10.0, "DETERMINISTIC": False}
_STUDENTS = Path(__file__).parents[1] / "students"
_external: dict[str, dict[str, Any]] = {}  # options by node, of learners defined outside kdpl/students


def extend_cfg(cfg: CN) -> None:
    """Add KDPL's missing configuration nodes and keys to `cfg`, in place; existing ones, such as a fork's, are unchanged.

    Args:
        cfg: a Dassl configuration, as `dassl.config.get_cfg_default()` returns it, not frozen.
    """
    trainer = {**learners(), "KDPL": KDPL}
    _add_missing(cfg, CN({"TRAINER": {k: dict(v) for k, v in trainer.items()}, "DATASET": dict(DATASET), "TRAIN": dict(TRAIN)}))


def _add_missing(cfg: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)


def learners() -> dict[str, dict[str, Any]]:
    """Return the default options of all prompt learners, by configuration node."""
    return {**_built_in(), **_external}


@cache
def _built_in() -> dict[str, dict[str, Any]]:
    """Read `node` and `defaults` of the classes in kdpl/students from their source: importing them would import PyTorch."""
    found = {}
    for path in sorted(_STUDENTS.glob("*.py")):
        for definition in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(definition, ast.ClassDef):
                values = {n.targets[0].id: n.value for n in definition.body if isinstance(n, ast.Assign)}
                if "defaults" in values:
                    found[ast.literal_eval(values["node"])] = ast.literal_eval(values["defaults"])
    return found


def add_learner(node: str, defaults: Mapping[str, Any]) -> None:
    """Add the options of a prompt learner, so that `extend_cfg` knows `TRAINER.<node>`; PREC is fp16 unless given.

    Raises:
        ConfigError: the node belongs to a learner of KDPL, with other options.
    """
    options = {"PREC": "fp16", **defaults}
    if options != _built_in().get(node, options):
        raise ConfigError(f"TRAINER.{node} are the options of a learner of KDPL: give yours a `node` of its own.")
    if node not in _built_in():
        _external[node] = options
