"""The chart of photos of one's own, drawn from the table that benchmarks/emoji/photos.py writes."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "emoji"
PILES = {f"{n} of each": n for n in (1, 4, 16, 64)}
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
    Series("KDPL, no labels: kernel head", "kernel head", "no labels", "accent"),
    Series("labels: kernel head", "kernel head", "labels", "learned_line"),
    Series("KDPL, no labels: class vectors", "class vectors", "no labels", "accent", "diamond"),
    Series("labels: class vectors", "class vectors", "labels", "learned_line", "diamond"),
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


def read_rows(name: str) -> list[dict[str, str]]:
    with open(BENCHMARKS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def photos(d, rows: Sequence[dict[str, str]]) -> None:
    """Draw accuracy over photos a class: the mean over the data sets, and each of them."""
    sets = [name for name in dict.fromkeys(row["data set"] for row in rows) if name != MEAN]
    rows = [row for row in rows if row["pile"] in PILES]
    title = (
        f"Top-1 accuracy in percent on new photos of the same source, by photos of each class (mean of {len(sets)} data sets)"
    )
    d.text(10, 24, title, anchor="start", extra=BOLD)
    legend(d, 40)
    _panel(d, Panel(40, 108, 400, 318, list(PILES.values())), [row for row in rows if row["data set"] == MEAN], MEAN, True)
    for i, name in enumerate(sets):
        place = Panel(490 + 162 * (i % 3), 108 + 190 * (i // 3), 140, 128, list(PILES.values()))
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
    found = {(row["learner"], row["labels"], PILES[row["pile"]]): row for row in rows}
    d.rect(place.x, place.y, place.width, place.height, "panel", "panel")
    d.text(place.x + place.width / 2, place.y - 6, title, extra="" if large else SMALL)
    for value in range(0, 101, 20 if large else 50):
        d.rect(place.x, place.up(value) - 0.25, place.width, 0.5, "line", "line", 0)
        if large:
            d.text(place.x - 6, place.up(value) + 4, str(value), "muted", "end", SMALL)
    for photos in place.shots:
        d.text(place.across(photos), place.y + place.height + 17, str(photos), "muted", extra=SMALL)
    for name, dash in ((TEACHER, "7 4"), (SENTENCE, "2 4")):
        accuracy = float(found[name, "", place.shots[0]]["accuracy"])
        level = place.up(accuracy)
        d.line([(place.x, level), (place.x + place.width, level)], "muted", dash)
        if large:
            d.text(place.x + place.width - 4, level - 6, f"{accuracy:.1f}", "muted", "end", SMALL)
    for series in SERIES:
        points = [(n, found[series.learner, series.labels, n]) for n in place.shots]
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
