"""Labels that a person has checked, as the gallery saves them or as anybody writes them: a CSV file with path and label."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

from kdpl.classifier.decision import REJECTED
from kdpl.common.messages import did_you_mean


class Label(NamedTuple):
    """What is known of a photo: its class; or, with an empty label, that `predicted` is wrong."""

    path: str
    label: str
    predicted: str


def read_labels(path: str | os.PathLike, names: list[str]) -> list[Label]:
    """Return the labels of a CSV file with the columns `path` and `label`, of the gallery also `right` and `predicted`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a table, names a class that there is not, or a photo twice with different labels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of labels '{path}'.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is not a table of labels in UTF-8 ({error}).") from None
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise ValueError(f"'{path}' has no rows with the columns path and label: expected a table such as the gallery saves.")
    known, labels = {*names, REJECTED}, {}
    for number, row in enumerate(rows, 2):
        label, predicted, right = (row.get(key) or "" for key in ("label", "predicted", "right"))
        if not row["path"] or (not label and right != "no"):
            raise ValueError(f"'{path}', line {number}: there is no {'label' if row['path'] else 'path'}.")
        if label and label not in known:
            raise ValueError(f"'{path}', line {number}: '{label}' is not one of the class names.{did_you_mean(label, names)}")
        found = Label(row["path"], label, predicted)
        if labels.setdefault(row["path"], found).label != label:
            both = f"'{labels[row['path']].label}' and '{label}'"
            raise ValueError(f"'{path}', line {number}: '{row['path']}' has two labels, {both}.")
    return list(labels.values())
