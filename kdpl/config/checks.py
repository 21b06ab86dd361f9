"""Checks made before anything heavy is loaded: values out of range, unknown names, contradictions.

This module imports no PyTorch. Checks that depend on the engine, a backbone or a data set are in the trainers' `check_cfg`.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.safe_text import read_class_names
from kdpl.config.defaults import HOW_TO_EXTEND, KDPL
from kdpl.config.keys import PRECISIONS, ConfigError, check_choice, check_key
from kdpl.config.manifest import leaves


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
        check_key(key, value)
    if values["TEST.FINAL_MODEL"] == "best_val" and values["TEST.NO_TEST"]:
        raise ConfigError(
            "TEST.FINAL_MODEL best_val selects the epoch by validation accuracy, but TEST.NO_TEST is True. "
            "Set it to False, or FINAL_MODEL to last_step."
        )
    _check_paths(values)


def _check_paths(values: dict[str, Any]) -> None:
    output = Path(values["OUTPUT_DIR"])
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is a file"
        raise ConfigError(f"OUTPUT_DIR (--output-dir) '{output}' cannot be a folder: '{there}' {what}. Choose another.")
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
    options = cfg.TRAINER[node] if node else CfgNode()
    # A fork's configuration was not checked by `check_values`.
    for key, value in (("DATASET.ON_BAD_IMAGE", cfg.DATASET.ON_BAD_IMAGE), *leaves(options, f"TRAINER.{node}.")):
        check_key(key, value)
    if "PREC" in options:
        check_choice(f"TRAINER.{node}.PREC", options.PREC, PRECISIONS)
    if node == "KDPL" and options.CACHE_DIR and not options.VIEWS:
        raise ConfigError(
            f"TRAINER.KDPL.CACHE_DIR '{options.CACHE_DIR}' has nothing to store with VIEWS 0 (a new augmentation each "
            "time): set TRAINER.KDPL.VIEWS to the number of fixed views per image."
        )


def check_flags(args: argparse.Namespace) -> None:
    """Refuse command-line flags that contradict each other or name a missing folder.

    Raises:
        ConfigError: the message names the flags and what to do.
    """
    no_training = args.eval_only or args.no_train
    evaluates = [flag for flag, on in (("--model-dir", args.model_dir), ("--load-epoch", args.load_epoch is not None)) if on]
    trains = [f for f, on in (("--resume", args.resume), ("--more-epochs", args.more_epochs), ("--fresh", args.fresh)) if on]
    problem = ""
    if args.eval_only and args.no_train:
        problem = "--eval-only and --no-train contradict each other: the first tests, the second only builds. Drop one."
    elif evaluates and not args.eval_only:
        way = "to train from its prompts set MODEL.INIT_WEIGHTS, to resume its run --resume"
        problem = f"{evaluates[0]} belongs to an evaluation: add --eval-only, or drop it; {way}."
    elif no_training and trains and not (trains == ["--fresh"] and args.eval_only):
        problem = (
            f"{trains[0]} is for a training: drop it, or --eval-only and --no-train. Prompts to evaluate are in --model-dir."
        )
    elif args.fresh and len(trains) > 1:
        problem = "--fresh starts over, --more-epochs and --resume continue a run: choose one."
    elif args.load_epoch is not None and not args.model_dir:
        problem = f"--load-epoch {args.load_epoch} is an epoch of a run: name its output folder in --model-dir."
    elif args.model_dir and not os.path.isdir(args.model_dir):
        what = "a file" if os.path.exists(args.model_dir) else "missing"
        problem = f"--model-dir '{args.model_dir}' is {what}: expected the output folder of a run."
    elif args.fresh and args.model_dir and Path(args.model_dir).resolve().is_relative_to(Path(args.output_dir).resolve()):
        problem = (
            f"--fresh moves aside what is in '{args.output_dir}', and the prompts of --model-dir lie there: choose another."
        )
    if problem:
        raise ConfigError(problem)
