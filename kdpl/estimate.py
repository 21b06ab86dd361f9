"""Estimate what a training run takes, before it is started: time and memory, on a GPU of a data sheet or on this CPU.

    python -m kdpl.estimate --trainer KDPL_CoOp --classes 1000 --gpu h100
    python -m kdpl.estimate --trainer KDPL_PromptSRC --dataset-config-file configs/datasets/sun397.yaml --gpu t4 --views 5

Everything it prints is an estimate. The operations are those of the code that trains (`kdpl.flops`); how fast a GPU does them
is its data sheet's peak times an assumed efficiency (`kdpl.machines`), and on a CPU what a probe of seconds measures. Not in
it: starting and loading, text features that are computed once (the teacher's, PromptSRC's), and tests.
"""

import argparse
import json
import sys
from typing import NamedTuple

from tabulate import tabulate
from yacs.config import CfgNode

from kdpl import students
from kdpl.clip.loading import describe
from kdpl.clip.precision import cpu_has_bf16, effective_precision
from kdpl.common import exits
from kdpl.common.exits import report
from kdpl.common.messages import did_you_mean, short_reason
from kdpl.config.choices import ConfigError
from kdpl.config.command_line import CONFIGS, merged_cfg
from kdpl.experiments.cost import PARTS, Settings, StepCost, count_step
from kdpl.experiments.machines import EXCHANGE, GPUS, LINK, Machine, find_machine

LEARNERS = [name for name in students.__all__ if name not in ("Output", "Student")]
TRAINERS = [f"{prefix}{name}" for name in LEARNERS for prefix in ("KDPL_", "")]


class Run(NamedTuple):
    """A training run, as far as its cost depends on it."""

    cfg: CfgNode
    learner: type[students.Student]
    classes: int
    images: int
    ranks: int
    warm: bool  # a cache has all views already

    @property
    def batch(self) -> int:
        return min(self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, self.images)

    @property
    def steps(self) -> int:
        """Steps in an epoch; the last, incomplete batch is left out."""
        return self.images // self.batch

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs that compute the features of frozen towers, and epochs that know them."""
        total, views = self.cfg.OPTIM.MAX_EPOCH, self.cfg.TRAINER.KDPL.VIEWS
        fresh = 0 if views and self.warm else min(total, views or total)
        return fresh, total - fresh


class Estimate(NamedTuple):
    """Seconds and bytes, of one rank."""

    parts: dict[str, float]  # seconds of a step, by part
    flops: dict[str, int]
    compute: float  # seconds of a step without its data
    step: float
    memory: dict[str, float]  # bytes at the peak, by what they hold


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="After the flags, KEY VALUE pairs change single settings, as for train.py: OPTIM.MAX_EPOCH 10",
    )
    parser.add_argument("--trainer", default="KDPL_CoOp", help=f"one of {', '.join(TRAINERS)}")
    parser.add_argument("--config-file", default="", help="of the trainer (default: its published settings for ViT-B/32)")
    parser.add_argument("--dataset-config-file", default="", help="of the data set, which tells the number of classes")
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
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)}, cpu (measured here), or a name of your own")
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
        ConfigError, ModelNameError, ValueError: what cannot be run; the message names the way out.
    """
    if args.trainer not in TRAINERS:
        raise ConfigError(
            f"--trainer '{args.trainer}' is not one of {', '.join(TRAINERS)}.{did_you_mean(args.trainer, TRAINERS)}"
        )
    learner = getattr(students, args.trainer.removeprefix("KDPL_"))
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
    from kdpl.datasets.catalog import CATALOG

    if cfg.DATASET.NAME not in CATALOG:
        raise ConfigError(f"DATASET.NAME '{cfg.DATASET.NAME}' has an unknown number of classes: give --classes.")
    classes = CATALOG[cfg.DATASET.NAME].classes
    base = -(-classes // 2)
    return {"base": base, "new": classes - base}.get(cfg.DATASET.SUBSAMPLE_CLASSES, classes)


def class_names(count: int) -> list[str]:
    """Return real class names, so that prompts have real lengths: ImageNet's, then nouns."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES[:count])
    if count > len(names):
        from kdpl.text.vocabulary import load_vocabulary

        names = list(dict.fromkeys([*names, *load_vocabulary("imagenet21k")]))[:count]
    if count > len(names):
        raise ConfigError(f"--classes is {count}, expected at most {len(names)}: there are no more names to count with.")
    return names


def settings_of(run: Run, device_type: str, cached: bool) -> Settings:
    """Return what one rank's step is made of."""
    cfg, options = run.cfg, run.cfg.TRAINER.KDPL
    distilled = cfg.TRAINER.NAME.startswith("KDPL_")
    names = min(options.K_MAX, run.classes) if distilled and options.CLASS_AGNOSTIC else run.classes
    if options.SHARD_CLASSES:
        names = -(-names // run.ranks)
    prec = cfg.TRAINER[run.learner.node].PREC
    own = effective_precision(prec, device_type)
    frozen = effective_precision(prec, device_type, frozen=True) if device_type == "cpu" and cpu_has_bf16() else own
    return Settings(
        run.learner,
        cfg.TRAINER[run.learner.node],
        cfg.MODEL.BACKBONE.NAME,
        options.TEACHER if distilled else "",
        class_names(names),
        -(-run.batch // run.ranks),
        own,
        frozen,
        effective_precision(options.PREC, device_type, frozen=True),
        options.MAX_TEXT_ROWS,
        cached,
    )


def _counted(settings: Settings) -> StepCost:
    try:
        return count_step(settings)
    except (RuntimeError, AttributeError) as error:  # from inside a tower: most likely it is not made for half precision
        raise ConfigError(
            f"A step of student '{settings.student}' in {settings.student_precision} and teacher '{settings.teacher}' in "
            f"{settings.teacher_precision} cannot be run ({short_reason(error)}). Try --precision amp or fp32, or another CLIP."
        ) from error


def price(run: Run, settings: Settings, cost: StepCost, machine: Machine) -> Estimate:
    """Return what a step that has been counted takes on a machine."""
    tally = cost.tally
    parts = {part: sum(machine.seconds(op) * n for op, n in tally.ops.items() if op.part == part) for part in PARTS}
    if run.ranks > 1:
        parts["exchange"] = EXCHANGE + cost.learned_bytes / LINK
        if run.cfg.TRAINER.KDPL.SHARD_CLASSES:  # features there, gradients back
            parts["exchange"] += 2 * (EXCHANGE + 4 * run.classes * describe(settings.student).embed_dim / LINK)
    compute = sum(parts.values())
    pixels = not (settings.cached and run.learner.image_features_are_frozen)
    workers = run.cfg.DATALOADER.NUM_WORKERS
    data = settings.batch * machine.image_seconds / max(1, workers) if pixels else 0.0
    step = max(compute, data) if workers else compute + data  # workers load the next images meanwhile
    memory = {
        "student": cost.student_bytes,
        "teacher": cost.teacher_bytes,
        "prompts and momentum": 2 * cost.learned_bytes,
        "text, kept for its gradient": tally.kept["text"],
        "activations": tally.peak - tally.kept["text"],
        "process" if machine.waits else "CUDA": machine.resident,
    }
    flops = {part: tally.flops(part) for part in PARTS}
    return Estimate({**parts, "data": data}, flops, compute, step, memory)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    try:
        run = read_run(args)
        machine = find_machine(args.gpu, args.tflops, args.bandwidth, args.memory)
        estimates = {}
        for kind, epochs in zip(("fresh", "known"), run.epochs, strict=True):
            if epochs:
                settings = settings_of(run, machine.device_type, kind == "known")
                cost = _counted(settings)
                estimates[kind] = price(run, settings, cost, machine)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    summary = summarise(run, machine, estimates)
    print_estimate(run, machine, estimates, summary)
    if args.json:
        print(json.dumps({"estimate": True, **summary, "steps": {k: e._asdict() for k, e in estimates.items()}}))
    return 0


def summarise(run: Run, machine: Machine, estimates: dict[str, Estimate]) -> dict[str, object]:
    """Return seconds of an epoch of each kind and of the run, and GB at the peak."""
    epoch = {kind: run.steps * e.step for kind, e in estimates.items()}
    counts = dict(zip(("fresh", "known"), run.epochs, strict=True))
    peak = max(sum(e.memory.values()) for e in estimates.values())
    return {
        "trainer": run.cfg.TRAINER.NAME,
        "machine": machine.name,
        "basis": machine.basis,
        "gpus": run.ranks,
        "steps_per_epoch": run.steps,
        "epochs": {kind: n for kind, n in counts.items() if n},
        "epoch_s": epoch,
        "run_s": sum(counts[kind] * seconds for kind, seconds in epoch.items()),
        "peak_gb": peak / 1e9,
        "fits": peak <= machine.memory,
    }


TITLES = {"fresh": "augmented afresh", "known": "known views"}


def print_estimate(run: Run, machine: Machine, estimates: dict[str, Estimate], summary: dict) -> None:
    cfg = run.cfg
    teacher = f", teacher {cfg.TRAINER.KDPL.TEACHER}" if cfg.TRAINER.NAME.startswith("KDPL_") else ""
    print(
        f"ESTIMATE for {cfg.TRAINER.NAME}, student {cfg.MODEL.BACKBONE.NAME}{teacher}\n{run.classes:,} classes, "
        f"{run.images:,} images, batch {run.batch}, {cfg.OPTIM.MAX_EPOCH} epochs of {run.steps:,} steps; "
        f"{run.ranks} x {machine.name} ({machine.basis})\n"
    )
    first = next(iter(estimates.values()))
    rows = []
    for part in first.parts:
        row = {"a step, ms": part}
        for kind, e in estimates.items():
            row |= {f"GFLOP, {TITLES[kind]}": e.flops.get(part, 0) / 1e9, f"ms, {TITLES[kind]}": e.parts[part] * 1e3}
        rows.append(row)
    total = {"a step, ms": "step"}
    for kind, e in estimates.items():
        total |= {f"GFLOP, {TITLES[kind]}": sum(e.flops.values()) / 1e9, f"ms, {TITLES[kind]}": e.step * 1e3}
    print(tabulate([*rows, total], headers="keys", floatfmt=",.1f"))
    memory = max(estimates.values(), key=lambda e: sum(e.memory.values())).memory
    table = [*({"memory, GB": what, "GB": size / 1e9} for what, size in memory.items())]
    print("\n" + tabulate([*table, {"memory, GB": "peak", "GB": summary["peak_gb"]}], headers="keys", floatfmt=".2f"))
    if not summary["fits"]:
        print(f"\nThis does not fit: one {machine.name} has {machine.memory / 1e9:.0f} GB. Lower --batch or MAX_TEXT_ROWS.")
    times = ", ".join(
        f"{n} epochs {TITLES[kind]} of {duration(summary['epoch_s'][kind])}" for kind, n in summary["epochs"].items()
    )
    print(f"\nThe run: {times}, together {duration(summary['run_s'])}, without loading and tests")


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
