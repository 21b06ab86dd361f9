"""Time and memory of a training run before it starts: the counted operations of its steps, priced on a machine."""

from typing import NamedTuple

from yacs.config import CfgNode

from kdpl import students
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import print, text_table
from kdpl.config.choices import ConfigError, is_distilled
from kdpl.experiments.cost import PARTS, StepCost, count_step
from kdpl.experiments.machines import EXCHANGE, LINK, Machine
from kdpl.text.vocabulary import load_vocabulary


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
    def epochs(self) -> dict[str, int]:
        """Epochs that compute the features of frozen towers, and epochs that know them; only those there are."""
        total, views = self.cfg.OPTIM.MAX_EPOCH, self.cfg.TRAINER.KDPL.VIEWS
        fresh = 0 if views and self.warm else min(total, views or total)
        return {kind: n for kind, n in (("fresh", fresh), ("known", total - fresh)) if n}


class Estimate(NamedTuple):
    """Seconds and bytes, of one rank."""

    parts: dict[str, float]  # seconds of a step, by part
    flops: dict[str, int]
    step: float  # seconds of a step with its data
    memory: dict[str, float]  # bytes at the peak, by what they hold


def class_names(count: int) -> list[str]:
    """Return real class names, so that prompts have real lengths: ImageNet's, then nouns."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    if count > len(names):
        names = list(dict.fromkeys([*names, *load_vocabulary("imagenet21k")]))
    if count > len(names):
        raise ConfigError(f"--classes is {count}, expected at most {len(names)}: there are no more names to count with.")
    return names[:count]


def count(run: Run, device_type: str, cached: bool) -> StepCost:
    """Return the counts of one rank's step.

    Args:
        cached: the features of frozen towers are known.

    Raises:
        ConfigError: a step of these CLIPs cannot be run in their precisions.
    """
    cfg, options = run.cfg, run.cfg.TRAINER.KDPL
    names = min(options.K_MAX, run.classes) if is_distilled(cfg.TRAINER.NAME) and options.CLASS_AGNOSTIC else run.classes
    if options.SHARD_CLASSES:
        names = -(-names // run.ranks)
    try:
        return count_step(cfg, class_names(names), -(-run.batch // run.ranks), device_type, cached)
    except (RuntimeError, AttributeError) as error:  # from inside a tower: most likely it is not made for half precision
        raise ConfigError(
            f"A step of student '{cfg.MODEL.BACKBONE.NAME}' in {cfg.TRAINER[run.learner.node].PREC} and teacher "
            f"'{options.TEACHER}' in {options.PREC} cannot be run ({short_reason(error)}). Try --precision amp or fp32, or "
            "another CLIP."
        ) from error


def price(run: Run, cost: StepCost, machine: Machine) -> Estimate:
    """Return what a step that has been counted takes on a machine."""
    parts = {part: sum(machine.seconds(op) * n for op, n in cost.tally.ops.items() if op.part == part) for part in PARTS}
    if run.ranks > 1:
        parts["exchange"] = EXCHANGE + cost.learned_bytes / LINK
        if run.cfg.TRAINER.KDPL.SHARD_CLASSES:  # features there, gradients back
            parts["exchange"] += 2 * (EXCHANGE + 4 * run.classes * cost.embed_dim / LINK)
    compute = sum(parts.values())
    workers = run.cfg.DATALOADER.NUM_WORKERS
    data = cost.batch * machine.image_seconds / max(1, workers) if cost.reads_images else 0.0
    step = max(compute, data) if workers else compute + data  # workers load the next images meanwhile
    memory = {
        "student": cost.student_bytes,
        "teacher": cost.teacher_bytes,
        "prompts and momentum": 2 * cost.learned_bytes,
        "activations": cost.tally.peak,
        "process" if machine.device_type == "cpu" else "CUDA": machine.resident,
    }
    return Estimate({**parts, "data": data}, {part: cost.tally.flops(part) for part in PARTS}, step, memory)


def summarise(run: Run, machine: Machine, estimates: dict[str, Estimate]) -> dict[str, object]:
    """Return seconds of an epoch of each kind and of the run, and GB at the peak."""
    epoch = {kind: run.steps * e.step for kind, e in estimates.items()}
    peak = max(sum(e.memory.values()) for e in estimates.values())
    return {
        "trainer": run.cfg.TRAINER.NAME,
        "machine": machine.name,
        "basis": machine.basis,
        "gpus": run.ranks,
        "steps_per_epoch": run.steps,
        "epochs": run.epochs,
        "epoch_s": epoch,
        "run_s": sum(n * epoch[kind] for kind, n in run.epochs.items()),
        "peak_gb": peak / 1e9,
        "fits": peak <= machine.memory,
    }


TITLES = {"fresh": "augmented afresh", "known": "known views"}


def print_estimate(run: Run, machine: Machine, estimates: dict[str, Estimate], summary: dict) -> None:
    cfg = run.cfg
    teacher = f", teacher {cfg.TRAINER.KDPL.TEACHER}" if is_distilled(cfg.TRAINER.NAME) else ""
    print(
        f"ESTIMATE for {cfg.TRAINER.NAME}, student {cfg.MODEL.BACKBONE.NAME}{teacher}",
        f"{run.classes:,} classes, "
        f"{run.images:,} images, batch {run.batch}, {cfg.OPTIM.MAX_EPOCH} epochs of {run.steps:,} steps; "
        f"{run.ranks} x {machine.name} ({machine.basis})",
        sep="\n",
        end="\n\n",
    )
    several = list(estimates.values())
    rows = [
        [part, *(n for e in several for n in (e.flops.get(part, 0) / 1e9, e.parts[part] * 1e3))] for part in several[0].parts
    ]
    rows.append(["step", *(n for e in several for n in (sum(e.flops.values()) / 1e9, e.step * 1e3))])
    headers = ["a step, ms", *(f"{unit}, {TITLES[kind]}" for kind in estimates for unit in ("GFLOP", "ms"))]
    print(text_table(rows, headers, floatfmt=",.1f"))
    memory = max(several, key=lambda e: sum(e.memory.values())).memory
    sizes = [*((what, size / 1e9) for what, size in memory.items()), ("peak", summary["peak_gb"])]
    print("", text_table(sizes, ["memory, GB", "GB"], floatfmt=".2f"), sep="\n")
    if not summary["fits"]:
        room = f"one {machine.name} has {machine.memory / 1e9:.0f} GB"
        print("", f"This does not fit: {room}. Lower --batch or MAX_TEXT_ROWS.", sep="\n")
    times = ", ".join(
        f"{n} epochs {TITLES[kind]} of {duration(summary['epoch_s'][kind])}" for kind, n in summary["epochs"].items()
    )
    print("", f"The run: {times}, together {duration(summary['run_s'])}, without loading and tests", sep="\n")


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
