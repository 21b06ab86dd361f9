"""Tables as text: for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence

from tabulate import tabulate

from kdpl.common.safe_text import on_one_line, printable, to_cell
from kdpl.experiments.report.cells import LEVEL, REPLICATES, Draws
from kdpl.experiments.report.tables import Row, Table

FORMATS = ("terminal", "markdown", "latex", "csv")
NONE = "—"
_STYLES = {"terminal": "simple", "markdown": "pipe", "latex": "latex_booktabs"}


def render(tables: Sequence[Table], style: str, intervals: bool = False) -> str:
    """Return the tables as text in one of `FORMATS`.

    CSV has a line for each cell, with mean, deviation, seeds and the bounds of the interval as numbers.

    Args:
        intervals: give differences their 95 % interval over seeds and classes in place of the deviation over seeds.
    """
    draws = Draws() if intervals else None
    if style == "csv":
        return _csv(tables, draws)
    return printable("\n".join(_render(table, style, draws) for table in tables))


def _render(table: Table, style: str, draws: Draws | None) -> str:
    header = [*table.labels, *table.columns]
    body = [_texts(row, previous, table.seeds, draws) for previous, row in zip([None, *table.rows], table.rows, strict=False)]
    escape = {"markdown": lambda text: text.replace("|", r"\|")}.get(style, on_one_line)
    text = tabulate(
        [[escape(cell) for cell in line] for line in body],
        [escape(cell) for cell in header],
        tablefmt=_STYLES[style],
        disable_numparse=True,
        colalign=["left"] * len(table.labels) + ["right"] * len(table.columns),
    )
    if style == "latex":
        return f"% {table.title}\n% {_caption(table, draws)}\n{text}\n"
    return f"{'### ' if style == 'markdown' else ''}{table.title}\n\n{text}\n\n{_caption(table, draws)}\n"


def _texts(row: Row, previous: Row | None, seeds: Sequence[int], draws: Draws | None) -> list[str]:
    labels = list(row.labels)
    if previous is not None and previous.labels[:-1] == row.labels[:-1]:
        labels[:-1] = [""] * (len(labels) - 1)  # the data set stands once, at its first row
    paired = row.kind == "difference"
    cells = [NONE if c is None else c.text(seeds, paired, draws if paired else None) for c in row.cells]
    return labels + cells


def _caption(table: Table, draws: Draws | None) -> str:
    seeds = ", ".join(map(str, table.seeds))
    parts = ["Top-1 accuracy in percent"]
    if len(table.seeds) > 1:
        parts.append(f"mean ± standard deviation over seeds {seeds}")
    elif table.seeds:
        parts.append(f"seed {seeds}")
    caption = ", ".join(parts) + "."
    if draws and any(cell and cell.replicates for row in table.rows for cell in row.cells if row.kind == "difference"):
        caption += f" Differences with {LEVEL:.0%} intervals over seeds and classes (bootstrap of {REPLICATES:,} replicates)."
    if any(cell and cell.missing(table.seeds) for row in table.rows for cell in row.cells):
        caption += f" Seeds are missing in cells with (n/{len(table.seeds)} seeds)."
    return caption


def _csv(tables: Sequence[Table], draws: Draws | None) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["protocol", "subject", "dataset", "method", "kind", "column", "mean", "std", "seeds", "expected_seeds"]
    writer.writerow([*head, *(["low", "high"] if draws else [])])
    for table in tables:
        for row in table.rows:
            dataset = row.labels[0] if len(row.labels) > 1 else ""
            for column, cell in zip(table.columns, row.cells, strict=True):
                labels = (table.protocol, table.subject, dataset, row.labels[-1], row.kind, column)
                numbers, bounds = ["", "", 0], ("", "") if draws else ()
                if cell is not None:
                    std = "" if cell.std is None else f"{cell.std:.4f}"
                    numbers = [f"{cell.mean:.4f}", std, len(table.seeds) - len(cell.missing(table.seeds))]
                    bounds = (draws and cell.interval(draws)) or bounds
                writer.writerow([*(to_cell(on_one_line(label)) for label in labels), *numbers, len(table.seeds), *bounds])
    return text.getvalue()
