"""Tables as text: for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence

from tabulate import tabulate

from kdpl.experiments.report.tables import Row, Table

FORMATS = ("terminal", "markdown", "latex", "csv")
NONE = "—"
_STYLES = {"terminal": "simple", "markdown": "pipe", "latex": "latex_raw"}
_LATEX = {"±": r"$\pm$", NONE: "--", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "{": r"\{", "}": r"\}"}


def render(tables: Sequence[Table], style: str) -> str:
    """Return the tables as text in one of `FORMATS`.

    CSV has a line for each cell, with mean, deviation and seeds as numbers.
    """
    if style == "csv":
        return _csv(tables)
    return "\n".join(_render(table, style) for table in tables)


def _render(table: Table, style: str) -> str:
    header = [*table.labels, *table.columns]
    body = [_texts(row, previous, table.seeds) for previous, row in zip([None, *table.rows], table.rows, strict=False)]
    escape = _latex if style == "latex" else _markdown if style == "markdown" else str
    text = tabulate(
        [[escape(cell) for cell in line] for line in body],
        [escape(cell) for cell in header],
        tablefmt=_STYLES[style],
        disable_numparse=True,
        colalign=["left"] * len(table.labels) + ["right"] * len(table.columns),
    )
    if style == "latex":
        text = text.replace(r"\hline", r"\midrule").replace(r"\midrule", r"\toprule", 1)
        head, _, foot = text.rpartition(r"\midrule")
        return f"% {table.title}\n% {_caption(table)}\n{head}\\bottomrule{foot}\n"
    if style == "markdown":
        return f"### {table.title}\n\n{text}\n\n{_caption(table)}\n"
    return f"{table.title}\n\n{text}\n\n{_caption(table)}\n"


def _texts(row: Row, previous: Row | None, seeds: Sequence[int]) -> list[str]:
    labels = list(row.labels)
    if previous is not None and previous.labels[:-1] == row.labels[:-1]:
        labels[:-1] = [""] * (len(labels) - 1)  # the data set stands once, at its first row
    cells = [NONE if c is None else c.text(seeds, signed=row.kind == "difference") for c in row.cells]
    return labels + cells


def _caption(table: Table) -> str:
    seeds = ", ".join(map(str, table.seeds))
    parts = ["Top-1 accuracy in percent"]
    if len(table.seeds) > 1:
        parts.append(f"mean ± standard deviation over seeds {seeds}")
    elif table.seeds:
        parts.append(f"seed {seeds}")
    caption = ", ".join(parts) + "."
    if any(cell and cell.missing(table.seeds) for row in table.rows for cell in row.cells if row.kind != "published"):
        caption += f" Seeds are missing in cells with (n/{len(table.seeds)} seeds)."
    if any(row.kind == "published" for row in table.rows):
        caption += " As published: arXiv:2407.03056."
    return caption


def _markdown(text: str) -> str:
    return text.replace("|", r"\|")


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)


def _csv(tables: Sequence[Table]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "subject", "dataset", "method", "kind", "column", "mean", "std", "seeds", "expected_seeds"])
    for table in tables:
        for row in table.rows:
            dataset = row.labels[0] if len(row.labels) > 1 else ""
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell is None:
                    numbers = ["", "", 0]
                else:
                    numbers = [f"{cell.mean:.4f}", f"{cell.std:.4f}", len(table.seeds) - len(cell.missing(table.seeds))]
                labels = [table.protocol, table.subject, dataset, row.labels[-1], row.kind, column]
                writer.writerow([*labels, *numbers, len(table.seeds)])
    return text.getvalue()
