"""Choose every learner's rate and epochs for the embedded benchmark: `python benchmarks/emoji/search.py`.

The same search for all trainers, with labels and without: prompts are learned on the base classes of four target data sets
that no base-to-new table shows, and the mean over these of H on their validation images decides. First the rates at 5
epochs; if the best is the smallest or the largest, one more beyond it; then 10 epochs at the best rate (2 for CoCoOp, whose
epochs cost several times as much). Test images are never read. Runs that are finished are not done again. Writes all
points to search.csv, and the chosen settings into configs/trainers/*/emoji.yaml.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from kdpl.common.files import atomic_write
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.sweep.local import run_local
from kdpl.experiments.sweep.plan import sweep_of

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs" / "trainers"
CHOSEN = HERE / "search.csv"
LEARNERS = ("CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP")
TRAINERS = tuple(prefix + learner for learner in LEARNERS for prefix in ("", "KDPL_"))
DATASETS = ("emoji_sky", "emoji_office", "emoji_creatures", "emoji_places")
RATES = ("0.002", "0.01", "0.05")
BEYOND = {"0.002": "0.0004", "0.05": "0.25"}  # more rates, where the best is the last
EPOCHS, FEWER = ("5", "10"), ("5", "2")

Point = tuple[str, str]  # rate, epochs


def measure(trainers: Sequence[str], point: Point, output: Path, jobs: int) -> dict[str, float]:
    """Return each trainer's H on validation images, mean over the data sets."""
    rate, epochs = point
    options = {
        "OPTIM.LR": rate,
        "OPTIM.MAX_EPOCH": epochs,
        "TEST.SPLIT": "val",
        "TRAINER.KDPL.VIEWS": "8",
        "TRAINER.KDPL.CACHE_DIR": str(output / "features"),
    }
    content = {
        "protocol": "base2new",
        "trainers": list(trainers),
        "datasets": list(DATASETS),
        "seeds": ["1"],
        "config": "emoji",
        "output": str(output / f"lr_{rate}_epochs_{epochs}"),
        "options": options,
        "executor": {"warm": "true", "gpus": "0", "jobs": str(jobs)},
    }
    if run_local(sweep_of(content, "search", "the search")):
        raise SystemExit("Some runs have not finished. The same command resumes them.")
    scores, _ = read_scores([content["output"]], "val")
    means = {}
    for trainer in trainers:
        of = {(s.tested.dataset, s.tested.classes): s.accuracy for s in scores if s.method.name == trainer}
        pairs = [(of[name, "base"], of[name, "new"]) for name in {dataset for dataset, _ in of}]
        if len(pairs) != len(DATASETS):
            raise SystemExit(
                f"{trainer} has results on {len(pairs)} data sets in {content['output']}, expected {len(DATASETS)}."
            )
        means[trainer] = fmean(2 * b * n / (b + n) for b, n in pairs)
    return means


def epochs_of(trainer: str) -> tuple[str, str]:
    """Return the epochs that are tried, the first with all rates and the second with the best."""
    return FEWER if trainer.endswith("CoCoOp") else EPOCHS


def best(points: Mapping[Point, float]) -> Point:
    """Return the point of highest H; of equal ones the fewest epochs, then the smallest rate."""
    return max(points, key=lambda point: (points[point], -int(point[1]), -float(point[0])))


def search(output: Path, jobs: int) -> dict[str, dict[Point, float]]:
    """Return by trainer all points with their H."""
    found: dict[str, dict[Point, float]] = {trainer: {} for trainer in TRAINERS}

    def add(trainers: Sequence[str], point: Point) -> None:
        if trainers:
            for trainer, value in measure(trainers, point, output, jobs).items():
                found[trainer][point] = value

    for rate in RATES:
        add(TRAINERS, (rate, EPOCHS[0]))
    for edge, rate in BEYOND.items():
        add([t for t in TRAINERS if best(found[t])[0] == edge], (rate, EPOCHS[0]))
    chosen = {trainer: best(points)[0] for trainer, points in found.items()}
    for _, epochs in (EPOCHS, FEWER):
        for rate in (*RATES, *BEYOND.values()):
            add([t for t in TRAINERS if chosen[t] == rate and epochs_of(t)[1] == epochs], (rate, epochs))
    return found


def write_table(found: Mapping[str, Mapping[Point, float]]) -> None:
    with atomic_write(CHOSEN, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trainer", "rate", "epochs", "H", "chosen"])
        for trainer, points in found.items():
            for point, value in points.items():
                writer.writerow([trainer, *point, f"{value:.2f}", "yes" if point == best(points) else ""])


def chosen_settings() -> dict[str, Point]:
    """Return by trainer the rate and the epochs that search.csv says."""
    with open(CHOSEN, encoding="utf-8", newline="") as file:
        return {row["trainer"]: (row["rate"], row["epochs"]) for row in csv.DictReader(file) if row["chosen"]}


def write_configs() -> None:
    """Write the chosen settings into the trainers' configuration files."""
    for trainer, (rate, epochs) in chosen_settings().items():
        path = CONFIGS / trainer / "emoji.yaml"
        text = re.sub(r"(?m)^  LR: .*$", f"  LR: {rate}", path.read_text(encoding="utf-8"))
        text = re.sub(r"(?m)^  MAX_EPOCH: .*$", f"  MAX_EPOCH: {epochs}", text)
        with atomic_write(path, "w") as file:
            file.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/search"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    args = parser.parse_args()
    write_table(search(args.output, args.jobs))
    write_configs()
    print(CHOSEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
