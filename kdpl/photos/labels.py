"""Tables of labels, as the gallery saves them, and the photos of a fit that they are about."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdpl.classifier.decision import REJECTED
from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import from_cell

PHOTOS = "photos.json"  # in the folder of a fit: which photos were for what, with the digests of their contents
TEACHER = "teacher.json"  # beside it: the name that the teacher sees on each photo, by the digest of its content
TRAIN, LABELLED = "train", "labelled"  # parts of it; the second is a part of the first


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
            rows = [
                {key: from_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
                for row in csv.DictReader(file, strict=True)
            ]
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
        found, photo = Label(row["path"], label, predicted), os.path.realpath(row["path"])  # one photo may have two spellings
        if labels.setdefault(photo, found).label != label:
            both = f"'{labels[photo].label}' and '{label}'"
            raise ValueError(f"'{path}', line {number}: '{row['path']}' has two labels, {both}.")
    return list(labels.values())


def labels_of(labels: Sequence[Label], photos: Path, names: Sequence[str]) -> tuple[dict[str, str], int]:
    """Return the class of each labelled photo in a folder, by its path below it, and how many labels are of other photos.

    Args:
        photos: the folder.
        names: of the photos that are there.
    """
    there, found, others = set(names), {}, 0
    for label in labels:
        if label.label and label.label != REJECTED:
            path = os.path.abspath(label.path)
            name = Path(os.path.relpath(path, photos)).as_posix()
            if name in there:
                found[name] = label.label
            else:
                others += 1
    return found, others


def trained_on(prompts: str | os.PathLike) -> Mapping[str, Mapping[str, str]]:
    """Return the photos that a fit was trained on, by part, with the digests of their contents; empty for other trainings.

    Raises:
        ValueError: the record of a fit cannot be read.
    """
    content = _read(prompts, PHOTOS)
    try:
        return {part: dict(content[part]) for part in (TRAIN, LABELLED)} if content else {}
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(prompts, PHOTOS, error) from None


def teacher_names(prompts: str | os.PathLike) -> dict[str, str]:
    """Return the name that the teacher of a fit sees on each photo, by the digest of its content; empty for other trainings.

    Raises:
        ValueError: the record of a fit cannot be read.
    """
    content = _read(prompts, TEACHER)
    if not all(isinstance(text, str) for pair in content.items() for text in pair):
        raise _not_ours(prompts, TEACHER, "it holds something else than names")
    return content


def _read(prompts: str | os.PathLike, name: str) -> dict[str, Any]:
    folder = Path(prompts)
    path = (folder.parent if folder.is_file() else folder) / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _not_ours(prompts, name, error) from None
    if not isinstance(content, dict):
        raise _not_ours(prompts, name, f"it holds a {type(content).__name__}")
    return content


def _not_ours(prompts: str | os.PathLike, name: str, why: object) -> ValueError:
    return ValueError(
        f"'{name}' beside '{prompts}' is not the record of a fit ({why}): run the fit again, which writes it again."
    )
