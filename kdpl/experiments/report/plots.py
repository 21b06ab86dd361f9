"""The figures: bars by method, and few-shot curves."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.common.files import atomic_write
from kdpl.config.keys import is_distilled
from kdpl.experiments.report.cells import Cell
from kdpl.experiments.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = dict[str, Sequence[Cell | None]]  # the cells of each method

_INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_LIGHT = {"svg.hashsalt": "kdpl", "svg.fonttype": "none", "savefig.transparent": True}
SETTINGS = {"light": _LIGHT, "dark": _LIGHT | dict.fromkeys(_INK, "#f0f6fc")}  # of matplotlib


def draw(tables: Sequence[Table], folder: str | os.PathLike, style: str = "png") -> list[Path]:
    """Draw the figures that the tables allow.

    Base-to-new gives bars of the averages, cross-dataset and domain generalisation bars of the targets, few-shot a curve for
    each data set.

    Args:
        folder: it is made if missing.
        style: "png", or "svg" for two files each, NAME-light.svg and NAME-dark.svg, for pages of either background.

    Returns:
        The paths of the figures.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        message = "--plot needs matplotlib, which is not installed: pip install 'kdpl[plot]', or leave --plot out."
        raise ModuleNotFoundError(message) from None
    themes = {"png": [("", {})], "svg": [(f"-{theme}", settings) for theme, settings in SETTINGS.items()]}[style]
    metadata = {"svg": {"Date": None}}.get(style)  # without a date the same table gives the same bytes
    paths = []
    for table in tables:
        for suffix, settings in themes:
            with matplotlib.rc_context(settings):
                for name, figure in _figures(table):
                    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{table.protocol}-{table.subject}-{name}")
                    path = Path(folder, f"{slug}{suffix}.{style}")
                    with atomic_write(path) as file:
                        figure.savefig(file, format=style, dpi=150, bbox_inches="tight", metadata=metadata)
                    paths.append(path)
    return paths


def _figures(table: Table) -> "Iterator[tuple[str, Figure]]":
    rows = [row for row in table.rows if row.kind == "method"]
    datasets = list(dict.fromkeys(row.labels[0] for row in rows))
    if table.protocol == "few-shot":
        for dataset in datasets:
            series = {row.labels[-1]: row.cells for row in rows if row.labels[0] == dataset}
            yield dataset, _curves(f"Few-shot, {table.subject.split(',')[0]}, {dataset}", table.columns, series)
        return
    # Of base-to-new the average, or the only data set.
    shown = [row for row in rows if table.protocol != "base-to-new" or row.labels[0] == datasets[0]]
    title = f"{table.title}, {datasets[0]}" if table.protocol == "base-to-new" else table.title
    yield "bars", _bars(title, table.columns, {row.labels[-1]: row.cells for row in shown})


def _bars(title: str, groups: Sequence[str], methods: Series) -> "Figure":
    figure, plot = _new(title, (max(5, 1.2 * len(groups) + len(methods) / 2), 4))
    width = 0.8 / len(methods)
    for i, ((method, cells), style) in enumerate(zip(methods.items(), _styles(methods), strict=True)):
        places = [group + (i - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        bars = {"color": style["color"], "hatch": None if style["linestyle"] == "-" else "//", "edgecolor": "white"}
        plot.bar(places, _means(cells), width, yerr=_spread(cells), label=method, **bars)
    plot.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    plot.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _curves(title: str, columns: Sequence[str], methods: Series) -> "Figure":
    figure, plot = _new(title, (5.5, 4))
    shots = [int(column) for column in columns]
    for (method, of_shots), style in zip(methods.items(), _styles(methods), strict=True):
        points = [(n, cell) for n, cell in zip(shots, of_shots, strict=True) if cell is not None]
        if points and points[0][0] == 0:  # not trained: a level
            plot.axhline(points[0][1].mean, label=method, **style)
        elif points:
            x, cells = zip(*points, strict=True)
            plot.errorbar(x, _means(cells), _spread(cells), marker="o", label=method, **style)
    if trained := [n for n in shots if n > 0]:
        plot.set_xscale("log", base=2)
        plot.set_xticks(trained, map(str, trained))
    plot.set_xlabel("training images of each class")
    plot.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _new(title: str, figsize: tuple[float, float]) -> "tuple[Figure, Axes]":
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=figsize)
    plot = figure.add_subplot()
    plot.set_title(title, fontsize=9)
    plot.set_ylabel("accuracy (%)")
    return figure, plot


def _styles(methods: Iterable[str]) -> list[dict[str, str]]:
    """One colour for a supervised method and its distilled twins, which are dashed."""
    families = [method.removeprefix("KDPL_").replace("-CA", "").split(" ")[0] for method in methods]
    colours = {family: f"C{i % 10}" for i, family in enumerate(dict.fromkeys(families))}
    lines = [":" if "-CA" in method else "--" if is_distilled(method) else "-" for method in methods]
    return [{"color": colours[family], "linestyle": line} for family, line in zip(families, lines, strict=True)]


def _means(cells: Sequence[Cell | None]) -> list[float]:
    return [math.nan if cell is None else cell.mean for cell in cells]


def _spread(cells: Sequence[Cell | None]) -> list[float] | None:
    """Return the deviations over seeds; None if there is none to draw."""
    found = [cell and cell.std for cell in cells]
    return None if found.count(None) == len(found) else [std or 0.0 for std in found]
