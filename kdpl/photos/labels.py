"""Tables of labels, as the gallery saves them, and the records of a fit that say what its photos were for."""

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdpl.common.class_names import REJECTED
from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import from_cell, read_json

PHOTOS = "photos.json"  # in the folder of a fit: which photos were for what, with the digests of their contents
TEACHER = "teacher.json"  # beside it: the name that the teacher sees on each photo, by the digest of its content
GIVEN = "labels.json"  # of `kdpl open`: names that a person gave, by the digest of the content; "": none of the names
TRAIN, CHOSEN_BY, REPORTED = "train", "chosen by", "reported"  # the parts of it: the last two are held out
LABELLED = "labelled"  # a part of the first
LARGEST_RECORD = 2**31  # bytes


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
        photo, label, predicted, right = (from_cell(row.get(key) or "") for key in ("path", "label", "predicted", "right"))
        if not photo or (not label and right != "no"):
            raise ValueError(f"'{path}', line {number}: there is no {'label' if photo else 'path'}.")
        if label and label not in known:
            raise ValueError(f"'{path}', line {number}: '{label}' is not one of the class names.{did_you_mean(label, names)}")
        first = labels.setdefault(os.path.realpath(photo), Label(photo, label, predicted))  # one photo may have two spellings
        if first.label != label:
            raise ValueError(f"'{path}', line {number}: '{photo}' has two labels, '{first.label}' and '{label}'.")
    return list(labels.values())


def trained_on(prompts: str | os.PathLike) -> Mapping[str, Mapping[str, str]]:
    """Return the photos that a fit was trained on, by part, with the digests of their contents; empty for other trainings.

    Raises:
        ValueError: the record of a fit cannot be read.
    """
    return _record(prompts, PHOTOS, lambda found: all(isinstance(found.get(part), dict) for part in (TRAIN, LABELLED)))


def teacher_names(prompts: str | os.PathLike) -> dict[str, str]:
    """Return the name that the teacher of a fit sees on each photo, by the digest of its content; empty for other trainings.

    Raises:
        ValueError: the record of a fit cannot be read.
    """
    return _record(prompts, TEACHER, lambda found: all(isinstance(name, str) for name in found.values()))


def given_names(prompts: str | os.PathLike) -> dict[str, str]:
    """Return the names that a person gave photos in `kdpl open`, by the digests of their contents; "": none of the names.

    Raises:
        ValueError: the record cannot be read.
    """
    return _record(prompts, GIVEN, lambda found: all(isinstance(name, str) for name in found.values()))


def _record(prompts: str | os.PathLike, name: str, is_whole: Callable[[dict], bool]) -> dict[str, Any]:
    folder = Path(prompts)
    path = (folder.parent if folder.is_file() else folder) / name
    if not path.is_file():
        return {}
    try:
        found = read_json(path, LARGEST_RECORD)
        reason = "" if isinstance(found, dict) and is_whole(found) else "it holds something else"
    except (ValueError, OSError) as error:
        reason = str(error)
    if reason:
        raise ValueError(f"'{name}' beside '{prompts}' is not the record of a fit ({reason}): run the fit again to write it.")
    return found
