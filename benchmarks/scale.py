"""The tables of docs/scale.md: how the cost of the published ImageNet runs is split, and what all of them take on many GPUs.

All figures are estimates (`kdpl.estimate`). The runs are five variants over three seeds, 16 images of each of the 1,000
classes, with the published batches and epochs. With views, `kdpl.cache` fills the cache first, on all GPUs, once for all runs.
"""

import argparse
import heapq
from functools import cache

from common import print_rows

from kdpl.estimate import GPUS, Machine, Run, find_machine, parse_args, price
from kdpl.experiments.cost import Step, Tally

VARIANTS = ("KDPL_CoOp", "KDPL_CoCoOp", "KDPL_VPT", "KDPL_MaPLe", "KDPL_PromptSRC")
SEEDS = 3
RANKS = 4  # of a run where there are more GPUs than runs; a batch of one image stays on one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", nargs="+", default=["h100", "a100", "t4"], choices=GPUS)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--views", type=int, default=5, help="fixed views of an image")
    parser.add_argument("--json", action="store_true", help="print the rows of all tables as JSON objects, too")
    args = parser.parse_args()
    machines = [find_machine(name) for name in args.machines]
    print("ESTIMATES. FLOP and data of a step\n")
    print_rows([split(variant) for variant in VARIANTS], args.json)
    print(f"\nMinutes of one run on one GPU, augmented afresh / with {args.views} views that a cache has\n")
    print_rows([minutes(variant, machines, args.views) for variant in VARIANTS], args.json)
    print(f"\nHours of {len(VARIANTS) * SEEDS} runs, augmented afresh / with {args.views} views and filling their cache\n")
    print_rows([hours(gpus, machines, args.views) for gpus in args.gpus], args.json)


def described(variant: str, views: int = 0, ranks: int = 1) -> Run:
    flags = ["--trainer", variant, "--views", str(views), "--gpus", str(ranks), *(["--warm"] if views else [])]
    return Run(parse_args(flags))


@cache
def counted(variant: str, cached: bool, ranks: int = 1) -> tuple[Step, Tally]:
    step = described(variant, ranks=ranks).step(cached)
    return step, step.count()


def estimated(variant: str, machine: Machine, views: int, ranks: int = 1) -> tuple[Run, dict]:
    run = described(variant, views, ranks)
    return run, price(run, machine, *counted(variant, views > 0, ranks))


def split(variant: str) -> dict:
    run, tally = described(variant), counted(variant, False)[1]
    total = tally.flops()
    row = {"variant": variant, "batch": run.batch, "steps": run.steps * run.cfg.OPTIM.MAX_EPOCH, "tflop_per_step": total / 1e12}
    for part in ("teacher image", "student image", "text"):
        row[f"{part.replace(' ', '_')}_percent"] = 100 * tally.flops(part) / total
    return row | {"images_decoded": run.batch * row["steps"]}


def run_seconds(variant: str, machine: Machine, views: int, ranks: int = 1) -> float:
    run, e = estimated(variant, machine, views, ranks)
    return run.steps * run.cfg.OPTIM.MAX_EPOCH * e["step"]


def minutes(variant: str, machines: list[Machine], views: int) -> dict:
    row = {"variant": variant}
    for machine in machines:
        fresh, known = (run_seconds(variant, machine, v) / 60 for v in (0, views))
        row[machine.name] = f"{fresh:.0f} / {known:.0f}"
    return row


def hours(gpus: int, machines: list[Machine], views: int) -> dict:
    row = {"gpus": gpus}
    for machine in machines:
        fresh, known = (makespan(gpus, machine, v) for v in (0, views))
        row[machine.name] = f"{fresh / 3600:.1f} / {(known + fill_seconds(gpus, machine, views)) / 3600:.1f}"
    return row


def makespan(gpus: int, machine: Machine, views: int) -> float:
    """Return when the last run ends if each takes the next free GPUs, the longest first."""
    at_once = RANKS if gpus >= RANKS * len(VARIANTS) * SEEDS else 1
    times = [run_seconds(v, machine, views, min(at_once, described(v).batch)) for v in VARIANTS for _ in range(SEEDS)]
    free = [0.0] * (gpus // at_once)
    for seconds in sorted(times, reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def fill_seconds(gpus: int, machine: Machine, views: int) -> float:
    """Return the seconds of putting all seeds' images through teacher and student, in batches of CoOp's size."""
    run, e = estimated("KDPL_CoOp", machine, 0)
    batch = max(e["parts"]["data"], e["parts"]["teacher image"] + e["parts"]["student image"])
    return SEEDS * views * run.images / run.batch * batch / gpus


if __name__ == "__main__":
    main()
