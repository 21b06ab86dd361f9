"""What labels for a few photos add: distillation on 16 photos a class, and cross-entropy on 1, 2 or 4 of them beside it.

    python benchmarks/emoji/photos_labels.py --publish

Class vectors with the settings, data sets and seeds of photos.py, whose runs without labels and with all of them stand beside.
Runs that are finished are not done again. Writes photos_labels.csv, and with --publish its table into docs/benchmark.md.
"""

import argparse
import contextlib
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import photos
from claims import write_csv
from search_photos import LEARNERS
from tabulate import tabulate

from kdpl.config.command_line import build_cfg, parse_args
from kdpl.experiments.report.cells import Cell, Draws, difference
from kdpl.experiments.report.runs import Score, read_scores
from kdpl.experiments.report.tables import cell_of
from kdpl.experiments.sweep.runs import CONFIGS, Step, runs_of

MEASURED = photos.HERE / "photos_labels.csv"
LABELLED = (1, 2, 4)  # photos a class with a label, of those that are distilled on
SHOTS = 16
TRAINER = f"KDPL_{LEARNERS[photos.VECTORS].trainer}"
NONE, ALL = "0", "16, no distillation"
CHART = "Accuracy of class vectors distilled on 16 photos a class, over the number of these with a label"
FIELDS = ("data set", "labels a class", "accuracy", "low", "high", "gain", "gain low", "gain high", "seeds")


def steps(output: Path) -> list[tuple[Step, int]]:
    """Return the trainings, each with the number of labels a class."""
    sweep = photos.sweep_in(f"photos_{SHOTS}", output)
    found = []
    for labels in LABELLED:
        runs = runs_of(replace(sweep, trainers=(TRAINER,), output=output.absolute() / "photos_labels" / str(labels)))
        found += [(step, labels) for run in runs for step in run.steps]
    return found


def train(step: Step, labels: int) -> str:
    """Train as `train.py` does, with the first photos of each class labelled, and test; return the folder."""
    import torch

    import kdpl.datasets
    import kdpl.trainers  # noqa: F401  registers the trainers
    from dassl.engine import build_trainer  # isort: skip
    from dassl.utils import set_random_seed  # isort: skip

    torch.set_num_threads(1)
    cfg = build_cfg(parse_args(step.arguments(step.datasets)), str(CONFIGS / "datasets" / f"{step.datasets[0]}.yaml"))
    step.folder.mkdir(parents=True, exist_ok=True)
    with open(step.folder / "console.txt", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        trainer.command = {"config_name": step.config_file.stem, "model_dir": None}
        trainer.labelled = labelled(trainer, labels)
        trainer.train()
    return str(step.folder)


def labelled(trainer, labels: int):
    """Return the first photos of each class that were drawn, with their labels."""
    import torch

    from kdpl.distill.labelled import Labelled

    dataset, places = trainer.train_loader_x.dataset, defaultdict(list)
    for place, item in enumerate(dataset.data_source):
        places[item.label].append(place)
    chosen = [place for of in places.values() for place in of[:labels]]
    images = trainer.images({"img": torch.stack([dataset[place]["img"] for place in chosen])})
    return Labelled(trainer.student.frozen_image_features(images), torch.tensor([dataset.data_source[i].label for i in chosen]))


def run(output: Path, jobs: int) -> None:
    todo = [pair for pair in steps(output) if pair[0].missing()]
    print(f"{len(todo)} trainings to do", flush=True)
    with ProcessPoolExecutor(jobs, get_context("forkserver")) as pool:
        for n, folder in enumerate(pool.map(train, *zip(*todo, strict=True)) if todo else (), 1):
            print(f"[{n}/{len(todo)}] {folder}", flush=True)


# ------------------------------------------------------------------------------------------------------------- the table


def read(output: Path) -> dict[tuple[str, str], Cell]:
    """Return the accuracies by data set and labels a class, the mean over the data sets included."""
    own = photos.with_means(photos.read(output))
    found = {}
    for labels, kind in ((NONE, (photos.VECTORS, "no labels", str(SHOTS))), (ALL, (photos.VECTORS, "labels", str(SHOTS)))):
        found |= {(dataset, labels): cell for (dataset, *of), cell in own.items() if tuple(of) == kind}
    for labels in LABELLED:
        scores: dict[str, list[Score]] = defaultdict(list)
        for score in read_scores([output / "photos_labels" / str(labels)])[0]:
            scores[score.tested.dataset.removeprefix("EmojiPhotos").lower()].append(score)
        cells = {(name, str(labels), "", ""): cell_of(of) for name, of in scores.items()}
        found |= {(name, of): cell for (name, of, *_), cell in photos.with_means(cells).items()}
    return found


def rows_of(cells: Mapping[tuple[str, str], Cell], draws: Draws) -> list[dict[str, str]]:
    """Return the rows of photos_labels.csv: accuracies, and gains beside distillation alone, with their intervals."""
    order = [NONE, *map(str, LABELLED), ALL]
    rows = []
    for name, labels in sorted(cells, key=lambda k: (k[0] == photos.MEAN, k[0], order.index(k[1]))):
        cell = cells[name, labels]
        gain = difference(cell, cells[name, NONE])
        numbers = *photos.numbers_of(cell, draws), *(photos.numbers_of(gain, draws) if labels != NONE else ("", "", ""))
        rows.append(dict(zip(FIELDS, (name, labels, *numbers, str(len(cell.values))), strict=True)))
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of accuracies, and on the mean the gains with their intervals."""
    kinds = list(dict.fromkeys(row["labels a class"] for row in rows))
    found = {(row["data set"], row["labels a class"]): row for row in rows}
    body = [
        [name, *(f"{float(found[name, kind]['accuracy']):.1f}" for kind in kinds)]
        for name in dict.fromkeys(row["data set"] for row in rows)
    ]
    gains = [found[photos.MEAN, kind] for kind in kinds]
    words = [
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*(float(row[f]) for f in FIELDS[5:8])) if row["gain"] else "" for row in gains
    ]
    return tabulate([*body, ["gain on the mean", *words]], ["data set", *kinds], "github", disable_numparse=True) + "\n"


def committed() -> list[dict[str, str]]:
    with open(MEASURED, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def blocks_of(rows: Sequence[Mapping[str, str]]) -> dict[tuple[Path, str], str]:
    """Return what the benchmark's page shows."""
    from run import DOCS, pictures

    chart = pictures([DOCS / f"figures/photos_labels-{theme}.svg" for theme in ("light", "dark")], CHART)
    return {(DOCS / "benchmark.md", "photos_labels"): f"{chart}\n{table(rows)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--publish", action="store_true", help="also write the table into docs/benchmark.md")
    args = parser.parse_args()
    run(args.output, args.jobs)
    rows = rows_of(read(args.output), Draws())
    write_csv(args.output / "photos_labels.csv", rows)
    print(table(rows))
    if args.publish:
        from run import write_blocks

        write_csv(MEASURED, rows)
        write_blocks(blocks_of(rows))


if __name__ == "__main__":
    main()
