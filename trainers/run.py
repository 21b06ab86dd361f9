"""A run of the command line: its checks, its trainer, its training and tests."""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed, setup_logger
from yacs.config import CfgNode

import kdpl.datasets
import kdpl.trainers.baselines
from kdpl.common import distributed
from kdpl.common.command import escape_streams
from kdpl.common.files import RECORD, remove_parts
from kdpl.common.outputs import HOLDER, LOCK, TRAINING, check_folder, occupy, take_folder
from kdpl.config.keys import ConfigError, check_choice
from kdpl.config.manifest import compare_settings, config_of, read_manifest, refuse_differences
from kdpl.trainers.checkpoints import WAYS_OUT, saved_states
from kdpl.trainers.prompts import PromptTrainer
from kdpl.training.checkpoint import checkpoint_path

BEFORE = "before-"  # begins the names of folders with what was there before --fresh


def check(args: argparse.Namespace, cfg: CfgNode, others: Sequence[CfgNode] = ()) -> None:
    """Refuse a run whose trainer, data sets, prompts or folder are not what it needs, before anything is loaded.

    Args:
        others: of the data sets of --eval-datasets.
    """
    for each in (cfg, *others):
        check_names(each)
    check_folder(cfg.OUTPUT_DIR, TRAINING)
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    student = getattr(trainer_class, "student_class", None)
    if student is None:
        return
    if args.eval_only:
        if not args.model_dir:
            raise ConfigError(
                f"--eval-only with {cfg.TRAINER.NAME} needs the prompts to evaluate: name the output folder of their run in "
                "--model-dir. To evaluate the hand-written sentences, use --trainer ZeroshotCLIP."
            )
        checkpoint_path(args.model_dir, student.model_name, args.load_epoch)
        return
    folder = Path(cfg.RESUME or cfg.OUTPUT_DIR)
    resumes = not args.no_train and not args.fresh and issubclass(trainer_class, PromptTrainer) and saved_states(folder)
    if resumes and (then := read_manifest(folder)) is not None:  # compared in full when the run resumes
        now = config_of(cfg, student.node, trainer_class.distilled)
        now["SEED"] = now["SEED"] if cfg.SEED >= 0 else then.config.get("SEED")
        refuse_differences(compare_settings(then.config, now), f"'{folder}'", WAYS_OUT)


def check_names(cfg: CfgNode) -> None:
    """Refuse an unknown trainer or data set."""
    for key, value, registry in (
        ("TRAINER.NAME (--trainer)", cfg.TRAINER.NAME, TRAINER_REGISTRY),
        ("DATASET.NAME (--dataset-config-file)", cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        check_choice(key, value, sorted(registry.registered_names()))


def move_aside(folder: Path) -> None:
    """Move what is in an output folder into a new subfolder of it, `before-1` say; the lock stays."""
    entries = [p for p in folder.iterdir() if p.name not in (LOCK, HOLDER, RECORD) and not p.name.startswith(BEFORE)]
    if entries:
        aside = next(path for n in count(1) if not (path := folder / f"{BEFORE}{n}").exists())
        aside.mkdir()
        for path in entries:
            path.rename(aside / path.name)
        print(f"What was in '{folder}' is in '{aside}' now")


def build(args: argparse.Namespace, cfg: CfgNode) -> Any:
    """Take the output folder, open the log, and return the trainer with all that it needs."""
    if os.environ.get("RANK", "0") == "0":
        take_folder(cfg.OUTPUT_DIR, TRAINING)
        occupy(cfg.OUTPUT_DIR)  # before the log of another running process is moved
        if args.fresh:
            move_aside(Path(cfg.OUTPUT_DIR))
    distributed.start(cfg.USE_CUDA)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if distributed.is_main():
        setup_logger(cfg.OUTPUT_DIR)
        escape_streams()
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print("** Arguments **")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    print("** Config **", cfg, sep="\n")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, kdpl {kdpl.__version__}. {kdpl.dassl_in_use()}")
    trainer = build_trainer(cfg)
    if distributed.is_main():
        remove_parts(cfg.OUTPUT_DIR, *(Path(cfg.OUTPUT_DIR, name) for name in trainer.get_model_names()))
    trainer.command = {"config_name": Path(args.config_file).stem, "model_dir": args.model_dir or None}
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif not args.no_train:
        getattr(trainer, "load_for_training", lambda: None)()  # a fork's own trainer loads everything when it is built
    return trainer


def train_and_test(args: argparse.Namespace, trainer: Any, others: Sequence[CfgNode]) -> None:
    """Train unless the flags say otherwise, and test on other data sets, or if nothing is trained on the run's own."""
    if not args.eval_only and not args.no_train:
        trainer.train()
    if args.eval_only and not others:
        trainer.test()
    for cfg in others:
        trainer.use_dataset(cfg)
        trainer.test()
