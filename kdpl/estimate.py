"""Estimate time and memory of a training run before it starts, on a GPU of a data sheet or on this machine.

    python -m kdpl.estimate --trainer KDPL_CoOp --classes 1000 --gpu h100
    python -m kdpl.estimate --trainer KDPL_PromptSRC --dataset-config-file configs/datasets/sun397.yaml --gpu t4 --views 5

For a GPU the operations of a step of the code that trains are counted, and priced by its data sheet's peak times an assumed
efficiency (experiments/estimate.py). `--gpu cpu` and `--gpu cuda` take two steps on this machine and time the second. Not
included: starting and loading, text features that are computed once (the teacher's, PromptSRC's), and tests.
"""

import argparse
import json
import sys

from yacs.config import CfgNode

from kdpl.clip.loading import describe
from kdpl.common import exits
from kdpl.common.exits import report
from kdpl.common.safe_text import ArgumentParser, print, run_command
from kdpl.config.command_line import CONFIGS, add_learner_flag, merged_cfg
from kdpl.config.keys import ConfigError, check_choice
from kdpl.experiments.estimate import GPUS, Run, estimates, find_machine, print_estimate, summarise
from kdpl.students import Student


def trainer_names() -> list[str]:
    """Return the trainers of all known prompt learners."""
    return [f"{prefix}{name}" for name in Student.known for prefix in ("KDPL_", "")]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="After the flags, KEY VALUE pairs change single settings, as for train.py: OPTIM.MAX_EPOCH 10",
    )
    parser.add_argument("--trainer", default="KDPL_CoOp", help=f"one of {', '.join(trainer_names())}")
    add_learner_flag(parser)
    parser.add_argument("--config-file", default="", help="of the trainer (default: its published settings for ViT-B/32)")
    parser.add_argument("--dataset-config-file", default="", help="of the data set, which has the number of classes")
    parser.add_argument("--backbone", "--student", default="", help="the student CLIP, such as ViT-B/32")
    parser.add_argument("--teacher", default="", help="the teacher CLIP, such as ViT-H-14-quickgelu")
    parser.add_argument("--classes", type=int, help="class names (default: the data set's, else 1000)")
    parser.add_argument("--images", type=int, help="training images (default: 16, or DATASET.NUM_SHOTS, of each class)")
    parser.add_argument("--batch", type=int, help="images in a batch of all GPUs together: DATALOADER.TRAIN_X.BATCH_SIZE")
    parser.add_argument("--epochs", type=int, help="OPTIM.MAX_EPOCH")
    parser.add_argument("--views", type=int, help="fixed views of each image: TRAINER.KDPL.VIEWS")
    parser.add_argument("--warm", action="store_true", help="a cache has all views already (kdpl.cache)")
    parser.add_argument("--precision", default="", help="PREC of student and teacher: fp16, fp32, amp or bf16")
    parser.add_argument("--workers", type=int, help="processes that load images, of each rank: DATALOADER.NUM_WORKERS")
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)}; cpu or cuda (timed here); or another name")
    parser.add_argument("--gpus", type=int, default=1, help="ranks of the run, started by torchrun")
    parser.add_argument("--tflops", type=float, help="dense fp16 peak of the machine, in TFLOP/s")
    parser.add_argument("--bandwidth", type=float, help="of its memory, in GB/s")
    parser.add_argument("--memory", type=float, help="in GB")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object on the last line too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="single settings")
    return parser.parse_args(argv)


def read_run(args: argparse.Namespace) -> Run:
    """Return the run that the command line describes.

    Raises:
        ConfigError, ModelNameError, ValueError: what cannot be run; the message names what to do.
    """
    if args.learner:
        from kdpl.trainers import load_learners

        load_learners(args.learner)
    check_choice("--trainer", args.trainer, trainer_names())
    learner = Student.known[args.trainer.removeprefix("KDPL_")]
    flags = {
        "MODEL.BACKBONE.NAME": args.backbone,
        "TRAINER.KDPL.TEACHER": args.teacher,
        "DATALOADER.TRAIN_X.BATCH_SIZE": args.batch,
        "OPTIM.MAX_EPOCH": args.epochs,
        "TRAINER.KDPL.VIEWS": args.views,
        "DATALOADER.NUM_WORKERS": args.workers,
        "TRAINER.KDPL.PREC": args.precision,
        f"TRAINER.{learner.node}.PREC": args.precision,
    }
    files = (args.dataset_config_file, args.config_file or _published_settings(args.trainer))
    cfg = merged_cfg(files, flags, args.opts)
    cfg.TRAINER.NAME = args.trainer
    learner.check(cfg.TRAINER[learner.node], describe(cfg.MODEL.BACKBONE.NAME), cfg.MODEL.BACKBONE.NAME)
    classes = _classes_of(cfg) if args.classes is None else args.classes
    shots = cfg.DATASET.NUM_SHOTS if cfg.DATASET.NUM_SHOTS > 0 else 16
    images = shots * classes if args.images is None else args.images
    run = Run(cfg, learner, classes, images, args.gpus, args.warm)
    for flag, value in (
        ("--classes", classes),
        ("--images", run.images),
        ("--gpus", args.gpus),
        ("--epochs", cfg.OPTIM.MAX_EPOCH),
    ):
        if value < 1:
            raise ConfigError(f"{flag} is {value}, expected at least 1.")
    if run.batch < run.ranks:
        raise ConfigError(
            f"A batch of {run.batch} images cannot be shared by {run.ranks} GPUs: raise --batch, the images in a batch of all "
            "GPUs together, or lower --gpus."
        )
    return run


def _published_settings(trainer: str) -> str:
    files = sorted((CONFIGS / "trainers" / trainer).glob("vit_b32*.yaml"))
    if not files:
        raise ConfigError(f"There are no published settings of {trainer} in {CONFIGS}: give --config-file.")
    return str(files[0])


def _classes_of(cfg: CfgNode) -> int:
    """Return the number of classes of the data set in a configuration, 1000 without one."""
    if not cfg.DATASET.NAME:
        return 1000
    from kdpl.datasets.coop.catalog import CATALOG

    if cfg.DATASET.NAME not in CATALOG:
        raise ConfigError(f"DATASET.NAME '{cfg.DATASET.NAME}' has an unknown number of classes: give --classes.")
    classes = CATALOG[cfg.DATASET.NAME].classes
    base = -(-classes // 2)
    return {"base": base, "new": classes - base}.get(cfg.DATASET.SUBSAMPLE_CLASSES, classes)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    try:
        run = read_run(args)
        machine = find_machine(args.gpu, args.tflops, args.bandwidth, args.memory)
        several = estimates(run, machine)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    summary = summarise(run, machine, several)
    print_estimate(run, machine, several, summary)
    if args.json:
        print(json.dumps({"estimate": True, **summary, "steps": {k: e._asdict() for k, e in several.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
