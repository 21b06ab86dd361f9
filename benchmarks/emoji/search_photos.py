"""Choose rate and epochs for photos of one's own, by the validation scenes of four data sets that no table of them shows.

    python benchmarks/emoji/search_photos.py

The same search for each learner with labels and without. Every rate is tried with 12 epochs of 16 photos a class, and further
ones while the best is the smallest or the largest; the highest mean accuracy over the data sets and two seeds decides. The best
rate is tried once more with 24 epochs. A learner has as many with labels as without: those of the higher mean over both. With
other numbers of photos the epochs change, so that the number of updates stays (`epochs_for`), down to the number of epochs
that is best for class vectors from 64 photos a class at the rate of 16. Test images are never read.

Runs that are finished are not done again. Writes all points to search_photos.csv, and what is chosen into
configs/trainers/*/photos.yaml and photos_shared.yaml, which `kdpl fit` reads, too.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from claims import write_csv

from kdpl.common.files import atomic_write
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.sweep.many import do_here, run_sweep
from kdpl.experiments.sweep.plan import sweep_of

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs" / "trainers"
CHOSEN = HERE / "search_photos.csv"
DATASETS = ("emoji_photos_sky", "emoji_photos_office", "emoji_photos_creatures", "emoji_photos_places")
SEEDS = (1, 2)
SHOTS = 16  # photos a class for which the epochs hold
EPOCHS, MORE_EPOCHS = 12, 24
MANY = 64  # photos a class
MANY_EPOCHS = (3, 6, 12, 24)  # that are tried with them: the first have as many updates as 12 of 16


class Learner(NamedTuple):
    """Something that can be learned for fixed class names.

    Attributes:
        trainer: with labels; `KDPL_` before it means without.
        config: the stem of its configuration file.
        rates: that are tried, in rising order, each the factor `step` above the one before.
    """

    trainer: str
    config: str
    rates: tuple[float, ...]
    step: float


LEARNERS = {
    "class vectors": Learner("TaskRes", "photos", (0.02, 0.06, 0.18), 3),
    "class-specific prompts": Learner("CoOp", "photos", (0.01, 0.05, 0.25), 5),
    "shared prompts": Learner("CoOp", "photos_shared", (0.002, 0.02, 0.2), 10),
}
VECTORS = next(iter(LEARNERS))
OF_MANY = "many photos"
SEARCHES = [*LEARNERS, OF_MANY]
LABELS = {"no labels": "KDPL_", "labels": ""}


class Point(NamedTuple):
    rate: float
    epochs: int
    photos: int = SHOTS


Accuracies = dict[tuple[str, int], float]  # on validation images, by data set and seed
Points = dict[Point, Accuracies]


def epochs_for(photos: int, epochs: int) -> int:
    """Return the epochs for a number of photos a class: as many updates as `epochs` of 16, and at least `least_epochs`."""
    return max(least_epochs(), round(epochs * SHOTS / photos))


def least_epochs() -> int:
    """Return the epochs that search_photos.csv has chosen for many photos a class."""
    (epochs,) = {int(row["epochs"]) for row in read_table() if row["chosen"] and row["photos"] == str(MANY)}
    return epochs


def settings(output: Path, epochs: int) -> dict[str, str]:
    """Return the settings of the embedded benchmark that the configuration files leave open."""
    return {
        "OPTIM.MAX_EPOCH": str(epochs),
        "MODEL.BACKBONE.NAME": "emoji_student",
        "DATALOADER.NUM_WORKERS": "0",
        "DATALOADER.TEST.BATCH_SIZE": "256",
        "TRAINER.COOP.PREC": "fp32",
        "TRAINER.TASKRES.PREC": "fp32",
        "TRAINER.KDPL.TEACHER": "emoji_teacher",
        "TRAINER.KDPL.PREC": "fp32",
        "TRAINER.KDPL.VIEWS": "1",
        "TRAINER.KDPL.CACHE_DIR": str(output / "features"),
        "TRAIN.CHECKPOINT_FREQ": "0",
        "TRAIN.PRINT_FREQ": "1000",
    }


def content(
    learner: Learner, trainers: Sequence[str], point: Point, output: Path, jobs: int, options: Mapping[str, str] | None = None
) -> dict:
    """Return the runs of a point, as a sweep's file has them."""
    folder = f"{learner.config}_lr_{point.rate:g}_epochs_{point.epochs}" + f"_photos_{point.photos}" * (point.photos != SHOTS)
    return {
        "protocol": "few_shot",
        "trainers": list(trainers),
        "datasets": list(DATASETS),
        "seeds": [str(seed) for seed in SEEDS],
        "shots": [str(point.photos)],
        "config": learner.config,
        "output": str(output / folder),
        "options": settings(output, point.epochs) | dict(options or {}) | {"OPTIM.LR": f"{point.rate:g}", "TEST.SPLIT": "val"},
        "executor": {"gpus": "0", "jobs": str(jobs)},
    }


def measure(
    learner: Learner, trainers: Sequence[str], point: Point, output: Path, jobs: int, options: Mapping[str, str] | None = None
) -> dict[str, Accuracies]:
    """Return by trainer the accuracies on validation images; `options` are further settings."""
    sweep = sweep_of(content(learner, trainers, point, output, jobs, options), "search", "the search")
    if run_sweep(sweep, do_here()):
        raise SystemExit("Some runs have not finished. The same command resumes them.")
    scores, _ = read_scores([sweep.output], "val")
    found = {}
    for trainer in trainers:
        of = {(s.tested.dataset, s.seed): s.accuracy for s in scores if s.method.name == trainer}
        if len(of) != len(DATASETS) * len(SEEDS):
            raise SystemExit(f"{trainer} has {len(of)} results in {sweep.output}, expected {len(DATASETS) * len(SEEDS)}.")
        found[trainer] = of
    return found


def best(points: Points) -> Point:
    """Return the point of highest mean accuracy; of equal ones the one with fewer epochs, then with the smaller rate."""
    return max(points, key=lambda p: (fmean(points[p].values()), -p.epochs, -p.rate))


def choose(found: Mapping[str, Points]) -> dict[str, Point]:
    """Return by trainer the best rate, with the epochs that are best on the mean over the trainers."""
    rates = {trainer: best({p: a for p, a in points.items() if p.epochs == EPOCHS}).rate for trainer, points in found.items()}

    def mean(epochs: int) -> float:
        return fmean(fmean(found[trainer][Point(rate, epochs)].values()) for trainer, rate in rates.items())

    epochs = MORE_EPOCHS if mean(MORE_EPOCHS) > mean(EPOCHS) else EPOCHS
    return {trainer: Point(rate, epochs) for trainer, rate in rates.items()}


def search(learner: Learner, output: Path, jobs: int) -> dict[str, Points]:
    """Return the points of a learner, by trainer."""
    trainers = [prefix + learner.trainer for prefix in LABELS.values()]
    found: dict[str, Points] = {trainer: {} for trainer in trainers}

    def add(some: Sequence[str], point: Point) -> None:
        for trainer, accuracies in measure(learner, some, point, output, jobs).items() if some else ():
            found[trainer][point] = accuracies

    for rate in learner.rates:
        add(trainers, Point(rate, EPOCHS))
    for trainer in trainers:
        while (beyond := beyond_the_edge(found[trainer], learner.step)) is not None:
            add([trainer], Point(beyond, EPOCHS))
        add([trainer], Point(best(found[trainer]).rate, MORE_EPOCHS))
    return found


def search_many(learner: Learner, rates: Mapping[str, float], output: Path, jobs: int) -> dict[str, Points]:
    """Return the points of a learner with many photos a class, by trainer; each has the rate chosen for 16."""
    return {
        trainer: {
            point: measure(learner, [trainer], point, output, jobs)[trainer]
            for point in (Point(rate, epochs, MANY) for epochs in MANY_EPOCHS)
        }
        for trainer, rate in rates.items()
    }


def choose_many(found: Mapping[str, Points]) -> dict[str, Point]:
    """Return by trainer the point of the epochs that are best on the mean over the trainers, the fewest of equal ones."""

    def mean(epochs: int) -> float:
        return fmean(fmean(of.values()) for points in found.values() for point, of in points.items() if point.epochs == epochs)

    epochs = max(MANY_EPOCHS, key=lambda tried: (mean(tried), -tried))
    return {trainer: next(point for point in points if point.epochs == epochs) for trainer, points in found.items()}


def beyond_the_edge(points: Points, step: float) -> float | None:
    """Return the rate that comes next beside the best one, if that is the smallest or the largest tried; else None."""
    rates, top = sorted(point.rate for point in points), best(points).rate
    if top == rates[0]:
        return float(f"{top / step:.3g}")
    return float(f"{top * step:.3g}") if top == rates[-1] else None


def rows_of(name: str, learner: Learner, found: Mapping[str, Points], tops: Mapping[str, Point]) -> list[dict[str, str]]:
    """Return the rows of the table: the mean, how far it is below the chosen point's, and the standard error of that."""
    rows = []
    for labels, prefix in LABELS.items():
        points = found[prefix + learner.trainer]
        top = tops[prefix + learner.trainer]
        for point, accuracies in sorted(points.items()):
            below = [points[top][fold] - value for fold, value in accuracies.items()]
            rows.append(
                {
                    "learner": name,
                    "trainer": prefix + learner.trainer,
                    "labels": labels,
                    "photos": str(point.photos),
                    "rate": f"{point.rate:g}",
                    "epochs": str(point.epochs),
                    "accuracy": f"{fmean(accuracies.values()):.2f}",
                    "below": f"{fmean(below):.2f}",
                    "standard error": f"{stdev(below) / len(below) ** 0.5:.2f}",
                    "chosen": "yes" if point == top else "",
                }
            )
    return rows


def write_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Write the rows; those of learners that were not searched now stay as they are."""
    new = {(row["learner"], row["photos"]) for row in rows}
    kept = [row for row in read_table() if (row["learner"], row["photos"]) not in new] if CHOSEN.is_file() else []
    order = list(LEARNERS)
    write_csv(CHOSEN, sorted([*kept, *rows], key=lambda row: (int(row["photos"]), order.index(row["learner"]))))


def read_table() -> list[dict[str, str]]:
    with open(CHOSEN, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chosen() -> dict[tuple[str, str], Point]:
    """Return by learner and trainer what search_photos.csv has chosen for 16 photos a class."""
    rows = [row for row in read_table() if row["chosen"] and row["photos"] == str(SHOTS)]
    return {(row["learner"], row["trainer"]): Point(float(row["rate"]), int(row["epochs"])) for row in rows}


def write_configs() -> None:
    """Write what is chosen into the trainers' configuration files."""
    for (name, trainer), point in chosen().items():
        path = CONFIGS / trainer / f"{LEARNERS[name].config}.yaml"
        text = re.sub(r"(?m)^  LR: .*$", f"  LR: {point.rate:g}", path.read_text(encoding="utf-8"))
        with atomic_write(path, "w") as file:
            file.write(re.sub(r"(?m)^  MAX_EPOCH: .*$", f"  MAX_EPOCH: {point.epochs}", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/search_photos"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument(
        "--only", nargs="+", choices=SEARCHES, default=SEARCHES, metavar="SEARCH", help=f"of {', '.join(SEARCHES)}"
    )
    args = parser.parse_args()
    for name in args.only:
        if name == OF_MANY:
            learner = LEARNERS[VECTORS]
            rates = {trainer: point.rate for (of, trainer), point in chosen().items() if of == VECTORS}
            found = search_many(learner, rates, args.output, args.jobs)
            write_table(rows_of(VECTORS, learner, found, choose_many(found)))
        else:
            found = search(LEARNERS[name], args.output, args.jobs)
            write_table(rows_of(name, LEARNERS[name], found, choose(found)))
    write_configs()
    print(CHOSEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
