"""Estimate time and memory of a training run before it starts, on a GPU of a data sheet or on this machine.

    python -m kdpl.estimate --trainer KDPL_CoOp --classes 1000 --gpu h100
    python -m kdpl.estimate --trainer KDPL_PromptSRC --dataset-config-file configs/datasets/sun397.yaml --gpu t4 --views 5

For a GPU a step of the code that trains is counted, and priced by the card's data sheet and an assumed efficiency. `--gpu cpu`
and `--gpu cuda` take two steps on this machine and time the second. Not included: starting and loading, text features that
are computed once (the teacher's, PromptSRC's), what ranks exchange, and tests.
"""

import argparse
import json
import math
import os
import sys
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from yacs.config import CfgNode

from kdpl.clip.loading import describe
from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.exits import report
from kdpl.common.messages import did_you_mean, short_reason
from kdpl.config.command_line import CONFIGS, add_learner_flag, merged_cfg
from kdpl.config.keys import ConfigError, check_choice, is_distilled
from kdpl.experiments.cost import BYTES, LAUNCHES, PARTS, Step, Tally
from kdpl.students import Student
from kdpl.text.vocabulary import load_vocabulary

# Assumptions about a GPU that PyTorch drives operation by operation; nothing here was measured by us.
MATMUL_EFFICIENCY = 0.6  # of the vendor's dense peak, in large matrix products
MEMORY_EFFICIENCY = 0.75  # of the vendor's bandwidth
LAUNCH = 8e-6  # seconds for which Python and PyTorch are busy with an operation; a GPU works on earlier ones meanwhile
CONTEXT = 0.6e9  # bytes of the CUDA context, libraries and what the allocator holds in reserve
IMAGE_SECONDS = 8e-3  # of a core: decode a JPEG of 500 x 375 pixels, crop it, resize it to 224 and flip it
MEASURED = ("cpu", "cuda")  # this machine

# Dense peaks in TFLOP/s of fp16, with fp32 accumulation and without sparsity, and of fp32, that of the plain units, which
# PyTorch uses by default; bandwidth in GB/s; memory in GB.
GPUS = {
    "h100": (989, 67, 3350, 80),  # SXM5
    "h200": (989, 67, 4800, 141),
    "a100": (312, 19.5, 2039, 80),  # SXM4, 80 GB
    "a100-40gb": (312, 19.5, 1555, 40),
    "l40s": (362, 91.6, 864, 48),
    "l4": (121, 30.3, 300, 24),
    "a10": (125, 31.2, 600, 24),
    "v100": (125, 15.7, 900, 32),  # SXM2
    "t4": (65, 8.1, 320, 16),
    "rtx4090": (165, 82.6, 1008, 24),
    "rtx3090": (71, 35.6, 936, 24),
}
WITHOUT_BF16 = ("v100", "t4")  # compute in bf16 as in fp32
TITLES = {"fresh": "augmented afresh", "known": "known views"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags, those of a key of the configuration under its name."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="After the flags, KEY VALUE pairs change single settings, as for train.py: OPTIM.MAX_EPOCH 10",
    )
    parser.add_argument("--trainer", default="KDPL_CoOp", help="name of the trainer, such as KDPL_CoOp")
    add_learner_flag(parser)
    parser.add_argument("--config-file", default="", help="of the trainer (default: its published settings for ViT-B/32)")
    parser.add_argument("--dataset-config-file", default="", help="of the data set, which has the number of classes")
    parser.add_argument("--backbone", "--student", dest="MODEL.BACKBONE.NAME", help="the student CLIP, such as ViT-B/32")
    parser.add_argument("--teacher", dest="TRAINER.KDPL.TEACHER", help="the teacher CLIP, such as ViT-H-14-quickgelu")
    parser.add_argument("--precision", dest="TRAINER.KDPL.PREC", help="of student and teacher: fp16, fp32, amp or bf16")
    parser.add_argument("--classes", type=int, help="class names (default: the data set's, else 1000)")
    parser.add_argument("--images", type=int, help="training images (default: 16, or DATASET.NUM_SHOTS, of each class)")
    batch, workers = "DATALOADER.TRAIN_X.BATCH_SIZE", "DATALOADER.NUM_WORKERS"
    parser.add_argument("--batch", dest=batch, type=int, metavar="N", help="images in a batch of all GPUs together")
    parser.add_argument("--epochs", dest="OPTIM.MAX_EPOCH", type=int, metavar="N", help="epochs")
    parser.add_argument("--views", dest="TRAINER.KDPL.VIEWS", type=int, metavar="N", help="fixed views of each image")
    parser.add_argument("--warm", action="store_true", help="a cache has all views already (kdpl.cache)")
    parser.add_argument("--workers", dest=workers, type=int, metavar="N", help="processes that load images, of each rank")
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)}; cpu or cuda (timed here); or another name")
    parser.add_argument("--gpus", type=int, default=1, help="ranks of the run, started by torchrun")
    parser.add_argument("--tflops", type=float, help="dense fp16 peak of the machine, in TFLOP/s")
    parser.add_argument("--bandwidth", type=float, help="of its memory, in GB/s")
    parser.add_argument("--memory", type=float, help="in GB")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object on the last line too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="single settings")
    return parser.parse_args(argv)


class Machine(NamedTuple):
    """A GPU of a data sheet, or this machine, on which steps are timed."""

    name: str
    memory: float  # bytes that one process may fill
    rates: dict[torch.dtype | str, float]  # FLOP/s of matrix products, BYTES a second of all else; none: steps are timed


def find_machine(
    name: str, tflops: float | None = None, bandwidth: float | None = None, memory: float | None = None
) -> Machine:
    """Return one of `GPUS`, of `MEASURED`, or another machine; given figures, in units of the table, replace its own.

    Raises:
        ConfigError: the name is unknown and a figure is missing, or a figure is not positive.
    """
    given = {"--tflops": tflops, "--bandwidth": bandwidth, "--memory": memory}
    for flag, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{flag} is {value}, expected a positive number.")
    if name in MEASURED:
        if tflops or bandwidth:
            raise ConfigError(f"--gpu {name} is measured: --tflops and --bandwidth are for other machines. Leave them out.")
        if name == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--gpu cuda: PyTorch sees no GPU here. Name one of a data sheet, or use --gpu cpu.")
        own = torch.cuda.mem_get_info()[1] if name == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(name, memory * 1e9 if memory else own, {})
    if name not in GPUS and None in given.values():
        names = [*GPUS, *MEASURED]
        missing = ", ".join(flag for flag, value in given.items() if value is None)
        raise ConfigError(
            f"--gpu '{name}' is not one of {', '.join(names)}.{did_you_mean(name, names)} "
            f"For a machine of your own give its figures, too ({missing})."
        )
    half, single, own_bandwidth, own_memory = GPUS.get(name, (0, 0, 0, 0))
    bf16 = single if name in WITHOUT_BF16 else half
    half, single, bf16 = (tflops, tflops / 8, tflops) if tflops else (half, single, bf16)
    peaks = {torch.float16: half, torch.float32: single, torch.bfloat16: bf16}
    rates = {dtype: MATMUL_EFFICIENCY * peak * 1e12 for dtype, peak in peaks.items()}
    rates[BYTES] = MEMORY_EFFICIENCY * (bandwidth or own_bandwidth) * 1e9
    return Machine(name, (memory or own_memory) * 1e9, rates)


class Run:
    """The training run of a command line.

    Attributes:
        cfg: its configuration.
        classes, images, ranks: their numbers.
        batch: images in a batch of all ranks together.
        steps: of an epoch; the last, incomplete batch is left out.
        epochs: epochs that compute the features of frozen towers, "fresh", and that know them; only those there are.

    Raises:
        ConfigError, ModelNameError, ValueError: what cannot be run; the message names what to do.
    """

    def __init__(self, args: argparse.Namespace):
        if args.learner:
            from kdpl.trainers import load_learners

            load_learners(args.learner)
        check_choice("--trainer", args.trainer, [f"{prefix}{name}" for name in Student.known for prefix in ("KDPL_", "")])
        learner = Student.known[args.trainer.removeprefix("KDPL_")]
        self.cfg = cfg = _configuration(args, learner.node)
        learner.check(cfg.TRAINER[learner.node], describe(cfg.MODEL.BACKBONE.NAME), cfg.MODEL.BACKBONE.NAME)
        self.precision, self.ranks = cfg.TRAINER[learner.node].PREC, args.gpus
        self.classes = _classes_of(cfg) if args.classes is None else args.classes
        shots = cfg.DATASET.NUM_SHOTS if cfg.DATASET.NUM_SHOTS > 0 else 16
        self.images = shots * self.classes if args.images is None else args.images
        total, views = cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.KDPL.VIEWS
        numbers = {"--classes": self.classes, "--images": self.images, "--gpus": self.ranks, "--epochs": total}
        for flag, value in numbers.items():
            if value < 1:
                raise ConfigError(f"{flag} is {value}, expected at least 1.")
        self.batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, self.images)
        if self.batch < self.ranks:
            raise ConfigError(
                f"A batch of {self.batch} images cannot be shared by {self.ranks} GPUs: raise --batch, the images in a "
                "batch of all GPUs together, or lower --gpus."
            )
        self.steps = self.images // self.batch
        fresh = 0 if views and args.warm else min(total, views or total)
        self.epochs = {kind: n for kind, n in (("fresh", fresh), ("known", total - fresh)) if n}

    def step(self, cached: bool, here: Machine | None = None) -> Step:
        """Return one rank's step, without values or on this machine; `cached`: the features of frozen towers are known."""
        options = self.cfg.TRAINER.KDPL
        chosen = is_distilled(self.cfg.TRAINER.NAME) and options.CLASS_AGNOSTIC
        names = min(options.K_MAX, self.classes) if chosen else self.classes
        if options.SHARD_CLASSES:
            names = -(-names // self.ranks)
        place = (torch.device(here.name), here.memory) if here else ()
        return Step(self.cfg, class_names(names), -(-self.batch // self.ranks), cached, *place)


def _configuration(args: argparse.Namespace, node: str) -> CfgNode:
    settings = args.config_file or min(map(str, (CONFIGS / "trainers" / args.trainer).glob("vit_b32*.yaml")), default="")
    if not settings:
        raise ConfigError(f"There are no published settings of {args.trainer} in {CONFIGS}: give --config-file.")
    flags = {key: value for key, value in vars(args).items() if "." in key}
    flags[f"TRAINER.{node}.PREC"] = flags["TRAINER.KDPL.PREC"]
    cfg = merged_cfg((args.dataset_config_file, settings), flags, args.opts)
    cfg.TRAINER.NAME = args.trainer
    return cfg


def _classes_of(cfg: CfgNode) -> int:
    """Return the number of classes of the data set in a configuration, 1000 without one."""
    if not cfg.DATASET.NAME:
        return 1000
    from kdpl.datasets.coop.catalog import CATALOG

    if cfg.DATASET.NAME not in CATALOG:
        raise ConfigError(f"DATASET.NAME '{cfg.DATASET.NAME}' has an unknown number of classes: give --classes.")
    classes = CATALOG[cfg.DATASET.NAME].classes
    return {"base": -(-classes // 2), "new": classes // 2}.get(cfg.DATASET.SUBSAMPLE_CLASSES, classes)


def class_names(count: int) -> list[str]:
    """Return real class names, so that prompts have real lengths: ImageNet's, then nouns."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    if count > len(names):
        names = list(dict.fromkeys([*names, *load_vocabulary("imagenet21k")]))
    if count > len(names):
        raise ConfigError(f"--classes is {count}, expected at most {len(names)}: there are no more names to count with.")
    return names[:count]


def estimate(run: Run, machine: Machine, cached: bool) -> dict[str, Any]:
    """Return the estimate of one rank's step, as `price` does.

    Raises:
        ConfigError: a step of these CLIPs cannot be run in their precisions, or not on this machine.
    """
    options = run.cfg.TRAINER.KDPL
    try:
        step = run.step(cached, None if machine.rates else machine)
        if machine.rates:
            return price(run, machine, step, step.count())
        seconds, peak = step.time()
    except (RuntimeError, AttributeError) as error:  # from inside a tower: most likely it is not made for half precision
        raise ConfigError(
            f"A step of student '{run.cfg.MODEL.BACKBONE.NAME}' in {run.precision} and teacher '{options.TEACHER}' in "
            f"{options.PREC} cannot be run ({short_reason(error)}). Try --precision amp or fp32, or another CLIP."
        ) from error
    return _with_data(run, step, {"compute": seconds}, {}, {"process": peak})


def price(run: Run, machine: Machine, step: Step, tally: Tally) -> dict[str, Any]:
    """Return a counted step's seconds by part, FLOP by part, seconds with its data, and bytes by what they hold.

    A part takes as long as its matrix products at the rate of their precision and all else at the memory's, or as its launches,
    whichever is longer.
    """
    parts = {}
    for part in PARTS:
        work = sum(n / machine.rates[what] for (of, what), n in tally.counts.items() if of == part and what != LAUNCHES)
        parts[part] = max(tally.counts[part, LAUNCHES] * LAUNCH, work)
    memory = {**step.sizes, "activations": tally.peak, "CUDA": CONTEXT}
    return _with_data(run, step, parts, {part: tally.flops(part) for part in PARTS}, memory)


def _with_data(
    run: Run, step: Step, parts: dict[str, float], flops: dict[str, int], memory: dict[str, float]
) -> dict[str, Any]:
    compute, workers = sum(parts.values()), run.cfg.DATALOADER.NUM_WORKERS
    data = step.images[0] * IMAGE_SECONDS / max(1, workers) if step.needs_pixels else 0.0
    seconds = max(compute, data) if workers else compute + data  # workers load the next images meanwhile
    return {"parts": {**parts, "data": data}, "flops": flops, "step": seconds, "memory": memory}


def summarise(run: Run, machine: Machine) -> dict[str, Any]:
    """Return the estimates of a step in each kind of epoch, seconds of the epochs and of the run, and GB at the peak."""
    steps = {kind: estimate(run, machine, kind == "known") for kind in run.epochs}
    epoch = {kind: run.steps * step["step"] for kind, step in steps.items()}
    peak = max(sum(step["memory"].values()) for step in steps.values())
    return {
        "estimate": True,
        "trainer": run.cfg.TRAINER.NAME,
        "machine": machine.name,
        "basis": "data sheet, efficiency assumed" if machine.rates else f"measured here, {torch.get_num_threads()} threads",
        "gpus": run.ranks,
        "steps_per_epoch": run.steps,
        "epochs": run.epochs,
        "epoch_s": epoch,
        "run_s": sum(n * epoch[kind] for kind, n in run.epochs.items()),
        "peak_gb": peak / 1e9,
        "fits": peak <= machine.memory,
        "steps": steps,
    }


def print_estimate(run: Run, machine: Machine, found: dict[str, Any]) -> None:
    cfg, steps = run.cfg, found["steps"]
    teacher = f", teacher {cfg.TRAINER.KDPL.TEACHER}" if is_distilled(cfg.TRAINER.NAME) else ""
    print(f"ESTIMATE for {cfg.TRAINER.NAME}, student {cfg.MODEL.BACKBONE.NAME}{teacher}")
    print(
        f"{run.classes:,} classes, {run.images:,} images, batch {run.batch}, {sum(run.epochs.values())} epochs of "
        f"{run.steps:,} steps; {run.ranks} x {machine.name} ({found['basis']})"
    )
    for kind, step in steps.items():
        rows = [[part, step["flops"].get(part, 0) / 1e9, 1e3 * seconds] for part, seconds in step["parts"].items()]
        rows.append(["step", sum(step["flops"].values()) / 1e9, 1e3 * step["step"]])
        print("", tabulate(rows, [TITLES[kind], "GFLOP", "ms"], floatfmt=",.1f"), sep="\n")
        sizes = [f"{what} {size / 1e9:.2f}" for what, size in step["memory"].items()]
        print(f"memory, GB: {', '.join(sizes)}")
    print("", f"peak memory {found['peak_gb']:.2f} GB of {machine.memory / 1e9:.0f}", sep="\n")
    if not found["fits"]:
        print("This does not fit. Lower --batch or MAX_TEXT_ROWS.")
    times = [f"{n} epochs, {TITLES[kind]}, of {_clock(found['epoch_s'][kind])}" for kind, n in run.epochs.items()]
    print(f"The run: {'; '.join(times)}; together {_clock(found['run_s'])}, without loading and tests")


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    try:
        run, machine = Run(args), find_machine(args.gpu, args.tflops, args.bandwidth, args.memory)
        found = summarise(run, machine)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    print_estimate(run, machine, found)
    if args.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
