"""The configuration nodes that KDPL adds to a Dassl configuration."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

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
DATASET = {"SUBSAMPLE_CLASSES": "all", "TEMPLATE": "", "CLASSNAMES": "", "IMAGE_LIST": "", "ON_BAD_IMAGE": "skip"}
TRAIN = {"CHECKPOINT_EVERY_MINUTES": 10.0, "DETERMINISTIC": False}
_STUDENTS = Path(__file__).parents[1] / "students"
_elsewhere: dict[str, dict[str, Any]] = {}  # options of learners that are not in kdpl/students, by node


def extend_cfg(cfg: CN) -> None:
    """Add to `cfg`, in place, the configuration nodes and keys of KDPL that are missing from it.

    A fork's own values are kept: a node or key that exists already is left alone.

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
    """Return the options of all prompt learners with their defaults, by configuration node."""
    return {**_built_in(), **_elsewhere}


@cache
def _built_in() -> dict[str, dict[str, Any]]:
    """Read `node` and `defaults` of the classes in kdpl/students from their source, because importing these needs PyTorch."""
    found = {}
    for path in sorted(_STUDENTS.glob("*.py")):
        for definition in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(definition, ast.ClassDef):
                values = {n.targets[0].id: n.value for n in definition.body if isinstance(n, ast.Assign)}
                if "defaults" in values:
                    found[ast.literal_eval(values["node"])] = ast.literal_eval(values["defaults"])
    return found


def add_learner(node: str, defaults: Mapping[str, Any]) -> None:
    """Add the options of a prompt learner, so that `extend_cfg` knows `TRAINER.<node>`."""
    if node not in _built_in():
        _elsewhere[node] = dict(defaults)
