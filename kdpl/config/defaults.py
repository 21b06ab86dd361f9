"""The configuration: the nodes that KDPL adds to Dassl's, and the files, flags and pairs that are merged into it."""

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import read_text
from kdpl.config.keys import KEYS, ConfigError, defaults

KDPL = defaults(KEYS)["TRAINER"]["KDPL"]
_STUDENTS = Path(__file__).parents[1] / "students"
_GIVEN = "keys that were given"  # beside yacs's own marks of a node, which copies keep
_external: dict[str, dict[str, Any]] = {}  # options by node, of learners defined outside kdpl/students

# ------------------------------------------------------------------------------------------------------------- nodes


def extend_cfg(cfg: CN) -> None:
    """Add to `cfg`, in place, the configuration nodes and keys of KDPL that are missing from it.

    A fork's own values are kept: a node or key that exists already is left alone. But an empty default of another type than
    KDPL's, such as CTX_INIT False in place of words, becomes None, which is as empty and takes values of either type.
    """
    nodes = defaults(KEYS)
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


def learners() -> dict[str, dict[str, Any]]:
    """Return the default options of all prompt learners, by configuration node."""
    return {**dict(_classes().values()), **_external}


@cache
def _classes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Read `node` and `defaults` of the classes in kdpl/students from their source: importing them would import PyTorch."""
    found = {}
    for path in sorted(_STUDENTS.glob("*.py")):
        for definition in [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]:
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


def learner_options(node: str, values: Mapping[str, Any]) -> CN:
    """Return the options of a prompt learner, TRAINER.<node>, from plain values; missing ones have their defaults.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    cfg = CN({"TRAINER": {node: dict(learners()[node])}})
    own, values = cfg.TRAINER[node], dict(values)
    for key in [key for key, default in own.items() if isinstance(default, str) and key in values and not values[key]]:
        values[key] = own[key] if key == "CLASS_TOKEN_POSITION" else ""  # False or None: a fork's way to say that there is none
    merge(cfg, {"TRAINER": {node: values}})
    return own


def student_options(cfg: CN, node: str) -> CN:
    """Return the options of a prompt learner, `cfg.TRAINER.<node>`, with KDPL's type where a fork's default has another.

    Keys that a fork has added to the node are left out.

    Raises:
        ConfigError: a value has no meaning for KDPL, such as CTX_INIT True.
    """
    options = learner_options(node, {key: value for key, value in cfg.TRAINER[node].items() if key in learners()[node]})
    options.freeze()
    return options


# ----------------------------------------------------------------------------------------------------------- merging


def merged_cfg(files: Sequence[str], flags: Mapping[str, Any], opts: Sequence[str]) -> CN:
    """Return the defaults with files, flags and KEY VALUE pairs merged in this order.

    Args:
        files: YAML files; an empty path is skipped.
        flags: values by key; None or an empty value means not given.

    Raises:
        ConfigError: as `merge_file` and `merge_options`.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    for file in filter(None, files):
        merge_file(cfg, file)
    merge(cfg, {key: value for key, value in flags.items() if value not in (None, "", [])}, " (in the flags)")
    merge_options(cfg, opts)
    return cfg


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge a YAML configuration file into `cfg`, in place.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, or one of its keys or values is invalid; the closest valid one
            is named.
    """
    merge(cfg, read_mapping(path), f" (in '{path}')")


def read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """Return the keys and values of a YAML file, numbers and all other values as the text that is written there.

    Raises:
        ConfigError: the file is missing or not a YAML mapping.
    """
    path = Path(path)
    if not path.exists():
        names = [p.name for p in path.parent.glob("*.yaml")]
        raise ConfigError(f"There is no configuration file '{path}'.{did_you_mean(path.name, names)}")
    try:
        content = yaml.load(read_text(path), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' holds {str(content)[:40]!r}, expected keys and values such as 'OPTIM: ...'.")
    return content


def merge_options(cfg: CN, options: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs of the command line into `cfg`, in place.

    Raises:
        ConfigError: a key without a value, an unknown key, or a value of another type.
    """
    if flag := next((key for key in options[::2] if key.startswith("--")), None):
        raise ConfigError(f"'{flag}' comes after the first KEY VALUE pair: put the flags before the pairs.")
    if len(options) % 2:
        raise ConfigError(f"'{options[-1]}' has no value: expected pairs such as 'OPTIM.LR 0.002' after the flags.")
    merge(cfg, dict(zip(options[::2], options[1::2], strict=True)), " (on the command line)")


def merge(cfg: CN, content: Mapping[str, Any], where: str = "") -> None:
    """Merge values, by keys that are nested or have dots, into `cfg`, in place.

    Args:
        where: the source of the values for error messages, such as " (in 'FILE')".

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    known = dict(leaves(cfg))
    for key, value in leaves(content):
        if key not in known:
            if inside := [name.removeprefix(f"{key}.") for name in known if name.startswith(f"{key}.")]:
                raise ConfigError(f"{key} is a group of keys, got {value!r}{where}: set one of {', '.join(inside)}.")
            raise ConfigError(f"'{key}' is not a configuration key{where}.{did_you_mean(key, known)}")
        node, (*path, name) = cfg, key.split(".")
        for part in path:
            node = node[part]
        node[name] = _converted(value, known[key], key, where)
        cfg.__dict__.setdefault(_GIVEN, set()).add(key)


def is_given(cfg: CN, key: str) -> bool:
    """Whether a file, a flag or a pair set a key, or its value is another than the engine's default."""
    from dassl.config import get_cfg_default

    return key in cfg.__dict__.get(_GIVEN, ()) or dict(leaves(cfg))[key] != dict(leaves(get_cfg_default()))[key]


def leaves(nodes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all keys, with dots, and their values."""
    for key, value in nodes.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def literal(value: Any) -> Any:
    """Evaluate a string that is a Python literal, as yacs does; this includes '1e-5', which is text in YAML."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(value, value)  # as YAML has them


def _converted(value: Any, default: Any, key: str, where: str) -> Any:
    """Convert `value`, or what its text says, to the type of `default` if nothing is lost by it."""
    wanted, given = type(default), literal(value)
    if wanted is str and isinstance(value, str | int | float) and not isinstance(given, bool | None):
        return given if isinstance(given, str) else str(value)  # a name may look like a number, such as 1.10
    if wanted in (tuple, list):
        return wanted(map(literal, given if isinstance(given, tuple | list) else [given]))
    if wanted is float and type(given) is int:
        given = float(str(given))  # inf, where an int is too large for a float
    if wanted is int and isinstance(given, float) and (given.is_integer() or _is_weight(key)):
        return int(given) if given.is_integer() else given
    if type(given) is not wanted:
        raise ConfigError(f"{key} is {value!r}{where}: expected a {wanted.__name__}, such as {default!r}.")
    return given


def _is_weight(key: str) -> bool:
    """Whether a whole-number default of a prompt learner may be a fraction: all but the counts of tokens and layers."""
    *path, name = key.split(".")
    return path[:1] == ["TRAINER"] and path[-1] in learners() and not name.startswith(("N_CTX", "PROMPT_DEPTH"))
