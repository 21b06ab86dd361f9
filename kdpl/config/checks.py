"""Checks made before anything heavy is loaded: values out of range, contradictions, the settings of teachers.

This module imports no PyTorch. Checks that depend on the engine, a backbone or a data set are in the trainers' `check_cfg`.
"""

import argparse
import math
import os
from pathlib import Path

from yacs.config import CfgNode

from kdpl.common.safe_text import UnsafeTextError, read_text
from kdpl.config.defaults import KDPL, leaves
from kdpl.config.keys import PRECISIONS, ConfigError, check_choice, check_key

SEPARATOR = " + "  # between several teachers, and between their prompts
DATASET, IMAGENET = "dataset", "imagenet"  # words of TEACHER_TEMPLATES


def check_values(cfg: CfgNode) -> None:
    """Refuse values that are invalid for every trainer.

    Raises:
        ConfigError: the message names the key, its value and what was expected.
    """
    values = dict(leaves(cfg))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} is {value}, expected a finite number.")
        check_key(key, value)
    if values["TEST.FINAL_MODEL"] == "best_val" and values["TEST.NO_TEST"]:
        raise ConfigError("TEST.FINAL_MODEL best_val selects the epoch by a test, but TEST.NO_TEST is True. Set it to False.")
    if values["RESUME"] and not Path(values["RESUME"]).is_dir():
        raise ConfigError(f"RESUME (--resume) '{values['RESUME']}' is not a folder: expected the output folder of a run.")


def check_extended(cfg: CfgNode) -> None:
    """Refuse a configuration without KDPL's nodes.

    Raises:
        ConfigError: the message names the line that is missing in `train.py`.
    """
    if "KDPL" not in cfg.TRAINER or any(key not in cfg.TRAINER.KDPL for key in KDPL):
        raise ConfigError(
            "The configuration has no TRAINER.KDPL, or not all of it: add `import kdpl` and, behind extend_cfg(cfg) in "
            "train.py, `kdpl.extend_cfg(cfg)` (python -m kdpl.install does it)."
        )


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
    """Refuse flags of `train.py` that contradict each other.

    Raises:
        ConfigError: the message names the flags and what to do.
    """
    problem = ""
    if args.eval_only and args.no_train:
        problem = "--eval-only and --no-train contradict each other: the first tests, the second only builds. Drop one."
    elif args.model_dir and not args.eval_only:
        problem = "--model-dir belongs to an evaluation: add --eval-only; to train from its prompts set MODEL.INIT_WEIGHTS."
    elif args.load_epoch is not None and not args.model_dir:
        problem = f"--load-epoch {args.load_epoch} is an epoch of a run: name its output folder in --model-dir."
    elif args.model_dir and not os.path.isdir(args.model_dir):
        problem = f"--model-dir '{args.model_dir}' is not a folder: expected the output folder of a run."
    elif args.fresh and args.model_dir and Path(args.model_dir).resolve().is_relative_to(Path(args.output_dir).resolve()):
        problem = f"--fresh moves the prompts of --model-dir aside, since they are in '{args.output_dir}': choose another."
    if problem:
        raise ConfigError(problem)


# ---------------------------------------------------------------------------------------------------------- teachers


def listed(value: str) -> list[str]:
    """Return the parts of a value that " + " separates; one that is itself an existing file or folder is not taken apart."""
    return [value] if os.path.exists(os.path.expanduser(value)) else [part.strip() for part in value.split(SEPARATOR)]


def teacher_names(value: str) -> list[str]:
    """Return the names of the CLIPs in TRAINER.KDPL.TEACHER: one, or several that " + " separates.

    Raises:
        ConfigError: one of several is empty, or two are the same name or file.
    """
    names = listed(value)
    paths = [os.path.realpath(os.path.expanduser(name)) if name else "" for name in names]
    if len(names) > 1 and ("" in names or len({*paths}) < len(paths)):
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER '{value}' has an empty name, or one twice: expected names such as 'ViT-L/14 + RN50'."
        )
    return names


def prompt_sources(value: str, teachers: list[str]) -> list[str]:
    """Return the folders in TRAINER.KDPL.TEACHER_PROMPTS, one for each teacher; none if it is empty.

    Raises:
        ConfigError: there are more or fewer of them than teachers.
    """
    sources = listed(value) if value else []
    if sources and (len(sources) != len(teachers) or not all(sources)):
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{value}' has {len(sources)} folders for {len(teachers)} teachers, "
            f"{', '.join(teachers)}: expected one for each, in the same order, with ' + ' between them."
        )
    return sources


def read_sentences(path: str | os.PathLike) -> list[str]:
    """Return the sentences of a UTF-8 file, one a line with one `{}` for the name; blank lines are skipped.

    Raises:
        ConfigError: it cannot be read, has no sentence, or a line has not one `{}`.
    """
    where = f"TRAINER.KDPL.TEACHER_TEMPLATES '{path}'"
    try:
        sentences = [line.strip() for line in read_text(Path(path).expanduser()).split("\n") if line.strip()]
    except (OSError, UnsafeTextError) as error:
        expected = f"expected '{DATASET}', '{IMAGENET}' or a file of UTF-8 text, one sentence a line"
        raise ConfigError(f"{where}: {expected} ({error})") from None
    for sentence in sentences or [""]:
        if sentence.count("{}") != 1:
            raise ConfigError(
                f"{where} has the line '{sentence[:80]}', expected one '{{}}' in it, for the class name, as in "
                "'a photo of a {}.'."
            )
    return sentences


def check_teachers(options: CfgNode) -> None:
    """Refuse settings of teachers, `cfg.TRAINER.KDPL`, that are invalid or contradict each other; no CLIP is looked for.

    Raises:
        ConfigError: the message names the key, its value and what to do.
    """
    templates = options.TEACHER_TEMPLATES
    if templates not in ("", DATASET, IMAGENET):
        read_sentences(templates)
    if prompt_sources(options.TEACHER_PROMPTS, teacher_names(options.TEACHER)) and templates:
        raise ConfigError(
            f"TRAINER.KDPL.TEACHER_PROMPTS '{options.TEACHER_PROMPTS}' and TEACHER_TEMPLATES '{templates}' contradict each "
            "other: learned prompts take the place of sentences. Leave one of them empty."
        )


def teacher_label(teacher: str, templates: str = "", prompts: str = "") -> str:
    """Return what results and reports call the teacher: its names, and its sentences or prompts if they are not the default."""
    return teacher + (f", sentences {templates}" if templates else "") + (f", prompts {prompts}" if prompts else "")
