"""Checks made before anything heavy is loaded: values out of range, unknown names, contradictions.

This module imports no PyTorch. Checks that depend on the engine, a backbone or a data set are in the trainers' `check_cfg`.
"""

import argparse
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.class_names import read_class_names
from kdpl.config.defaults import HOW_TO_EXTEND, KDPL
from kdpl.config.influence import leaves
from kdpl.config.keys import ALLOWED, KEYS, PRECISIONS, ConfigError, check_choice


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


RANGES: dict[str, Callable[[Any], bool]] = {  # that the table has among its values
    "a number above 0": lambda v: v > 0,
    "a positive number": lambda v: 0 < v < math.inf,
    "0 or more": lambda v: v >= 0,
    "1 or more": lambda v: v >= 1,
    "0 or more and below 1": lambda v: 0 <= v < 1,
    "0 to 1": lambda v: 0 <= v <= 1,
    "0 to 0.5": lambda v: 0 <= v <= 0.5,
    "at least 2 names a batch": lambda v: v >= 2,
    "images per class, or -1 for all": lambda v: v >= -1,
    "1: a prompt trainer takes one view of an image": lambda v: v == 1,
    "below 2**32, or -1 for a random one": lambda v: v < 2**32,
    "two whole numbers above 0": lambda v: len(v) == 2 and all(type(x) is int and x > 0 for x in v),
    "one number for R, G and B": lambda v: len(v) == 3 and all(map(_finite, v)),
    "one number for R, G and B, all above 0": lambda v: len(v) == 3 and all(_finite(x) and x > 0 for x in v),
    "two numbers, 0 to 1": lambda v: len(v) == 2 and all(map(_finite, v)) and 0 < v[0] <= v[1] <= 1,
}


def check_values(cfg: CfgNode) -> None:
    """Refuse values that are invalid for every trainer.

    Raises:
        ConfigError: the message names the key, its value and what was expected.
        FileNotFoundError, ValueError: as `read_class_names`, for DATASET.CLASSNAMES.
    """
    values = dict(leaves(cfg))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} is {value}, expected a finite number.")
    _check_table(values)
    _check_together(values)
    _check_paths(values)


def _check_table(values: Mapping[str, Any]) -> None:
    """Refuse what is not among the values of keys.md; values that are described there in other words are checked elsewhere."""
    for name, value in values.items():
        key = KEYS.get(name)
        if key and key.is_choice:
            check_choice(name, value, key.choices)
        elif key and key.values in RANGES and not RANGES[key.values](value):
            example = f"a value such as {key.default}, " if isinstance(key.default, tuple | list) else ""
            raise ConfigError(f"{name} is {value}, expected {example}{key.values}.")


def _check_together(values: dict[str, Any]) -> None:
    """Refuse settings that contradict each other."""
    if values["OPTIM.NAME"] == "sgd" and values["OPTIM.SGD_NESTEROV"]:
        for key, wrong, expected in (
            ("OPTIM.MOMENTUM", values["OPTIM.MOMENTUM"] == 0, "a momentum above 0"),
            ("OPTIM.SGD_DAMPNING", values["OPTIM.SGD_DAMPNING"] != 0, "no dampening"),
        ):
            if wrong:
                raise ConfigError(
                    f"OPTIM.SGD_NESTEROV True needs {expected}, but {key} is {values[key]}. Change one of the two."
                )
    if values["OPTIM.STAGED_LR"] and not values["OPTIM.NEW_LAYERS"]:
        raise ConfigError(
            "OPTIM.STAGED_LR is True, but OPTIM.NEW_LAYERS is empty. Name the child modules that learn at LR, or set STAGED_LR "
            "to False."
        )
    if values["TEST.FINAL_MODEL"] == "best_val" and values["TEST.NO_TEST"]:
        raise ConfigError(
            "TEST.FINAL_MODEL best_val selects the epoch by validation accuracy, but TEST.NO_TEST is True. "
            "Set it to False, or FINAL_MODEL to last_step."
        )


def _check_paths(values: dict[str, Any]) -> None:
    output = Path(values["OUTPUT_DIR"])
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"OUTPUT_DIR (--output-dir) '{output}' cannot be a folder: '{there}' is a file. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"OUTPUT_DIR (--output-dir) '{output}': '{there}' cannot be written to. Choose another.")
    if values["RESUME"] and not Path(values["RESUME"]).is_dir():
        raise ConfigError(f"RESUME (--resume) '{values['RESUME']}' is not a folder: expected the output folder of a run.")
    weights = values.get("MODEL.INIT_WEIGHTS")
    if weights and not Path(weights).is_file():
        raise ConfigError(f"MODEL.INIT_WEIGHTS '{weights}' is not a file: expected a checkpoint of prompts.")
    if names := values.get("DATASET.CLASSNAMES"):
        read_class_names(names)


def check_extended(cfg: CfgNode) -> None:
    """Refuse a configuration without KDPL's nodes.

    Raises:
        ConfigError: the message names the line that is missing in `train.py`.
    """
    if "KDPL" not in cfg.TRAINER or any(key not in cfg.TRAINER.KDPL for key in KDPL):
        raise ConfigError(f"The configuration has no TRAINER.KDPL, or not all of it: {HOW_TO_EXTEND}")


def check_config(cfg: CfgNode, node: str = "") -> None:
    """Refuse values that are invalid for every trainer, or for the one that reads `TRAINER.<node>`.

    Raises:
        ConfigError: the message names the key, its value and what was expected.
    """
    if cfg.INPUT.NO_TRANSFORM or "normalize" not in cfg.INPUT.TRANSFORMS:
        raise ConfigError(
            f"INPUT.TRANSFORMS {tuple(cfg.INPUT.TRANSFORMS)} has no 'normalize': CLIP takes normalised images. Use a trainer "
            "configuration (--config-file configs/trainers/...)."
        )
    own = ("DATASET.ON_BAD_IMAGE", f"TRAINER.{node}.")  # a fork's configuration was not checked by `check_values`
    _check_table({key: value for key, value in leaves(cfg) if key.startswith(own)})
    options = cfg.TRAINER[node] if node else CfgNode()
    if "PREC" in options:
        check_choice(f"TRAINER.{node}.PREC", options.PREC, PRECISIONS)
    if node == "KDPL":
        parse_logit_scale(options.TEACHER_LOGIT_SCALE)
        for word in options.ALLOW.replace(",", " ").split():
            check_choice("TRAINER.KDPL.ALLOW", word, ALLOWED)
        if options.CACHE_DIR and not options.VIEWS:
            raise ConfigError(
                f"TRAINER.KDPL.CACHE_DIR '{options.CACHE_DIR}' has nothing to store with VIEWS 0 (a new augmentation each "
                "time): set TRAINER.KDPL.VIEWS to the number of fixed views per image."
            )


def parse_logit_scale(value: str | float) -> str | float:
    """Parse TRAINER.KDPL.TEACHER_LOGIT_SCALE: "student", "own" or a positive number.

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


def check_flags(args: argparse.Namespace) -> None:
    """Refuse command-line flags that contradict each other or name a missing folder.

    Raises:
        ConfigError: the message names the flags and what to do.
    """
    if args.eval_only and args.no_train:
        raise ConfigError(
            "--eval-only and --no-train contradict each other: the first tests, the second only builds. Drop one."
        )
    for flag, value in (("--model-dir", args.model_dir), ("--load-epoch", args.load_epoch)):
        if value not in ("", None) and not args.eval_only:
            way = "to train from its prompts set MODEL.INIT_WEIGHTS, to resume its run --resume"
            raise ConfigError(f"{flag} {value} belongs to an evaluation: add --eval-only, or drop it; {way}.")
    if args.eval_only and args.resume:
        raise ConfigError(
            f"--resume '{args.resume}' continues a training, --eval-only does not train: name the folder in --model-dir."
        )
    for flag, value in (("--fresh", args.fresh and args.no_train), ("--more-epochs", args.more_epochs)):
        if value and (args.eval_only or args.no_train):
            raise ConfigError(f"{flag} is for a training: drop it, or --eval-only and --no-train.")
    if args.fresh and args.model_dir:
        tested, output = os.path.realpath(args.model_dir), os.path.realpath(args.output_dir)
        if os.path.commonpath((tested, output)) == output:
            raise ConfigError(
                f"--fresh moves aside what is in --output-dir '{args.output_dir}', and the prompts of --model-dir "
                f"'{args.model_dir}' lie there: choose another --output-dir."
            )
    if args.fresh and (args.more_epochs or args.resume):
        raise ConfigError("--fresh starts over, --more-epochs and --resume continue a run: choose one.")
    if args.load_epoch is not None and not args.model_dir:
        raise ConfigError(
            f"--load-epoch {args.load_epoch} is an epoch of the run in --model-dir: name its output folder there."
        )
    if args.model_dir and not os.path.isdir(args.model_dir):
        what = "a file" if os.path.exists(args.model_dir) else "missing"
        raise ConfigError(
            f"--model-dir '{args.model_dir}' is {what}. Expected the output folder of a run in --model-dir, with "
            "'<model name>/model.pth.tar-<epoch>' in it."
        )
