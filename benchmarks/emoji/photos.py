"""Photos of one's own: what a classifier of fixed names gains from photos of one source, without labels and with them.

    python benchmarks/emoji/run.py --only photos --publish

Six data sets of one artist (configs/datasets/emoji_photos_*.yaml): scenes to learn from, 1, 4, 16 or 64 a class, and new scenes
to test. The gap is that between the student's sentence and the teacher; intervals are the 95 % bootstrap over seeds and
classes. Rates and epochs are those of search_photos.py.
"""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from search_photos import LABELS, LEARNERS, chosen, epochs_for
from tabulate import tabulate

from kdpl.experiments.report.cells import Cell, Draws, average, combine
from kdpl.experiments.report.runs import Score, read_scores
from kdpl.experiments.report.tables import cell_of
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Sweep

HERE = Path(__file__).resolve().parent
SWEEP = HERE.parents[1] / "configs" / "sweeps" / "emoji" / "photos.yaml"
MEASURED = HERE / "photos.csv"
SHOTS = (1, 4, 16, 64)
SENTENCE, TEACHER = '"a photo of a {}."', "teacher"
ZERO_SHOT = {"ZeroshotCLIP": SENTENCE, "ZeroshotTeacher": TEACHER}
MEAN = "mean"
VECTORS, SPECIFIC = list(LEARNERS)[:2]
SPECIFIC_SHOTS, SPECIFIC_SEEDS = 16, 2  # a text pass in every step: at one number of photos alone, with fewer seeds
# Sweeps: what is learned, and from how many photos a class; "zero-shot" learns nothing.
SWEEPS = {"photos_zeroshot": ("", SPECIFIC_SHOTS), **{f"photos_{n}": (VECTORS, n) for n in SHOTS},
          "photos_specific": (SPECIFIC, SPECIFIC_SHOTS)}  # fmt: skip
FIELDS = ("data set", "learner", "labels", "photos", "accuracy", "low", "high", "share", "share low", "share high", "seeds")

Key = tuple[str, str, str, str]  # data set, learner, labels and photos
Row = Mapping[str, str]


def sweep_in(name: str, output: Path) -> Sweep:
    """Return a sweep of the protocol whose folders lie in `output` in place of output/benchmark."""
    sweep, (learner, shots) = read_sweep(SWEEP), SWEEPS[name]
    settings = dict(zip(sweep.options[::2], sweep.options[1::2], strict=True))
    settings["TRAINER.KDPL.CACHE_DIR"] = str(output / "features")
    trainers, seeds = tuple(ZERO_SHOT), sweep.seeds[:1]
    if learner:
        trainers = tuple(prefix + LEARNERS[learner].trainer for prefix in LABELS.values())
        seeds = sweep.seeds[:SPECIFIC_SEEDS] if learner == SPECIFIC else sweep.seeds
        (epochs,) = {point.epochs for (each, _), point in chosen().items() if each == learner}
        settings["OPTIM.MAX_EPOCH"] = str(epochs_for(shots, epochs))
    options = tuple(text for pair in settings.items() for text in pair)
    folder = (output / sweep.output.name).absolute()
    return replace(sweep, name=name, trainers=trainers, seeds=seeds, shots=(shots,), output=folder, options=options)


def read(output: Path) -> dict[Key, Cell]:
    """Return the accuracies of the runs that are there, of seeds that all data sets have which have any."""
    try:
        scores, _ = read_scores([output / "photos"])
    except FileNotFoundError:
        return {}
    grouped: dict[Key, list[Score]] = {}
    names = {prefix + LEARNERS[name].trainer: (name, of) for of, prefix in LABELS.items() for name in (VECTORS, SPECIFIC)}
    for score in scores:
        trainer = score.method.name
        kind = (ZERO_SHOT[trainer], "", "") if trainer in ZERO_SHOT else (*names[trainer], str(score.shots))
        grouped.setdefault((score.tested.dataset.removeprefix("EmojiPhotos").lower(), *kind), []).append(score)
    common: dict[tuple[str, ...], set[int]] = {}
    for (_, *kind), group in grouped.items():
        seeds = {score.seed for score in group}
        common[tuple(kind)] = common.get(tuple(kind), seeds) & seeds
    kept = {key: [score for score in group if score.seed in common[key[1:]]] for key, group in grouped.items()}
    return {key: cell_of(group) for key, group in kept.items() if group}


def with_means(cells: Mapping[Key, Cell]) -> dict[Key, Cell]:
    """Return the cells, and their mean over the data sets where all have them."""
    datasets = sorted({dataset for dataset, *_ in cells})
    kinds = list(dict.fromkeys(tuple(kind) for _, *kind in cells))
    means = {(MEAN, *kind): average([cells.get((dataset, *kind)) for dataset in datasets]) for kind in kinds}
    return dict(cells) | {key: cell for key, cell in means.items() if cell is not None}


def share(cell: Cell, sentence: Cell, teacher: Cell) -> Cell:
    """Return how much of the gap between the sentence and the teacher is closed, in percent."""
    return combine([cell, sentence, teacher], lambda v: 100 * (v[0] - v[1]) / (v[2] - v[1]))


def rows_of(cells: Mapping[Key, Cell], draws: Draws) -> list[dict[str, str]]:
    """Return the rows of photos.csv: accuracies and shares of the gap, with their intervals."""
    cells, rows = with_means(cells), []
    order = [SENTENCE, *LEARNERS, TEACHER]
    for key in sorted(cells, key=lambda k: (k[0] == MEAN, k[0], order.index(k[1]), k[2] == "labels", int(k[3] or 0))):
        dataset, learner, labels, photos = key
        numbers = numbers_of(cells[key], draws)
        ends = cells.get((dataset, SENTENCE, "", "")), cells.get((dataset, TEACHER, "", ""))
        shares = numbers_of(share(cells[key], *ends), draws) if photos and all(ends) else ("", "", "")
        seeds = str(len(cells[key].values)) if photos else ""
        rows.append(dict(zip(FIELDS, (dataset, learner, labels, photos, *numbers, *shares, seeds), strict=True)))
    return rows


def numbers_of(cell: Cell, draws: Draws) -> tuple[str, str, str]:
    bounds = cell.interval(draws)
    if bounds is None:
        raise SystemExit("Results lack the counts by class. Test these runs again.")
    return tuple(f"{value:.2f}" for value in (cell.mean, *bounds))


def read_csv() -> list[dict[str, str]]:
    with open(MEASURED, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ what the pages show


class Measured:
    """The rows of photos.csv by what they are of."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = {(row["data set"], row["learner"], row["labels"], row["photos"]): row for row in rows}
        self.datasets = list(dict.fromkeys(row["data set"] for row in rows))

    def number(self, dataset: str, learner: str, labels: str = "", photos: object = "", field: str = "accuracy") -> float:
        return float(self.rows[dataset, learner, labels, str(photos)][field])

    def share(self, dataset: str, learner: str, labels: str, photos: int) -> str:
        row = self.rows.get((dataset, learner, labels, str(photos)))
        return "{:.0f} ({:.0f} to {:.0f})".format(*(float(row[f]) for f in FIELDS[7:10])) if row else ""


def accuracies(measured: Measured) -> str:
    """Return the table of accuracies."""
    kinds = [(SENTENCE, "", ""), *((VECTORS, words, str(n)) for words in LABELS for n in SHOTS), (TEACHER, "", "")]
    head = ["data set", SENTENCE, *(f"{n}, {words}" for words in LABELS for n in SHOTS), TEACHER]
    body = [[name, *(f"{measured.number(name, *kind):.1f}" for kind in kinds)] for name in measured.datasets]
    return tabulate(body, head, "github", disable_numparse=True)


def shares(measured: Measured) -> str:
    """Return the table of the share of the gap that is closed."""
    kinds = [(VECTORS, "no labels", n) for n in SHOTS] + [(SPECIFIC, "no labels", SPECIFIC_SHOTS)]
    kinds += [(learner, "labels", SPECIFIC_SHOTS) for learner in (VECTORS, SPECIFIC)]
    head = ["data set", *(f"{learner}, {n}, {words}" for learner, words, n in kinds)]
    body = [[name, *(measured.share(name, learner, words, n) for learner, words, n in kinds)] for name in measured.datasets]
    return tabulate(body, head, "github", disable_numparse=True)


def words(rows: Sequence[Row]) -> str:
    """Return the result in two sentences."""
    m = Measured(rows)
    sentence, teacher = (m.number(MEAN, kind) for kind in (SENTENCE, TEACHER))
    at = {n: m.number(MEAN, VECTORS, "no labels", n) for n in SHOTS}
    gap = {n: m.number(MEAN, VECTORS, "no labels", n, "share") for n in SHOTS}
    return paragraph(
        f"From 16 photos a class without a label the student goes from {sentence:.1f} to {at[16]:.1f} % on new photos of "
        f"the same source, and from 64 to {at[64]:.1f} %; the teacher reaches {teacher:.1f} % (mean over {len(m.datasets) - 1} "
        f"data sets of the embedded benchmark). That closes {gap[16]:.0f} and {gap[64]:.0f} % of the gap. With a label for "
        f"each of the 16 photos the same learner gets {m.number(MEAN, VECTORS, 'labels', 16):.1f} %."
    )


def verdict(rows: Sequence[Row]) -> str:
    """Return whether the shares are what was asked for before they were measured, and where they are not."""
    m = Measured(rows)
    sets = [name for name in m.datasets if name != MEAN]
    at_16, at_1 = ({name: m.number(name, VECTORS, "no labels", n, "share") for name in sets} for n in (16, 1))
    below = [f"{name} ({value:.0f} %)" for name, value in at_16.items() if value < 50]
    half = f"not on {', '.join(below)}" if below else f"on each of the {len(sets)}, least on {least(at_16)}"
    whole, one = (m.number(MEAN, VECTORS, "no labels", n, "share") for n in (64, 1))
    return paragraph(
        f"Asked for before the runs: at 16 photos a class at least half of the gap on every data set, reached {half}; at 64 "
        f"three quarters on the mean, which is {whole:.1f} %: {'reached' if whole >= 75 else 'not reached'}. With a single "
        f"photo a class the share is {one:.0f} %, least on {least(at_1)}."
    )


def paragraph(text: str) -> str:
    return textwrap.fill(text, 128, break_long_words=False) + "\n"


def least(values: Mapping[str, float]) -> str:
    name = min(values, key=values.get)
    return f"{name} ({values[name]:.0f} %)"


def tables(rows: Sequence[Row]) -> str:
    """Return what the benchmark's page shows: sentences and both tables."""
    m = Measured(rows)
    return (
        f"{words(rows)}\n{verdict(rows)}\n"
        f"Top-1 accuracy in percent of {VECTORS} (TaskRes), by photos a class, without labels and with them:\n\n"
        f"{accuracies(m)}\n\n"
        "Share of the gap between sentence and teacher that is closed, in percent, with 95 % intervals:\n\n"
        f"{shares(m)}\n"
    )
