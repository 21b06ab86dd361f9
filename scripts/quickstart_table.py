"""Print the quickstart's table from the results in its output folder."""

import argparse
import textwrap
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from kdpl.common.messages import signed
from kdpl.experiments.report.cells import Cell, Draws, average, difference
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import cell_of
from kdpl.training.results import read_results

DATASETS = ("emoji_meals", "emoji_leisure")
SEEDS = (1, 2, 3)
ROWS = (  # what stands in the table, its trainer, and its seeds
    ('student, "a photo of a"', "ZeroshotCLIP", SEEDS[:1]),
    ("KDPL_CoOp, no labels", "KDPL_CoOp", SEEDS),
    ("CoOp, labels", "CoOp", SEEDS),
    ("KDPL_VPT, no labels", "KDPL_VPT", SEEDS),
    ("VPT, labels", "VPT", SEEDS),
    ("teacher", "ZeroshotTeacher", SEEDS[:1]),
)
PHOTOS = "emoji_photos_meals"  # photos of one source, 16 of each class, with fixed names
PHOTO_ROWS = (
    ('student, "a photo of a"', "ZeroshotCLIP", "emoji", SEEDS[:1]),
    ("KDPL_KernelHead, no labels", "KDPL_KernelHead", "emoji", SEEDS),
    ("KernelHead, labels", "KernelHead", "emoji", SEEDS),
    ("KDPL_TaskRes, no labels", "KDPL_TaskRes", "photos", SEEDS),
    ("TaskRes, labels", "TaskRes", "photos", SEEDS),
    ("teacher", "ZeroshotTeacher", "emoji", SEEDS[:1]),
)
PHASES = {"base": "train_base", "new": "test_new"}


def read(folder: Path, half: str) -> tuple[float, int, float]:
    """Return accuracy in percent on a class half ("all": on all), number of learned parameters, and training seconds."""
    run = read_results(folder)
    accuracy = next(r["accuracy"] for r in run["results"] if r["classes"] == half and r["split"] == "test")
    return accuracy, run["learned_parameters"], run["train_seconds"]


def row(output: Path, dataset: str, trainer: str, seeds: tuple[int, ...]) -> list[float]:
    """Return base, new, harmonic mean, learned parameters and training seconds of a method, means over seeds."""
    runs = {
        half: [read(output / f"base2new/{phase}/{dataset}/shots_16/{trainer}/emoji/seed{seed}", half) for seed in seeds]
        for half, phase in PHASES.items()
    }
    b, n = (mean(accuracy for accuracy, _, _ in runs[half]) for half in PHASES)
    _, parameters, _ = runs["base"][0]
    return [b, n, 2 * b * n / (b + n), parameters, mean(seconds for _, _, seconds in runs["base"])]


def photos(output: Path) -> str:
    """Return the table of photos of one source: accuracy on new ones, and how much of the gap to the teacher is closed."""
    values = {}
    for name, trainer, config, seeds in PHOTO_ROWS:
        runs = [read(output / f"{PHOTOS}/{trainer}/{config}_16shots/seed{seed}", "all") for seed in seeds]
        accuracy, _, seconds = (mean(numbers) for numbers in zip(*runs, strict=True))
        values[name] = accuracy, runs[0][1], seconds
    low, high = (values[PHOTO_ROWS[i][0]][0] for i in (0, -1))
    table = [[PHOTOS, name, a, (a - low) / (high - low), n, seconds] for name, (a, n, seconds) in values.items()]
    headers = ["data set", "method", "new photos", "of the gap", "learned parameters", "training s"]
    title = f"New photos from the source of the others: accuracy in percent, mean over seeds {', '.join(map(str, SEEDS))}"
    return f"{title}\n\n{tabulate(table, headers=headers, floatfmt=('', '', '.1f', '.0%', ',', '.0f'), intfmt=',')}\n"


def comparison(output: Path) -> str:
    """Return how far learned prompts are above the sentence and above those learned from labels, with intervals."""
    scores, draws = read_scores([output])[0], Draws()

    def over(trainer: str, half: str) -> Cell:
        here = [s for s in scores if s.method.name == trainer and s.tested.classes == half]
        return average(
            [cell_of(s for s in here if s.tested.dataset == name) for name in sorted({s.tested.dataset for s in here})]
        )

    parts = []
    for learner in ("CoOp", "VPT"):
        for other, words in (("ZeroshotCLIP", 'the sentence "a photo of a"'), (learner, f"{learner} with labels")):
            gains = []
            for half in PHASES:
                cell = difference(over(f"KDPL_{learner}", half), over(other, half))
                low, high = cell.interval(draws)
                gains.append(f"{signed(cell.mean, 1)} ({signed(low, 1)} to {signed(high, 1)}) on {half} classes")
            parts.append(f"KDPL_{learner} against {words}: {' and '.join(gains)}.")
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()

    values = {(d, name): row(args.output, d, trainer, seeds) for d in DATASETS for name, trainer, seeds in ROWS}
    table = [[dataset, name, *values[dataset, name]] for dataset in DATASETS for name, _, _ in ROWS]
    for name, _, _ in ROWS:
        b, n = (mean(values[d, name][i] for d in DATASETS) for i in (0, 1))
        parameters, seconds = values[DATASETS[0], name][3], mean(values[d, name][4] for d in DATASETS)
        table.append(["mean", name, b, n, 2 * b * n / (b + n), parameters, seconds])
    print(f"\n{photos(args.output)}")
    headers = ["data set", "method", "base", "new", "H", "learned parameters", "training s"]
    formats = ("", "", ".1f", ".1f", ".1f", ",", ".0f")
    print(
        "Learned on base classes, tested on them and on new ones, by an artist who was left out: accuracy in percent,\n"
        f"mean over seeds {', '.join(map(str, SEEDS))}; H is the harmonic mean\n"
    )
    print(tabulate(table, headers=headers, floatfmt=formats, intfmt=","))
    text = (
        f"Gains in points, with 95 % intervals over seeds and classes. {comparison(args.output)} Two data sets are few: "
        "docs/benchmark.md has the whole benchmark, with six learners and all protocols."
    )
    print(f"\n{textwrap.fill(text, 95)}")


if __name__ == "__main__":
    main()
