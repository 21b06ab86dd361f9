"""What `kdpl.estimate` says of a training step on this CPU beside what the step takes, in time and memory.

The steps are those of the real trainers (benchmarks/train_step.py), with fresh augmentations and without workers. Rates are
measured in the process that takes the steps, before and after each round of them, so that both see the same machine; nothing
is fitted to a case. A ratio is the estimate over the measurement, of time its median over the rounds.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from common import device_seconds, in_own_process, machine, peak_memory, print_rows
from train_step import build, step_forever

from kdpl import estimate
from kdpl.experiments.estimate import Estimate, count, price
from kdpl.experiments.machines import measure_cpu, resident_memory

STUDENT, TEACHER = "ViT-B/32", "ViT-B/16"
CASES = {  # trainer, classes, batch
    "CoOp, 100 classes": ("KDPL_CoOp", 100, 32),
    "CoOp, 1000 classes": ("KDPL_CoOp", 1000, 32),
    "CoCoOp, 100 classes": ("KDPL_CoCoOp", 100, 4),
    "MaPLe, 100 classes": ("KDPL_MaPLe", 100, 4),
    "PromptSRC, 100 classes": ("KDPL_PromptSRC", 100, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring rates and taking steps, in turns")
    parser.add_argument("--steps", type=int, default=3, help="of a round, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", action="store_true", help="one case, in this process")
    args = parser.parse_args()
    if args.measure:
        print_rows([measure(args.cases[0], args)], True)
        return
    print(f"{machine()}; {STUDENT}-sized student, {TEACHER}-sized teacher, fp32")
    own = ["--rounds", args.rounds, "--steps", args.steps, "--measure", "--cases"]
    print_rows([in_own_process(__file__, *own, case)["rows"][0] for case in args.cases], args.json)


def measure(case: str, args: argparse.Namespace) -> dict:
    trainer_name, classes, batch = CASES[case]
    resident = resident_memory()
    flags = {"trainer": trainer_name, "student": STUDENT, "teacher": TEACHER, "classes": classes, "batch": batch}
    flags |= {"views": 0, "device": "cpu", "precision": "fp32"}
    with tempfile.TemporaryDirectory() as folder:
        steps = step_forever(build(argparse.Namespace(**flags), "views 0", Path(folder), images=2 * batch))
        next(steps)
        next(steps)
        peak = peak_memory()
        command = {"trainer": trainer_name, "backbone": STUDENT, "teacher": TEACHER, "classes": classes, "batch": batch}
        command |= {"workers": 0, "precision": "fp32", "gpu": "cpu"}
        run = estimate.read_run(estimate.parse_args([f"--{flag}={value}" for flag, value in command.items()]))
        cost = count(run, "cpu", cached=False)

        def measure_and_price() -> Estimate:
            return price(run, cost, replace(measure_cpu(), resident=resident))

        estimated, measured = [measure_and_price()], []
        for _ in range(args.rounds):
            measured.append(device_seconds(lambda: next(steps), 1, "cpu", rounds=args.steps))
            estimated.append(measure_and_price())
    around = [(before.step + after.step) / 2 for before, after in pairwise(estimated)]
    memory = sum(estimated[0].memory.values()) / 1e9
    return {
        "case": f"{case}, batch {batch}",
        "estimated_s": statistics.median(around),
        "measured_s": statistics.median(measured),
        "time_ratio": statistics.median(e / m for e, m in zip(around, measured, strict=True)),
        "estimated_gb": memory,
        "measured_gb": peak,
        "memory_ratio": memory / peak,
    }


if __name__ == "__main__":
    main()
