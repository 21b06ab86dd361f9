"""Choose every learner's rate for the embedded benchmark: `python benchmarks/emoji/search.py`.

The same search for all trainers, with labels and without. Prompts are learned on the base classes of four target data sets
that no base-to-new table shows, from the scenes of one artist; the scenes of the other artist, who was left out, validate
them, and then the other way round. The mean of H over these eight decides. Test images show a third artist and are never
read. If the best rate is the smallest or the largest, one more beyond it is tried. There are as many updates as in the
tables: half the images, twice the epochs. Runs that are finished are not done again. Writes all points to search.csv, and
the chosen rates into configs/trainers/*/emoji.yaml.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

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
ARTISTS = ("noto", "fluent")
RATES = ("0.0004", "0.002", "0.01", "0.05")
BEYOND = {"0.0004": "0.00008", "0.05": "0.25"}  # more rates, where the best is the last
EPOCHS, COCOOP_EPOCHS = 5, 2  # of the tables; CoCoOp's batches are a quarter of the others'

Accuracies = dict[tuple[str, str], float]  # H by artist who was left out and data set


def measure(trainers: Sequence[str], rate: str, output: Path, jobs: int) -> dict[str, Accuracies]:
    """Return each trainer's H on the images of the artist who was left out."""
    found: dict[str, Accuracies] = {trainer: {} for trainer in trainers}
    for left_out in ARTISTS:
        for cocoop in (False, True):
            some = [trainer for trainer in trainers if trainer.endswith("CoCoOp") == cocoop]
            if not some:
                continue
            sweep = sweep_of(content(some, rate, left_out, cocoop, output, jobs), "search", "the search")
            if run_local(sweep):
                raise SystemExit("Some runs have not finished. The same command resumes them.")
            scores, _ = read_scores([sweep.output])
            for trainer in some:
                of = {(s.tested.dataset, s.tested.classes): s.accuracy for s in scores if s.method.name == trainer}
                names = {dataset for dataset, _ in of}
                if len(of) != 2 * len(DATASETS):
                    raise SystemExit(
                        f"{trainer} has {len(of)} results in '{sweep.output}', expected both halves of {len(DATASETS)} data sets."
                    )
                for name in names:
                    base, new = of[name, "base"], of[name, "new"]
                    found[trainer][left_out, name] = 2 * base * new / (base + new)
    return found


def content(trainers: Sequence[str], rate: str, left_out: str, cocoop: bool, output: Path, jobs: int) -> dict:
    """Return a sweep of these trainers that learn from the other artist, as a sweep's file has it."""
    (source,) = set(ARTISTS) - {left_out}
    return {
        "protocol": "base2new",
        "trainers": list(trainers),
        "datasets": list(DATASETS),
        "seeds": ["1"],
        "config": "emoji",
        "output": str(output / f"lr_{rate}_without_{left_out}"),
        "options": {
            "OPTIM.LR": rate,
            "OPTIM.MAX_EPOCH": str(2 * (COCOOP_EPOCHS if cocoop else EPOCHS)),
            "OPTIM.WARMUP_EPOCH": "2",
            "DATASET.SOURCE_DOMAINS": f"('{source}',)",
            "DATASET.TARGET_DOMAINS": f"('{left_out}',)",
            "TRAINER.KDPL.VIEWS": "8",
            "TRAINER.KDPL.CACHE_DIR": str(output / "features"),
        },
        "executor": {"warm": "true", "gpus": "0", "jobs": str(jobs)},
    }


def best(points: Mapping[str, Accuracies]) -> str:
    """Return the rate of highest mean H; of equal ones the smallest."""
    return max(points, key=lambda rate: (fmean(points[rate].values()), -float(rate)))


def search(output: Path, jobs: int) -> dict[str, dict[str, Accuracies]]:
    """Return by trainer and rate the H of all folds."""
    found: dict[str, dict[str, Accuracies]] = {trainer: {} for trainer in TRAINERS}

    def add(trainers: Sequence[str], rate: str) -> None:
        if trainers:
            for trainer, accuracies in measure(trainers, rate, output, jobs).items():
                found[trainer][rate] = accuracies

    for rate in RATES:
        add(TRAINERS, rate)
    for edge, rate in BEYOND.items():
        add([trainer for trainer in TRAINERS if best(found[trainer]) == edge], rate)
    return found


def write_table(found: Mapping[str, Mapping[str, Accuracies]]) -> None:
    """Write all points: the mean H, how far it is below the best rate's, and the standard error of that difference."""
    with atomic_write(CHOSEN, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trainer", "rate", "H", "below", "standard error", "chosen"])
        for trainer, points in found.items():
            top = best(points)
            for rate, accuracies in points.items():
                below = [points[top][fold] - value for fold, value in accuracies.items()]
                numbers = (fmean(accuracies.values()), fmean(below), stdev(below) / len(below) ** 0.5)
                writer.writerow([trainer, rate, *(f"{n:.2f}" for n in numbers), "yes" if rate == top else ""])


def chosen_rates() -> dict[str, str]:
    """Return by trainer the rate that search.csv says."""
    with open(CHOSEN, encoding="utf-8", newline="") as file:
        return {row["trainer"]: row["rate"] for row in csv.DictReader(file) if row["chosen"]}


def write_configs() -> None:
    """Write the chosen rates into the trainers' configuration files; KgCoOp has those of CoOp."""
    rates = chosen_rates()
    for trainer, rate in {**rates, "KgCoOp": rates["CoOp"], "KDPL_KgCoOp": rates["KDPL_CoOp"]}.items():
        path = CONFIGS / trainer / "emoji.yaml"
        text = re.sub(r"(?m)^  LR: .*$", f"  LR: {rate}", path.read_text(encoding="utf-8"))
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
