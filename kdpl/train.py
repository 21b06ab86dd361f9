"""Train and evaluate prompt learners, with the flags of CoOp and its forks: `python train.py`, `python -m kdpl.train`."""

import argparse
import os
import sys
from pathlib import Path

from kdpl.common import exits, lock
from kdpl.config.checks import check_flags
from kdpl.config.choices import ConfigError, check_choice
from kdpl.config.command_line import build_cfg, find_dataset_config, parse_args


def check_names(cfg) -> None:
    """Refuse an unknown trainer or data set before anything is loaded."""
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    for key, value, registry in (
        ("TRAINER.NAME (--trainer)", cfg.TRAINER.NAME, TRAINER_REGISTRY),
        ("DATASET.NAME (--dataset-config-file)", cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        check_choice(key, value, sorted(registry.registered_names()))


def check_model(args: argparse.Namespace, cfg) -> None:
    """Refuse an evaluation of a prompt learner whose prompts are not there, before its CLIP is loaded."""
    from dassl.engine import TRAINER_REGISTRY

    from kdpl.training.checkpoint import checkpoint_path

    student = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "student_class", None)
    if not args.eval_only or student is None:
        return
    if not args.model_dir:
        raise ConfigError(
            f"--eval-only with {cfg.TRAINER.NAME} needs the prompts to evaluate: name the output folder of their run in "
            "--model-dir. Without any, the hand-written sentences are evaluated by --trainer ZeroshotCLIP."
        )
    checkpoint_path(args.model_dir, student.model_name, args.load_epoch)


def prepare(args: argparse.Namespace):
    """Check everything that can be checked, then build the trainer."""
    check_flags(args)
    cfg = build_cfg(args, args.dataset_config_file)
    others = [build_cfg(args, find_dataset_config(name, args.dataset_config_file)) for name in args.eval_datasets]

    import kdpl.datasets
    import kdpl.trainers.baselines

    for each in (cfg, *others):
        check_names(each)
    check_model(args, cfg)

    if os.environ.get("RANK", "0") == "0":
        lock.occupy(cfg.OUTPUT_DIR)  # before the log of a run that is going on is moved

    import torch
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed, setup_logger

    from kdpl.common import distributed

    distributed.start(cfg.USE_CUDA)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if distributed.is_main():
        setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print("** Arguments **")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    print(f"** Config **\n{cfg}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, kdpl {kdpl.__version__}. {kdpl.dassl_in_use()}")

    trainer = build_trainer(cfg)
    trainer.command = {"config_name": Path(args.config_file).stem, "model_dir": args.model_dir or None}
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif not args.no_train:
        getattr(trainer, "load_for_training", lambda: None)()  # a fork's own trainer loads everything when it is built
    return trainer, others


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        trainer, others = prepare(args)
    except (ValueError, OSError, KeyError, ImportError, lock.OccupiedError) as error:
        return exits.report(error, exits.OCCUPIED if isinstance(error, lock.OccupiedError) else exits.BAD_INPUT)
    try:
        if args.eval_only:
            if not others:
                trainer.test()
        elif not args.no_train:
            trainer.train()
        for cfg in others:
            trainer.use_dataset(cfg)
            trainer.test()
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except (ValueError, OSError) as error:  # an image that cannot be read, a full disk, prompts that do not fit
        return exits.report(error, exits.FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
