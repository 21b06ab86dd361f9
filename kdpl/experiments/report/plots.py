"""The figures: radar charts by data set, bars by method, and few-shot curves."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.common.files import atomic_write
from kdpl.config.keys import is_distilled
from kdpl.experiments.report.cells import Cell
from kdpl.experiments.report.tables import AVERAGE, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_AXES = 3  # with two data sets a radar chart is a line


SETTINGS = {  # of matplotlib
    "light": {"svg.hashsalt": "kdpl", "svg.fonttype": "none", "savefig.transparent": True},
}
SETTINGS["dark"] = SETTINGS["light"] | {
    key: "#f0f6fc" for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
}


def draw(tables: Sequence[Table], folder: str | os.PathLike, style: str = "png") -> list[Path]:
    """Draw the figures that the tables allow.

    Base-to-new gives a radar chart of the new classes' accuracy by data set and bars of the averages; cross-dataset and
    domain generalisation give a radar chart and bars of the targets; few-shot gives a curve for each data set. A radar
    chart needs three data sets.

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


def _figures(table: Table) -> list[tuple[str, "Figure"]]:
    if table.protocol == "few-shot":
        datasets = dict.fromkeys(row.labels[0] for row in table.rows)
        return [(dataset, _curves(table, dataset)) for dataset in datasets]
    if table.protocol == "base-to-new":
        datasets = [name for name in dict.fromkeys(row.labels[0] for row in table.rows) if name != AVERAGE]
        averaged = AVERAGE if len(datasets) > 1 else datasets[0]
        bars = {row.labels[-1]: row.cells for row in _methods(table) if row.labels[0] == averaged}
        new = table.columns.index("new")
        cells = {(row.labels[0], row.labels[1]): row.cells[new] for row in _methods(table)}
        radar = {method: tuple(cells.get((dataset, method)) for dataset in datasets) for method in bars}
        title, groups, axes = f"{table.title}, {averaged}", table.columns, datasets
    else:
        bars = {row.labels[-1]: row.cells for row in _methods(table)}
        radar = {method: cells[1:-1] for method, cells in bars.items()}
        title, groups, axes = table.title, table.columns, table.columns[1:-1]
    figures = [("bars", _bars(title, groups, bars))]
    radar = {method: cells for method, cells in radar.items() if any(cells)}
    if len(axes) >= _LEAST_AXES and radar:
        what = "accuracy on new classes" if table.protocol == "base-to-new" else "accuracy"
        figures.append(("radar", _radar(f"{table.title}, {what}", axes, radar)))
    return figures


def _methods(table: Table) -> list[Row]:
    return [row for row in table.rows if row.kind == "method"]


def _radar(title: str, axes: Sequence[str], methods: dict[str, Sequence[Cell | None]]) -> "Figure":
    figure, plot = _new(title, figsize=(6, 6), projection="polar")
    angles = [2 * math.pi * i / len(axes) for i in range(len(axes))]
    for (method, cells), style in zip(methods.items(), _styles(methods), strict=True):
        values = [_mean(cell) for cell in cells]
        plot.plot([*angles, 2 * math.pi], [*values, values[0]], label=method, **style)
    plot.set_xticks(angles, axes)
    plot.tick_params(axis="x", pad=14)
    plot.legend(loc="upper left", bbox_to_anchor=(1.1, 1))
    return figure


def _bars(title: str, groups: Sequence[str], methods: dict[str, Sequence[Cell | None]]) -> "Figure":
    figure, plot = _new(title, figsize=(max(5, 1.2 * len(groups) + len(methods) / 2), 4))
    width = 0.8 / len(methods)
    for i, ((method, cells), style) in enumerate(zip(methods.items(), _styles(methods), strict=True)):
        places = [group + (i - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        hatch = None if style["linestyle"] == "-" else "//"
        plot.bar(
            places,
            [_mean(cell) for cell in cells],
            width,
            yerr=[0.0 if cell is None else cell.std for cell in cells] if any(map(_several, cells)) else None,
            label=method,
            color=style["color"],
            hatch=hatch,
            edgecolor="white",
        )
    plot.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    plot.set_ylabel("accuracy (%)")
    plot.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _curves(table: Table, dataset: str) -> "Figure":
    figure, plot = _new(f"Few-shot, {table.subject.split(',')[0]}, {dataset}", figsize=(5.5, 4))
    rows = [row for row in _methods(table) if row.labels[0] == dataset]
    shots = [int(column) for column in table.columns]
    for row, style in zip(rows, _styles([row.labels[-1] for row in rows]), strict=True):
        points = [(n, cell) for n, cell in zip(shots, row.cells, strict=True) if cell is not None]
        if not points:
            continue
        if points[0][0] == 0:  # not trained: a level
            plot.axhline(points[0][1].mean, label=row.labels[-1], **style)
        else:
            x, cells = zip(*points, strict=True)
            spread = [c.std for c in cells] if any(map(_several, cells)) else None
            plot.errorbar(x, [c.mean for c in cells], spread, marker="o", label=row.labels[-1], **style)
    trained = [n for n in shots if n > 0]
    if trained:
        plot.set_xscale("log", base=2)
        plot.set_xticks(trained, map(str, trained))
    plot.set_xlabel("training images of each class")
    plot.set_ylabel("accuracy (%)")
    plot.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _new(title: str, figsize: tuple[float, float], **settings: str) -> "tuple[Figure, Axes]":
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=figsize)
    plot = figure.add_subplot(**settings)
    plot.set_title(title, fontsize=9)
    return figure, plot


def _styles(methods: Sequence[str]) -> list[dict[str, str]]:
    """One colour for a supervised method and its distilled twins, which are dashed."""
    families = list(dict.fromkeys(map(_family, methods)))
    return [{"color": f"C{families.index(_family(m)) % 10}", "linestyle": _line(m)} for m in methods]


def _line(method: str) -> str:
    if "-CA" in method:
        return ":"
    return "--" if is_distilled(method) else "-"


def _family(method: str) -> str:
    return method.removeprefix("KDPL_").replace("-CA", "").split(" ")[0]


def _several(cell: Cell | None) -> bool:
    """Whether there is a deviation over seeds to draw."""
    return cell is not None and len(cell.values) > 1


def _mean(cell: Cell | None) -> float:
    return math.nan if cell is None else cell.mean
