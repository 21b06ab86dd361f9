"""The whole embedded benchmark, its tables and what they show: `python benchmarks/emoji/run.py`.

About an hour on two cores. What is finished is not done again, so the same command resumes after any interruption. Writes
tables.md, claims.md and claims.csv into OUTPUT, and its charts into OUTPUT/charts.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from claims import findings, markdown, write_csv

from kdpl.common.files import atomic_write
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.intervals import Draws
from kdpl.experiments.report.plots import draw
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.experiments.sweep.local import run_local
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Sweep

SWEEPS = Path(__file__).resolve().parents[2] / "configs" / "sweeps" / "emoji"
VARIANTS = {  # of the sweep "variant": what is changed
    "fresh": {"VIEWS": "0"},
    "teacher_weak": {"TEACHER": "emoji_student"},
    "teacher_middle": {"TEACHER": "emoji_student + emoji_teacher"},
    "temperature_2": {"TEMPERATURE": "2.0"},
    "loss_forward": {"LOSS": "forward"},
    "loss_reverse": {"LOSS": "reverse"},
}
ORDER = (
    "zeroshot", "sentence", "base2new", "base2new_agnostic", "transfer_zeroshot", "transfer", "transfer_agnostic", "few_shot",
    *VARIANTS,
)  # fmt: skip


def sweep_in(name: str, output: Path) -> Sweep:
    """Return a sweep of the benchmark whose folders lie in `output` in place of output/benchmark."""
    sweep = read_sweep(SWEEPS / f"{'variant' if name in VARIANTS else name}.yaml")
    options = [str(output / "features") if text == "output/benchmark/features" else text for text in sweep.options]
    options += [text for key, value in VARIANTS.get(name, {}).items() for text in (f"TRAINER.KDPL.{key}", value)]
    folder = name if name in VARIANTS else sweep.output.name
    return replace(sweep, name=name, output=(output / folder).absolute(), options=tuple(options))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, metavar="SWEEP", help=f"of {', '.join(ORDER)}")
    args = parser.parse_args()
    for name in args.only:
        print(f"\n=== {name}", flush=True)
        if status := run_local(sweep_in(name, args.output), args.jobs):
            print(f"{name} has not finished. The same command resumes it.", file=sys.stderr)
            return status

    draws = Draws()
    tables = []
    for folder in ("main", "few_shot"):
        if (args.output / folder).is_dir():
            scores, notes = read_scores([args.output / folder])
            print(*(f"Note: {note}" for note in notes), sep="\n", file=sys.stderr)
            tables += all_tables(scores)
    found = findings(args.output)
    texts = {"tables.md": render(tables, "markdown", intervals=True), "claims.md": markdown(found, draws)}
    for name, text in texts.items():
        with atomic_write(args.output / name, "w") as file:
            file.write(text)
    write_csv(args.output / "claims.csv", found, draws)
    draw(tables, args.output / "charts", "svg")
    print("", texts["claims.md"], f"Tables, claims and charts are in {args.output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
