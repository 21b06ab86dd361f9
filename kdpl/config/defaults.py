"""The configuration nodes that KDPL adds to a Dassl configuration."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from kdpl.config.keys import ENGINE, OWN, ConfigError, defaults

_OWN = {**OWN, **{name: key for name, key in ENGINE.items() if key.newer}}
KDPL = defaults(_OWN)["TRAINER"]["KDPL"]
HOW_TO_EXTEND = (
    "add `import kdpl` and, behind extend_cfg(cfg) in train.py, `kdpl.extend_cfg(cfg)` (python -m kdpl.install does it)."
)
_STUDENTS = Path(__file__).parents[1] / "students"
_external: dict[str, dict[str, Any]] = {}  # options by node, of learners defined outside kdpl/students


def extend_cfg(cfg: CN) -> None:
    """Add to `cfg`, in place, the configuration nodes and keys of KDPL that are missing from it.

    A fork's own values are kept: a node or key that exists already is left alone. But an empty default of another type than
    KDPL's, such as CTX_INIT False in place of words, becomes None, which is as empty and takes values of either type.
    """
    nodes = defaults(_OWN)
    nodes["TRAINER"] = {**{node: dict(options) for node, options in learners().items()}, **nodes["TRAINER"]}
    _add_missing(cfg, CN(nodes))


def _add_missing(cfg: CN, nodes: CN) -> None:
    for key, value in nodes.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)
        elif {type(value), type(cfg[key])} == {str, bool} and not cfg[key]:
            cfg[key] = None


def student_options(cfg: CN, node: str) -> CN:
    """Return the options of a prompt learner, `cfg.TRAINER.<node>`, with KDPL's type where a fork's default has another.

    Keys that a fork has added to the node are left out.

    Raises:
        ConfigError: a value has no meaning for KDPL, such as CTX_INIT True.
    """
    given, own = cfg.TRAINER[node], learners()[node]
    options = CN({key: given.get(key, default) for key, default in own.items()})
    for key, default in own.items():
        if options[key] is None or (options[key] is False and isinstance(default, str)):
            options[key] = type(default)()
        elif key == "CLASS_TOKEN_POSITION" and not options[key]:  # a fork's default, in place of KDPL's
            options[key] = default
        elif type(default) is str and not isinstance(options[key], str):
            raise ConfigError(f"TRAINER.{node}.{key} is {options[key]!r}, expected text such as 'a photo of a', or ''.")
    options.freeze()
    return options


def learners() -> dict[str, dict[str, Any]]:
    """Return the default options of all prompt learners, by configuration node."""
    return {**dict(_classes().values()), **_external}


@cache
def _classes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Read `node` and `defaults` of the classes in kdpl/students from their source: importing them would import PyTorch."""
    found = {}
    for path in sorted(_STUDENTS.glob("*.py")):
        for definition in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(definition, ast.ClassDef):
                assigned = [n for n in definition.body if isinstance(n, ast.Assign)]
                values = {n.targets[0].id: n.value for n in assigned if isinstance(n.targets[0], ast.Name)}
                if "defaults" in values:
                    options = {"PREC": "fp16", **ast.literal_eval(values["defaults"])}
                    found[definition.name] = ast.literal_eval(values["node"]), options
    return found


def node_of(trainer: str) -> str:
    """Return the configuration node of the learner of a trainer such as `KDPL_CoOp`; empty if it is not one of KDPL's."""
    return _classes().get(trainer.removeprefix("KDPL_"), ("",))[0]


def text_learners() -> list[str]:
    """Return the names of the learners of KDPL that need no layers of an image tower."""
    learned = {name: options for name, (_, options) in _classes().items()}
    return [name for name in learned if not any(key == "PROMPT_DEPTH" or key.endswith("_VISION") for key in learned[name])]


def add_learner(node: str, own: Mapping[str, Any]) -> None:
    """Add the options of a prompt learner, so that `extend_cfg` knows `TRAINER.<node>`; PREC is fp16 unless given.

    Raises:
        ConfigError: the node belongs to a learner of KDPL, with other options.
    """
    options, built_in = {"PREC": "fp16", **own}, dict(_classes().values())
    if options != built_in.get(node, options):
        raise ConfigError(f"TRAINER.{node} are the options of a learner of KDPL: give yours a `node` of its own.")
    if node not in built_in:
        _external[node] = options
