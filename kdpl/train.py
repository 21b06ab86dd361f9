"""Train and evaluate prompt learners, with the flags of CoOp and its forks: `python train.py`, `python -m kdpl.train`."""

import argparse
import sys

from yacs.config import CfgNode

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.config.checks import check_flags
from kdpl.config.command_line import build_cfg, find_dataset_config, parse_args
from kdpl.config.manifest import OtherRunError

LOST_WORKER = ("killed by signal", "exited unexpectedly", "shared memory", "</torch_")  # what PyTorch says of one


def configurations(args: argparse.Namespace) -> tuple[CfgNode, list[CfgNode]]:
    """Return the checked configuration of a run, and those of --eval-datasets."""
    check_flags(args)
    if args.learner:  # whose options the configuration has
        from kdpl.trainers import load_learners

        load_learners(args.learner)
    cfg = build_cfg(args, args.dataset_config_file)
    return cfg, [build_cfg(args, find_dataset_config(name, args.dataset_config_file)) for name in args.eval_datasets]


def main(argv: list[str] | None = None) -> int:
    """Run the command line: check, build, train and test; return the exit status."""
    args = parse_args(argv)
    try:
        cfg, others = configurations(args)
        from kdpl.trainers import run  # with PyTorch and Dassl, once the values are known to be right

        run.check(args, cfg, others)
        trainer = run.build(args, cfg)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    try:
        run.train_and_test(args, trainer, others)
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except OtherRunError as error:
        return exits.report(error, exits.BAD_INPUT)
    except (ValueError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in LOST_WORKER):
            raise
        return exits.report(error, exits.FAILED)  # or: an unreadable image, a full disk, prompts that do not fit
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
