"""Time and memory of a training run before it starts: steps timed on this machine, or counted and priced by a data sheet."""

import math
import os
from typing import NamedTuple

import torch
from yacs.config import CfgNode

from kdpl import students
from kdpl.common.messages import did_you_mean, short_reason
from kdpl.common.safe_text import print, text_table
from kdpl.config.keys import ConfigError, is_distilled
from kdpl.experiments.cost import PARTS, Step, Tally
from kdpl.text.vocabulary import load_vocabulary

# Assumptions about a GPU that PyTorch drives operation by operation; nothing here was measured by us.
MATMUL_EFFICIENCY = 0.6  # of the vendor's dense peak, in large matrix products
MEMORY_EFFICIENCY = 0.75  # of the vendor's bandwidth
LAUNCH = 8e-6  # seconds for which Python and PyTorch are busy with an operation; a GPU works on earlier ones meanwhile
CONTEXT = 0.6e9  # bytes of the CUDA context, libraries and what the allocator holds in reserve
EXCHANGE = 60e-6  # seconds of a collective operation of a few kB
LINK = 10e9  # bytes a second between ranks
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


class Machine(NamedTuple):
    """A GPU of a data sheet, or this machine, on which steps are timed."""

    name: str
    memory: float  # bytes that one process may fill
    rates: dict[torch.dtype, float]  # FLOP/s of matrix products; none: steps are timed
    bandwidth: float  # B/s of everything else

    @property
    def basis(self) -> str:
        return "data sheet, efficiency assumed" if self.rates else f"measured here, {torch.get_num_threads()} threads"


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
    flops: dict[str, int]  # none where steps are timed
    step: float  # seconds of a step with its data
    memory: dict[str, float]  # bytes at the peak, by what they hold


def find_machine(
    name: str, tflops: float | None = None, bandwidth: float | None = None, memory: float | None = None
) -> Machine:
    """Return a machine by its name; given figures replace its own.

    Args:
        name: one of `GPUS`, one of `MEASURED`, or any other name with all three figures.
        tflops: dense peak in half precision; fp32 is taken for an eighth of it.
        bandwidth, memory: in GB/s and GB.

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
        return Machine(name, memory * 1e9 if memory else own, {}, 0.0)
    if name not in GPUS and None in given.values():
        names = [*GPUS, *MEASURED]
        missing = ", ".join(flag for flag, value in given.items() if value is None)
        raise ConfigError(
            f"--gpu '{name}' is not one of {', '.join(names)}.{did_you_mean(name, names)} "
            f"For a machine of your own give its figures, too ({missing})."
        )
    half, single, own_bandwidth, own_memory = GPUS.get(name, (0, 0, 0, 0))
    bf16 = single if name in WITHOUT_BF16 else half
    if tflops:
        half, single, bf16 = tflops, tflops / 8, tflops
    peaks = {torch.float16: half, torch.float32: single, torch.bfloat16: bf16}
    rates = {dtype: MATMUL_EFFICIENCY * peak * 1e12 for dtype, peak in peaks.items()}
    return Machine(name, (memory or own_memory) * 1e9, rates, MEMORY_EFFICIENCY * (bandwidth or own_bandwidth) * 1e9)


def class_names(count: int) -> list[str]:
    """Return real class names, so that prompts have real lengths: ImageNet's, then nouns."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(IMAGENET_CLASSNAMES)
    if count > len(names):
        names = list(dict.fromkeys([*names, *load_vocabulary("imagenet21k")]))
    if count > len(names):
        raise ConfigError(f"--classes is {count}, expected at most {len(names)}: there are no more names to count with.")
    return names[:count]


def estimates(run: Run, machine: Machine) -> dict[str, Estimate]:
    """Return the estimate of one rank's step in each kind of epoch of the run.

    Raises:
        ConfigError: a step of these CLIPs cannot be run in their precisions, or not on this machine.
    """
    return {kind: estimate(run, machine, kind == "known") for kind in run.epochs}


def estimate(run: Run, machine: Machine, cached: bool) -> Estimate:
    cfg, options = run.cfg, run.cfg.TRAINER.KDPL
    try:
        step = step_of(run, cached, None if machine.rates else machine)
        return price(run, machine, step, step.count()) if machine.rates else _timed(run, step)
    except (RuntimeError, AttributeError) as error:  # from inside a tower: most likely it is not made for half precision
        raise ConfigError(
            f"A step of student '{cfg.MODEL.BACKBONE.NAME}' in {cfg.TRAINER[run.learner.node].PREC} and teacher "
            f"'{options.TEACHER}' in {options.PREC} cannot be run ({short_reason(error)}). Try --precision amp or fp32, or "
            "another CLIP."
        ) from error


def step_of(run: Run, cached: bool, here: Machine | None = None) -> Step:
    """Return one rank's step, without values or on this machine; `cached`: the features of frozen towers are known."""
    cfg, options = run.cfg, run.cfg.TRAINER.KDPL
    names = min(options.K_MAX, run.classes) if is_distilled(cfg.TRAINER.NAME) and options.CLASS_AGNOSTIC else run.classes
    if options.SHARD_CLASSES:
        names = -(-names // run.ranks)
    place = (torch.device(here.name), here.memory) if here else ()
    return Step(cfg, class_names(names), -(-run.batch // run.ranks), cached, *place)


def price(run: Run, machine: Machine, step: Step, tally: Tally) -> Estimate:
    """Return what a step that has been counted takes on a GPU.

    A part of it takes as long as its matrix products at the rate of their precision and all else at the memory's, or as
    its launches, whichever is longer.
    """
    parts = {}
    for part in PARTS:
        products = sum(flops / machine.rates[dtype] for (of, dtype), flops in tally.flops.items() if of == part)
        parts[part] = max(tally.launches[part] * LAUNCH, products + tally.bytes[part] / machine.bandwidth)
    student, teacher, learned = step.sizes
    if run.ranks > 1:
        parts["exchange"] = EXCHANGE + learned / LINK
        if run.cfg.TRAINER.KDPL.SHARD_CLASSES:  # features there, gradients back
            parts["exchange"] += 2 * (EXCHANGE + 4 * run.classes * step.clip.embed_dim / LINK)
    memory = {"student": student, "teacher": teacher, "prompts and momentum": 2 * learned, "activations": tally.peak}
    return _with_data(run, step, parts, {part: tally.total(part) for part in PARTS}, {**memory, "CUDA": CONTEXT})


def _timed(run: Run, step: Step) -> Estimate:
    seconds, peak = step.time()
    return _with_data(run, step, {"compute": seconds}, {}, {"process": peak})


def _with_data(run: Run, step: Step, parts: dict[str, float], flops: dict[str, int], memory: dict[str, float]) -> Estimate:
    compute, workers = sum(parts.values()), run.cfg.DATALOADER.NUM_WORKERS
    data = step.images[0] * IMAGE_SECONDS / max(1, workers) if step.needs_pixels else 0.0
    # Workers load the next images meanwhile.
    return Estimate({**parts, "data": data}, flops, max(compute, data) if workers else compute + data, memory)


def summarise(run: Run, machine: Machine, several: dict[str, Estimate]) -> dict[str, object]:
    """Return seconds of an epoch of each kind and of the run, and GB at the peak."""
    epoch = {kind: run.steps * e.step for kind, e in several.items()}
    peak = max(sum(e.memory.values()) for e in several.values())
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


def print_estimate(run: Run, machine: Machine, several: dict[str, Estimate], summary: dict) -> None:
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
    rows = {part: [n for e in several.values() for n in (e.flops.get(part, 0) / 1e9, 1e3 * e.parts[part])] for part in
            next(iter(several.values())).parts}  # fmt: skip
    rows["step"] = [n for e in several.values() for n in (sum(e.flops.values()) / 1e9, 1e3 * e.step)]
    headers = ["a step, ms", *(f"{unit}, {TITLES[kind]}" for kind in several for unit in ("GFLOP", "ms"))]
    print(text_table([[part, *row] for part, row in rows.items()], headers, floatfmt=",.1f"))
    memory = max((e.memory for e in several.values()), key=lambda sizes: sum(sizes.values()))
    sizes = [*((what, size / 1e9) for what, size in memory.items()), ("peak", summary["peak_gb"])]
    print("", text_table(sizes, ["memory, GB", "GB"], floatfmt=".2f"), sep="\n")
    if not summary["fits"]:
        room = f"one {machine.name} has {machine.memory / 1e9:.0f} GB"
        print("", f"This does not fit: {room}. Lower --batch or MAX_TEXT_ROWS.", sep="\n")
    times = ", ".join(f"{n} epochs {TITLES[k]} of {duration(summary['epoch_s'][k])}" for k, n in summary["epochs"].items())
    print("", f"The run: {times}, together {duration(summary['run_s'])}, without loading and tests", sep="\n")


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
