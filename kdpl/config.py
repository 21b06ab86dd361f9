"""The configuration nodes that KDPL adds to a Dassl configuration, and the merging and checking of values."""

import ast
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from kdpl.suggest import did_you_mean

LOSSES = ("symmetric", "forward", "reverse")


def _defaults() -> CN:
    """All nodes of the CoOp family with KDPL's own, under the names and with the defaults of the public forks."""
    trainer = CN()
    trainer.COOP = CN({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"})
    trainer.COCOOP = CN({"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"})
    trainer.VPT = CN({"N_CTX_VISION": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 1})
    trainer.MAPLE = CN({"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9})
    two_towers = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
    }
    trainer.PROMPTSRC = CN(two_towers | {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1})
    trainer.IVLP = CN(two_towers | {"N_CTX_VISION": 2, "N_CTX_TEXT": 2})
    trainer.KDPL = CN(
        {
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
    )
    dataset = CN({"SUBSAMPLE_CLASSES": "all", "TEMPLATE": "", "CLASSNAMES": "", "ON_BAD_IMAGE": "skip"})
    train = CN({"CHECKPOINT_EVERY_MINUTES": 10.0, "DETERMINISTIC": False})
    return CN({"TRAINER": trainer, "DATASET": dataset, "TRAIN": train})


def extend_cfg(cfg: CN) -> None:
    """Add to `cfg`, in place, the configuration nodes and keys of KDPL that are missing from it.

    A fork's own values are kept: a node or key that exists already is left alone.

    Args:
        cfg: a Dassl configuration, as `dassl.config.get_cfg_default()` returns it, not frozen.
    """
    _add_missing(cfg, _defaults())


def _add_missing(cfg: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)


# Whole-number defaults of the forks that may well be fractions.
_FRACTIONAL = ("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "GPA_MEAN", "GPA_STD")
STUDENT_PRECISIONS = ("fp16", "fp32", "amp", "bf16")
SHOTS = ("class", "random")
SUBSAMPLES = ("all", "base", "new")
ON_BAD_IMAGE = ("skip", "error")


class ConfigError(ValueError):
    """A configuration has an unknown key or a value that is not possible."""


class _Text(str):
    """A number as it is written: what it means depends on the key, '1e5' may be a name, '1.10' a version."""


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are kept as they are written, and whose keys are not given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if lines.setdefault(key.value, line) != line:
                    raise ConfigError(
                        f"the key '{key.value}' is given twice, in lines {lines[key.value]} and {line}: keep one."
                    )
        return super().construct_mapping(node, deep)


for _tag in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: _Text(node.value))


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge a YAML configuration file into `cfg`, in place.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or a key or value of it does not fit; the closest is named.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder, expected a configuration file, such as one of '{path}/*.yaml'.")
    if not path.is_file():
        folder = path.parent
        names = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        raise ConfigError(f"There is no configuration file '{path}'.{did_you_mean(path.name, names)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        hint = " Indent with spaces, not with tabs." if "'\\t'" in str(error) else ""
        raise ConfigError(f"'{path}' is not readable YAML: {error}{hint}") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"'{path}' holds {what}, expected keys and values such as 'OPTIM: ...'.")
    _merge(cfg, content, "", f" (in '{path}')")


def merge_options(cfg: CN, options: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs of the command line into `cfg`, in place.

    Raises:
        ConfigError: a key without value, an unknown key, or a value that does not fit.
    """
    flag = next((key for key in options[::2] if key.startswith("--")), None)
    if flag:
        raise ConfigError(f"'{flag}' stands behind the first KEY VALUE pair: put the flags before them.")
    if len(options) % 2:
        raise ConfigError(f"'{options[-1]}' has no value: expected pairs such as 'OPTIM.LR 0.002' after the flags.")
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = literal(value)
        if not isinstance(nested, str | bool | None) and not (nested and isinstance(nested, dict)):
            nested = _Text(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(cfg, nested, "", " (on the command line)")


def _merge(cfg: CN, content: dict, prefix: str, where: str, root: CN | None = None) -> None:
    root = cfg if root is None else root
    for key, value in content.items():
        full = f"{prefix}{key}"
        if key not in cfg:
            hint = did_you_mean(full, _keys(root, ""))
            raise ConfigError(f"'{full}' is not a configuration key{where}.{hint}")
        if isinstance(cfg[key], CN):
            if not isinstance(value, dict):
                raise ConfigError(f"{full} is a group of keys, got {value!r}{where}: set one of {', '.join(cfg[key])}.")
            _merge(cfg[key], value, f"{full}.", where, root)
        else:
            cfg[key] = _coerce(value, cfg[key], full, where)


def _keys(cfg: CN, prefix: str) -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, CN):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def literal(value: Any) -> Any:
    """Read a string that spells a Python value as that value, as yacs does: '1e-5', which YAML takes for a word, too."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _coerce(value: Any, default: Any, key: str, where: str) -> Any:
    """Return `value` as the type of `default` where nothing is lost by it."""
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
        value = _as_float(value)
    if wanted is int and isinstance(value, float) and (value.is_integer() or key.rpartition(".")[2] in _FRACTIONAL):
        return int(value) if value.is_integer() else value
    if type(value) is not wanted:
        hint = ""
        if wanted is str and isinstance(value, bool | None):
            hint = f" Text that reads '{value}' is written in quotes, \"'{value}'\"."
        raise ConfigError(f"{key} is {value!r}{where}: expected a {wanted.__name__}, such as {default!r}.{hint}")
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def student_options(node: str, values: dict[str, Any]) -> CN:
    """Return the configuration node of a student, TRAINER.<node>, from plain values.

    Raises:
        ConfigError: a key is not one of the node's, or a value does not fit.
    """
    cfg = CN()
    extend_cfg(cfg)
    if node not in cfg.TRAINER:  # of a student from elsewhere, whose defaults are not known here
        return CN(values)
    _merge(cfg.TRAINER[node], values, f"TRAINER.{node}.", " (in the bundle)", cfg)
    return cfg.TRAINER[node]


def check_config(cfg: CN, node: str = "") -> None:
    """Refuse values that no trainer, or not the one that reads `TRAINER.<node>`, can run with.

    Raises:
        ConfigError: the message names the key, its value and what was expected.
    """
    if cfg.INPUT.NO_TRANSFORM or "normalize" not in cfg.INPUT.TRANSFORMS:
        raise ConfigError(
            f"INPUT.TRANSFORMS {tuple(cfg.INPUT.TRANSFORMS)} has no 'normalize': CLIP takes normalised images. Use a trainer "
            "configuration (--config-file configs/trainers/...)."
        )
    check_choice("DATASET.ON_BAD_IMAGE", cfg.DATASET.ON_BAD_IMAGE, ON_BAD_IMAGE)
    options = cfg.TRAINER[node] if node else CN()
    if "PREC" in options:
        check_choice(f"TRAINER.{node}.PREC", options.PREC, STUDENT_PRECISIONS)
    if node == "KDPL":
        check_choice("TRAINER.KDPL.LOSS", options.LOSS, LOSSES)
        check_choice("TRAINER.KDPL.SHOTS", options.SHOTS, SHOTS)
        parse_logit_scale(options.TEACHER_LOGIT_SCALE)
        if options.K_MAX < 2:
            raise ConfigError(f"TRAINER.KDPL.K_MAX is {options.K_MAX}, expected at least 2 names a batch.")
        for key in ("VIEWS", "VIEW_SEED", "MAX_TEXT_ROWS"):
            if options[key] < 0:
                raise ConfigError(f"TRAINER.KDPL.{key} is {options[key]}, expected 0 or more.")
        if options.CACHE_DIR and not options.VIEWS:
            raise ConfigError(
                f"TRAINER.KDPL.CACHE_DIR '{options.CACHE_DIR}' has nothing to keep with VIEWS 0 (augmented afresh each time): "
                "set TRAINER.KDPL.VIEWS to the number of fixed views an image shall have."
            )
        if not 0 < options.TEMPERATURE < float("inf"):
            raise ConfigError(f"TRAINER.KDPL.TEMPERATURE is {options.TEMPERATURE}, expected a positive number.")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ConfigError that names a key, its value, what it can be, and the closest of that, unless `value` is one of it."""
    if value not in choices:
        raise ConfigError(f"{key} '{value}' is not one of {', '.join(choices)}.{did_you_mean(value, choices)}")


def parse_logit_scale(value: str | float) -> str | float:
    """Return "student", "own" or a positive number, from TRAINER.KDPL.TEACHER_LOGIT_SCALE.

    Raises:
        ConfigError: the value is none of these.
    """
    if value in ("student", "own"):
        return value
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ConfigError(f"TRAINER.KDPL.TEACHER_LOGIT_SCALE '{value}' is not 'student', 'own' or a positive number.")
    return number
