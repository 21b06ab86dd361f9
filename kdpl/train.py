"""Train and evaluate prompt learners, with the flags of CoOp and its forks: `python train.py`, `python -m kdpl.train`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from kdpl.common import exits, lock
from kdpl.common.files import remove_parts
from kdpl.common.safe_text import print_safely
from kdpl.common.signals import stopping_at_once
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
    """Refuse an evaluation of missing prompts before a CLIP is loaded."""
    from dassl.engine import TRAINER_REGISTRY

    from kdpl.training.checkpoint import checkpoint_path

    student = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "student_class", None)
    if not args.eval_only or student is None:
        return
    if not args.model_dir:
        raise ConfigError(
            f"--eval-only with {cfg.TRAINER.NAME} needs the prompts to evaluate: name the output folder of their run in "
            "--model-dir. To evaluate the hand-written sentences, use --trainer ZeroshotCLIP."
        )
    checkpoint_path(args.model_dir, student.model_name, args.load_epoch)


def prepare(args: argparse.Namespace):
    """Run all checks, then build the trainer; return it with the configurations of --eval-datasets."""
    check_flags(args)
    if args.learner:
        from kdpl.trainers import load_learners

        load_learners(args.learner)
    cfg = build_cfg(args, args.dataset_config_file)
    others = [build_cfg(args, find_dataset_config(name, args.dataset_config_file)) for name in args.eval_datasets]

    from dassl.engine import TRAINER_REGISTRY

    import kdpl.datasets
    import kdpl.trainers.baselines
    from kdpl.trainers import records
    from kdpl.trainers.prompts import PromptTrainer

    for each in (cfg, *others):
        check_names(each)
    check_model(args, cfg)

    allowed = ("OPTIM.MAX_EPOCH",) if args.more_epochs else ()
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trains = issubclass(trainer_class, PromptTrainer) and not (args.eval_only or args.no_train)
    if trains and not args.fresh:
        records.check_settings(cfg, trainer_class, allowed)
    if os.environ.get("RANK", "0") == "0":
        lock.occupy(cfg.OUTPUT_DIR)  # before the log of another running process is moved
        if args.fresh:
            records.move_aside(Path(cfg.OUTPUT_DIR))

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
        print_safely(sys.stdout)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print("** Arguments **")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    print(f"** Config **\n{cfg}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, kdpl {kdpl.__version__}. {kdpl.dassl_in_use()}")

    trainer = build_trainer(cfg)
    if distributed.is_main():
        remove_parts(cfg.OUTPUT_DIR, *(Path(cfg.OUTPUT_DIR, name) for name in trainer.get_model_names()))
    trainer.command = {"config_name": Path(args.config_file).stem, "model_dir": args.model_dir or None}
    trainer.allowed_changes = allowed
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif not args.no_train:
        getattr(trainer, "load_for_training", lambda: None)()  # a fork's own trainer loads everything when it is built
    return trainer, others


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    try:
        with stopping_at_once("before the training"):
            trainer, others = prepare(args)
    except (ValueError, OSError, KeyError, ImportError, lock.OccupiedError) as error:
        return exits.report(error, exits.OCCUPIED if isinstance(error, lock.OccupiedError) else exits.BAD_INPUT)
    from kdpl.config.manifest import OtherRunError

    try:
        if not args.eval_only and not args.no_train:
            trainer.train()
        with stopping_at_once("during a test"):
            if args.eval_only and not others:
                trainer.test()
            for cfg in others:
                trainer.use_dataset(cfg)
                trainer.test()
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except OtherRunError as error:
        return exits.report(error, exits.BAD_INPUT)
    except (ValueError, OSError, EOFError, RuntimeError) as error:
        reason = lost_worker(error)
        if reason is None and not isinstance(error, (ValueError, OSError)):
            raise
        return exits.report(reason or error, exits.FAILED)  # or: an unreadable image, a full disk, prompts that do not fit
    return 0


def lost_worker(error: Exception) -> OSError | None:
    """Return an error that names a data-loader process that died, if that is what PyTorch reports."""
    message = str(error)
    if isinstance(error, (ConnectionError, EOFError)):  # it died while it handed over a batch
        message = f"DataLoader worker exited unexpectedly: {message or 'end of file'}"
    signs = ("killed by signal", "exited unexpectedly", "shared memory", "</torch_")  # the last two: /dev/shm is full
    if "DataLoader worker" not in message or not any(sign in message for sign in signs):
        return None
    lines = message[message.index("DataLoader worker") :].strip().splitlines()
    worker = lines[-1] if "Original Traceback" in message else lines[0]
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None
    room = (
        "" if free is None or free > 2**26 else f" /dev/shm, which such processes share memory in, has {free // 2**20} MB left."
    )
    return OSError(
        f"A process that loads images ended ({worker}).{room} The system may have ended it for want of memory: lower "
        "DATALOADER.NUM_WORKERS (0 loads in this process), or give the machine or container more memory (--shm-size)."
    )


if __name__ == "__main__":
    sys.exit(main())
