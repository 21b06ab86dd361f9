"""The command line of `train.py`: train and evaluate prompt learners, with the flags of CoOp and its forks."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdpl import exits, lock
from kdpl.checks import check_flags, check_values
from kdpl.config import ConfigError, check_choice, extend_cfg, merge_file, merge_options
from kdpl.suggest import did_you_mean

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DESCRIPTION = "Train and evaluate prompt learners, with the flags of CoOp and its forks."


def parse_args(argv: list[str] | None = None, description: str = DESCRIPTION) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="After the flags, KEY VALUE pairs change single settings: OPTIM.LR 0.01 DATASET.NUM_SHOTS 16",
    )
    parser.add_argument("--root", default="", help="folder of the data sets")
    parser.add_argument("--output-dir", default="", help="folder for log, checkpoints and results")
    parser.add_argument("--resume", default="", help="output folder of the run to go on from (default: --output-dir)")
    parser.add_argument("--seed", type=int, help="fixes all random choices; negative: none is fixed")
    parser.add_argument("--source-domains", nargs="+", help="domains to train on")
    parser.add_argument("--target-domains", nargs="+", help="domains to test on")
    parser.add_argument("--transforms", nargs="+", help="image transforms")
    parser.add_argument("--config-file", default="", help="configuration of the trainer")
    parser.add_argument("--dataset-config-file", default="", help="configuration of the data set")
    parser.add_argument("--trainer", default="", help="name of the trainer, such as KDPL_CoOp")
    parser.add_argument("--backbone", default="", help="the student CLIP, such as ViT-B/32")
    parser.add_argument("--head", default="", help="kept for the forks' scripts: MODEL.HEAD.NAME")
    parser.add_argument("--eval-only", action="store_true", help="evaluate without training")
    parser.add_argument("--model-dir", default="", help="output folder of the run to evaluate, with --eval-only")
    parser.add_argument("--load-epoch", type=int, help="epoch to evaluate (default: the best, else the newest)")
    parser.add_argument("--no-train", action="store_true", help="build everything, but do not train")
    parser.add_argument(
        "--eval-datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets to test on in the same process after the run: names or paths of data set configurations",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="single settings")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"unrecognized arguments: {' '.join(unknown)}.{did_you_mean(unknown[0], flags)}")
    for name in ("eval_datasets", "source_domains", "target_domains", "transforms"):
        # Lists take every word up to the next flag; KEY VALUE pairs behind them are given back.
        values = getattr(args, name) or []
        first = next((i for i, v in enumerate(values) if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", v)), None)
        if first is not None:
            setattr(args, name, values[:first])
            args.opts = values[first:] + args.opts
    return args


def build_cfg(args: argparse.Namespace, dataset_config_file: str):
    """Return the frozen configuration: defaults, data set file, trainer file, flags, then KEY VALUE pairs."""
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    cfg = merged_cfg((dataset_config_file, args.config_file), flags, args.opts)
    check_values(cfg)
    cfg.freeze()
    return cfg


def merged_cfg(files: Sequence[str], flags: Mapping[str, Any], opts: Sequence[str]):
    """Return the defaults with files, flags and KEY VALUE pairs merged into them in this order.

    Args:
        files: YAML files; empty: none.
        flags: values by key; one that is None or empty was not given.

    Raises:
        ConfigError: see `kdpl.config.merge_file` and `merge_options`.
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

    from kdpl.checkpoint import checkpoint_path

    student = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "student_class", None)
    if not args.eval_only or student is None:
        return
    if not args.model_dir:
        raise ConfigError(
            f"--eval-only with {cfg.TRAINER.NAME} needs the prompts to evaluate: name the output folder of their run in "
            "--model-dir. Without any, the hand-written sentences are evaluated by --trainer ZeroshotCLIP."
        )
    checkpoint_path(args.model_dir, student.model_name, args.load_epoch)


def find_dataset_config(name: str, dataset_config_file: str) -> str:
    """Return the file of a data set configuration given by path or by name, looked for beside --dataset-config-file first."""
    if name.endswith(".yaml"):
        return name
    folders = [Path(dataset_config_file).parent] if dataset_config_file else []
    folders.append(CONFIGS / "datasets")
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return str(folder / f"{name}.yaml")
    names = [p.stem for folder in folders for p in folder.glob("*.yaml")]
    raise ConfigError(f"--eval-datasets '{name}' has no configuration file in {folders[0]}.{did_you_mean(name, names)}")


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

    from kdpl import distributed

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
        trainer.load_for_training()
    return trainer, others


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        trainer, others = prepare(args)
    except (ValueError, OSError, KeyError, ImportError, lock.OccupiedError) as error:
        return report(error, exits.OCCUPIED if isinstance(error, lock.OccupiedError) else exits.BAD_INPUT)
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
        return report(error, exits.DIVERGED)
    except (ValueError, OSError) as error:  # an image that cannot be read, a full disk, prompts that do not fit
        return report(error, exits.FAILED)
    return 0


def report(error: Exception, status: int) -> int:
    """Print what went wrong in one message, with the traceback if KDPL_DEBUG is set, and return the exit status."""
    if os.environ.get("KDPL_DEBUG"):
        traceback.print_exc()
    message = str(error)
    if "Original Traceback" in message:  # of a data-loader worker: its own message is at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
