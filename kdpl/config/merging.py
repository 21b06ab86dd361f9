"""Merging of YAML files and KEY VALUE pairs into a configuration, with every key and type checked."""

import ast
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import read_text
from kdpl.config.defaults import extend_cfg, learners
from kdpl.config.keys import ConfigError

_GIVEN = "keys that were given"  # beside yacs's own marks of a node, which copies keep


class _Text(str):
    """A number as written in the file: the key decides its type, since '1e5' may be a name and '1.10' a version."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that leaves numbers as written."""


for _tag in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: _Text(node.value))


def merged_cfg(files: Sequence[str], flags: Mapping[str, Any], opts: Sequence[str]):
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
    for file in files:
        if file:
            merge_file(cfg, file)
    given = {key: value for key, value in flags.items() if value not in (None, "", [])}
    merge_options(cfg, [part for key, value in given.items() for part in (key, repr(value))])
    merge_options(cfg, opts)
    return cfg


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge a YAML configuration file into `cfg`, in place.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, or one of its keys or values is invalid; the closest valid one
            is named.
    """
    merge(cfg, read_mapping(path), f" (in '{path}')")


def read_mapping(path: str | os.PathLike) -> dict[Any, Any]:
    """Return the keys and values of a YAML file; numbers are as written.

    Raises:
        ConfigError: the file is missing or not a YAML mapping.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder, expected a configuration file, such as one of '{path}/*.yaml'.")
    if not path.exists():
        names = [p.name for p in path.parent.glob("*.yaml")]
        raise ConfigError(f"There is no configuration file '{path}'.{did_you_mean(path.name, names)}")
    try:
        content = deepcopy(_parsed(read_text(path)))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        hint = " Indent with spaces, not with tabs." if "'\\t'" in str(error) else ""
        raise ConfigError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"'{path}' holds {what}, expected keys and values such as 'OPTIM: ...'.")
    return content


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Return the value of a configuration file's text; the runs of a sweep have few files, and PyYAML is slow."""
    return yaml.load(text, _Loader)


def is_given(cfg: CN, key: str) -> bool:
    """Whether a file, a flag or a pair set a key, or its value is another than the engine's default."""
    from dassl.config import get_cfg_default

    if key in cfg.__dict__.get(_GIVEN, ()):
        return True
    value, default = cfg, get_cfg_default()
    for part in key.split("."):
        value, default = value[part], default[part]
    return value != default


def merge_options(cfg: CN, options: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs of the command line into `cfg`, in place.

    Raises:
        ConfigError: a key without a value, an unknown key, or a value of another type.
    """
    flag = next((key for key in options[::2] if key.startswith("--")), None)
    if flag:
        raise ConfigError(f"'{flag}' comes after the first KEY VALUE pair: put the flags before the pairs.")
    if len(options) % 2:
        raise ConfigError(f"'{options[-1]}' has no value: expected pairs such as 'OPTIM.LR 0.002' after the flags.")
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = literal(value)
        if not isinstance(nested, str | bool | None) and not (nested and isinstance(nested, dict)):
            nested = _Text(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merge(cfg, nested, " (on the command line)")


def merge(cfg: CN, content: Mapping[str, Any], where: str = "", prefix: str = "", root: CN | None = None) -> None:
    """Merge nested keys and values into `cfg`, in place.

    Args:
        where: the source of the values for error messages, such as " (in 'FILE')".
        prefix, root: the path of `cfg` in the whole configuration, and the whole configuration.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    root = cfg if root is None else root
    for key, value in content.items():
        full = f"{prefix}{key}"
        if key not in cfg:
            hint = did_you_mean(full, _keys(root, ""))
            raise ConfigError(f"'{full}' is not a configuration key{where}.{hint}")
        if isinstance(cfg[key], CN):
            if not isinstance(value, dict):
                raise ConfigError(f"{full} is a group of keys, got {value!r}{where}: set one of {', '.join(cfg[key])}.")
            merge(cfg[key], value, where, f"{full}.", root)
        else:
            cfg[key] = _coerce(value, cfg[key], full, where)
            root.__dict__.setdefault(_GIVEN, set()).add(full)


def _keys(cfg: CN, prefix: str) -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, CN):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def literal(value: Any) -> Any:
    """Evaluate a string that is a Python literal, as yacs does; this includes '1e-5', which is text in YAML."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _coerce(value: Any, default: Any, key: str, where: str) -> Any:
    """Convert `value` to the type of `default` if nothing is lost by it."""
    wanted = type(default)
    if wanted is not str:
        value = literal(value)
    elif isinstance(value, _Text | int | float) and not isinstance(value, bool):
        return str(value)
    if wanted in (tuple, list):
        if isinstance(value, str):
            value = (value,)
        if isinstance(value, tuple | list):
            return wanted(literal(v) if isinstance(v, _Text) else v for v in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(str(value))  # inf, where an int is too large for a float
    if wanted is int and isinstance(value, float) and (value.is_integer() or _is_weight(key)):
        return int(value) if value.is_integer() else value
    if type(value) is not wanted:
        hint = ""
        if wanted is str and isinstance(value, bool | None):
            hint = f" Put the text '{value}' in quotes: \"'{value}'\"."
        raise ConfigError(f"{key} is {value!r}{where}: expected a {wanted.__name__}, such as {default!r}.{hint}")
    return value


def _is_weight(key: str) -> bool:
    """Whether a whole-number default of a prompt learner may be a fraction: all but the counts of tokens and layers."""
    *path, name = key.split(".")
    return path[:1] == ["TRAINER"] and path[-1] in learners() and not name.startswith(("N_CTX", "PROMPT_DEPTH"))


def learner_options(node: str, values: Mapping[str, Any]) -> CN:
    """Return the options of a prompt learner, TRAINER.<node>, from plain values; missing ones have their defaults.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    cfg = CN({"TRAINER": {node: dict(learners()[node])}})
    merge(cfg, {"TRAINER": {node: dict(values)}}, " (in the options)")
    return cfg.TRAINER[node]
