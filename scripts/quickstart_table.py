"""Print the quickstart's table from the results in its output folder."""

import argparse
import textwrap
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from kdpl.experiments.results import read_results

ROWS = (  # what stands in the table, and its folder for a class half; {seed} where there are several
    ('student, "a photo of a"', "zeroshot/photo/{dataset}/{half}"),
    ('student, "an icon of a"', "zeroshot/icon/{dataset}/{half}"),
    ("KDPL_CoOp, no labels", "base2new/{phase}/{dataset}/shots_16/KDPL_CoOp/emoji/seed{seed}"),
    ("CoOp, labels", "base2new/{phase}/{dataset}/shots_16/CoOp/emoji/seed{seed}"),
    ("teacher", "zeroshot/teacher/{dataset}/{half}"),
)
PHASES = {"base": "train_base", "new": "test_new"}


def read(folder: Path, half: str) -> tuple[float, int, float]:
    """Return accuracy in percent on a class half, number of learned parameters, and training seconds of a run."""
    run = read_results(folder)
    accuracy = next(r["accuracy"] for r in run["results"] if r["classes"] == half and r["split"] == "test")
    return accuracy, run["learned_parameters"], run["train_seconds"]


def row(output: Path, pattern: str, dataset: str, seeds: list[int]) -> list[float]:
    """Return base, new, harmonic mean, learned parameters and training seconds of a method, means over seeds."""
    folders = {
        half: [output / pattern.format(dataset=dataset, half=half, phase=PHASES[half], seed=seed) for seed in seeds]
        for half in PHASES
    }
    base, new = ([read(folder, half) for folder in folders[half]] for half in PHASES)
    b, n = mean(r[0] for r in base), mean(r[0] for r in new)
    return [b, n, 2 * b * n / (b + n), base[0][1], mean(r[2] for r in base)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    args = parser.parse_args()

    values = {(d, name): row(args.output, pattern, d, args.seeds) for d in args.datasets for name, pattern in ROWS}
    table = []
    for dataset in args.datasets:
        table += [[dataset, name, *values[dataset, name]] for name, _ in ROWS]
    for name, _ in ROWS:
        b, n = (mean(values[d, name][i] for d in args.datasets) for i in (0, 1))
        parameters, seconds = values[args.datasets[0], name][3], mean(values[d, name][4] for d in args.datasets)
        table.append(["mean", name, b, n, 2 * b * n / (b + n), parameters, seconds])
    headers = ["data set", "method", "base", "new", "H", "learned parameters", "training s"]
    formats = ("", "", ".1f", ".1f", ".1f", ",", ".0f")
    print(f"\nTop-1 accuracy in percent, mean over seeds {', '.join(map(str, args.seeds))}; H is the harmonic mean\n")
    print(tabulate(table, headers=headers, floatfmt=formats, intfmt=","))

    photo, icon, kdpl, coop = (values_of(values, args.datasets, name) for name, _ in ROWS[:4])
    text = (
        f"Prompts learned without a label gain {kdpl[0] - photo[0]:+.1f} points on base and {kdpl[1] - photo[1]:+.1f} on new "
        f'classes over the default sentence "a photo of a". Against the best hand-written sentence, "an icon of a": '
        f"{kdpl[0] - icon[0]:+.1f} and {kdpl[1] - icon[1]:+.1f}. Against CoOp, which uses the labels: "
        f"{kdpl[0] - coop[0]:+.1f} and {kdpl[1] - coop[1]:+.1f}. The embedded benchmark shows that the system works end to "
        "end; the paper's comparison needs real CLIPs (docs/benchmark.md)."
    )
    print(f"\n{textwrap.fill(text, 95)}")


def values_of(values: dict, datasets: list[str], name: str) -> tuple[float, float]:
    return mean(values[d, name][0] for d in datasets), mean(values[d, name][1] for d in datasets)


if __name__ == "__main__":
    main()
