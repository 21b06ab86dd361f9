"""The charts of photos of one's own, drawn from the tables that benchmarks/emoji/run.py writes."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "emoji"
SENTENCE, TEACHER, MEAN = '"a photo of a {}."', "teacher", "mean"
BOLD, SMALL = ' font-weight="600"', ' font-size="13"'


class Series(NamedTuple):
    """A line or marks of a chart."""

    words: str
    learner: str
    labels: str
    colour: str
    mark: str = "line"  # or "diamond"


SERIES = (
    Series("KDPL, no labels: class vectors", "class vectors", "no labels", "accent"),
    Series("labels: class vectors", "class vectors", "labels", "learned_line"),
    Series("no labels: class-specific prompts", "class-specific prompts", "no labels", "accent", "diamond"),
    Series("labels: class-specific prompts", "class-specific prompts", "labels", "learned_line", "diamond"),
)


class Panel(NamedTuple):
    """A rectangle of a drawing with accuracy over photos a class."""

    x: float
    y: float
    width: float
    height: float
    shots: Sequence[int]
    most: float = 100

    def across(self, photos: int) -> float:
        first, last = (math.log2(self.shots[i]) for i in (0, -1))
        return self.x + 14 + (self.width - 28) * (math.log2(photos) - first) / (last - first)

    def up(self, accuracy: float) -> float:
        return self.y + self.height * (1 - accuracy / self.most)


def labels(d, rows: Sequence[dict[str, str]]) -> None:
    """Draw what labels for a few of the photos add: the mean over the data sets, and each of them."""
    sets = [name for name in dict.fromkeys(row["data set"] for row in rows) if name != MEAN]
    kinds = list(dict.fromkeys(row["labels a class"] for row in rows))
    title = f"Distilled on 16 photos a class, with labels for some of them: accuracy in percent (mean of {len(sets)} data sets)"
    d.text(10, 24, title, anchor="start", extra=BOLD)
    d.line([(10, 50), (40, 50)], "learned_line", "7 4")
    d.text(48, 55, "labels for all 16, no distillation", anchor="start", extra=SMALL)
    d.text(320, 55, "across: labels of each class", "muted", "start", SMALL)
    _labels_panel(d, (40, 98, 400, 258), [row for row in rows if row["data set"] == MEAN], kinds, True)
    for i, name in enumerate(sets):
        place = (490 + 162 * (i % 3), 98 + 150 * (i // 3), 140, 106)
        _labels_panel(d, place, [row for row in rows if row["data set"] == name], kinds, False)


def _labels_panel(d, place: tuple[float, float, float, float], rows: Sequence[dict], kinds: Sequence[str], large: bool) -> None:
    x, y, width, height = place
    least, most = 50, 90

    def up(accuracy: float) -> float:
        return y + height * (most - accuracy) / (most - least)

    found = {row["labels a class"]: row for row in rows}
    d.rect(x, y, width, height, "panel", "panel")
    d.text(x + width / 2, y - 6, rows[0]["data set"], extra="" if large else SMALL)
    for value in range(least, most + 1, 10 if large else 20):
        d.rect(x, up(value) - 0.25, width, 0.5, "line", "line", 0)
        d.text(x - 6, up(value) + 4, str(value), "muted", "end", SMALL)
    *few, whole = kinds
    level = up(float(found[whole]["accuracy"]))
    d.line([(x, level), (x + width, level)], "learned_line", "7 4")
    where = [(x + width * (i + 0.5) / len(few), up(float(found[kind]["accuracy"]))) for i, kind in enumerate(few)]
    d.line(where, "accent")
    for (across, top), kind in zip(where, few, strict=True):
        row = found[kind]
        d.line([(across, up(float(row["low"]))), (across, up(float(row["high"])))], "accent")
        d.rect(across - 4.5, top - 4.5, 9, 9, "accent", "accent", 5)
        d.text(across, y + height + 17, kind, "muted", extra=SMALL)
        if large:
            d.text(across + 10, top + 20, f"{float(row['accuracy']):.1f}", "accent", "start", SMALL)


def read_rows(name: str) -> list[dict[str, str]]:
    with open(BENCHMARKS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def photos(d, rows: Sequence[dict[str, str]]) -> None:
    """Draw accuracy over photos a class: the mean over the data sets, and each of them."""
    sets = [name for name in dict.fromkeys(row["data set"] for row in rows) if name != MEAN]
    shots = sorted({int(row["photos"]) for row in rows if row["photos"]})
    title = (
        f"Top-1 accuracy in percent on new photos of the same source, by photos of each class (mean of {len(sets)} data sets)"
    )
    d.text(10, 24, title, anchor="start", extra=BOLD)
    legend(d, 40)
    _panel(d, Panel(40, 108, 400, 318, shots), [row for row in rows if row["data set"] == MEAN], MEAN, True)
    for i, name in enumerate(sets):
        place = Panel(490 + 162 * (i % 3), 108 + 190 * (i // 3), 140, 128, shots)
        _panel(d, place, [row for row in rows if row["data set"] == name], name, False)


def legend(d, y: float) -> None:
    for i, series in enumerate(SERIES):
        x, top = 10 + 330 * (i % 2), y + 22 * (i // 2)
        _mark(d, x + 10, top + 8, series)
        d.text(x + 28, top + 13, series.words, anchor="start", extra=SMALL)
    for i, (words, dash) in enumerate(((TEACHER, "7 4"), (SENTENCE, "2 4"))):
        d.line([(690, y + 8 + 22 * i), (720, y + 8 + 22 * i)], "muted", dash)
        d.text(728, y + 13 + 22 * i, words, anchor="start", extra=SMALL)


def _mark(d, x: float, y: float, series: Series) -> None:
    if series.mark == "line":
        d.rect(x - 4.5, y - 4.5, 9, 9, series.colour, series.colour, 5)
    else:
        d.diamond(x, y, 6, series.colour)


def _panel(d, place: Panel, rows: Sequence[dict[str, str]], title: str, large: bool) -> None:
    found = {(row["learner"], row["labels"], row["photos"]): row for row in rows}
    d.rect(place.x, place.y, place.width, place.height, "panel", "panel")
    d.text(place.x + place.width / 2, place.y - 6, title, extra="" if large else SMALL)
    for value in range(0, 101, 20 if large else 50):
        d.rect(place.x, place.up(value) - 0.25, place.width, 0.5, "line", "line", 0)
        if large:
            d.text(place.x - 6, place.up(value) + 4, str(value), "muted", "end", SMALL)
    for photos in place.shots:
        d.text(place.across(photos), place.y + place.height + 17, str(photos), "muted", extra=SMALL)
    for name, dash in ((TEACHER, "7 4"), (SENTENCE, "2 4")):
        level = place.up(float(found[name, "", ""]["accuracy"]))
        d.line([(place.x, level), (place.x + place.width, level)], "muted", dash)
        if large:
            d.text(place.x + place.width - 4, level - 6, f"{float(found[name, '', '']['accuracy']):.1f}", "muted", "end", SMALL)
    for series in SERIES:
        points = [(n, found.get((series.learner, series.labels, str(n)))) for n in place.shots]
        points = [(n, row) for n, row in points if row]
        where = [(place.across(n), place.up(float(row["accuracy"]))) for n, row in points]
        if series.mark == "line":
            d.line(where, series.colour)
        for (x, y), (_, row) in zip(where, points, strict=True):
            low, high = (place.up(float(row[key])) for key in ("low", "high"))
            d.line([(x, low), (x, high)], series.colour)
            _mark(d, x, y, series)
            if large and series.mark == "line":
                below = series.labels == "no labels"
                d.text(x, y + (22 if below else -12), f"{float(row['accuracy']):.1f}", series.colour, extra=SMALL)
