"""The three lists of a data set: of the published split file, made by CoOp's rules, or the data set's own."""

import json
import os
import warnings
from collections import defaultdict
from pathlib import Path, PurePosixPath

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import on_one_line
from kdpl.datasets.coop.folder import DataFolder, Record, Split
from kdpl.datasets.coop.readers import LISTING


def load_split(data: DataFolder) -> Split:
    """Return a data set's lists; without its published split file a made one is used, with a warning.

    A made split is saved beside the place of the published one, under its own name, and used from then on.

    Raises:
        MissingDataError: files, folders or images are absent.
        DamagedDataError: a file does not hold what it should.
    """
    facts = data.facts
    split, origin = find_split(data)
    if origin:
        print(f"Reading split from {data.path / origin}")
    if facts.split_address and not data.has_published_split:
        if origin != facts.made_split:
            save_split(data.path / facts.made_split, split, "split")
        total, published = sum(map(len, split)), sum(facts.sizes)
        partial = f" It has {total:,} images, the whole data set {published:,}." if total < published else ""
        text = (
            f"{facts.name}: results will not be comparable with published ones, because {facts.published_split} is "
            f"not in {data.path} and a split made here is used instead ({facts.made_split}). The published one is at "
            f"{facts.split_address}.{partial}"
        )
        warnings.warn(on_one_line(text), stacklevel=2)
    return split


def find_split(data: DataFolder) -> tuple[Split, str]:
    """Return a data set's lists and the name of the split file they are from, "" if there is none."""
    data.require()
    facts, origin = data.facts, ""
    if data.has_published_split:
        origin = facts.published_split
    elif facts.split_address and (data.path / facts.made_split).is_file():
        origin = facts.made_split
    split = read_split(data, origin) if origin else facts.read(data)
    classes = len({record.label for record in split.train})
    if facts.split_address and not origin and classes != facts.classes:
        raise data.missing(f"its lists have {classes} classes, {facts.classes} expected; no split is made of a part.")
    _check_labels(data, split, origin or "the data set's lists")
    if origin or facts.read not in LISTING:
        _check_images(data, split, origin or "the data set's lists")
    return split, origin


def read_split(data: DataFolder, name: str) -> Split:
    """Read a split file: JSON with the lists "train", "val" and "test" of `[path in the image folder, label, class name]`."""
    content = data.json(name)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in Split._fields):
        raise data.damaged(f"{name} is not a split file: expected the lists 'train', 'val' and 'test'.")
    return Split(*(_records(data, name, part, content[part]) for part in Split._fields))


def save_split(path: Path, split: Split, what: str) -> None:
    """Write a split file; if it cannot be written, only a line says so, since the same split is drawn again next time."""
    parts = []
    for part, records in zip(Split._fields, split, strict=True):
        rows = ",\n".join(f"    {json.dumps(record)}" for record in records)
        parts.append(f'  "{part}": [\n{rows}\n  ]' if rows else f'  "{part}": []')
    try:
        with atomic_write(path, "w") as file:
            file.write("{\n" + ",\n".join(parts) + "\n}\n")
        print(f"Saved {what} to {path}")
    except OSError as error:
        print(f"The {what} is not saved: {error}")


def _records(data: DataFolder, name: str, part: str, rows: list) -> list[Record]:
    records = [_record(row) for row in rows]
    if None in records:
        number = records.index(None)
        raise data.damaged(
            f"{name}: entry {number + 1} of '{part}' is {str(rows[number])[:80]}; expected [image path relative to "
            f"{data.images.name}/, label, class name]."
        )
    return records


def _record(row) -> Record | None:
    if not (isinstance(row, list) and len(row) == 3):
        return None
    path, label, classname = row
    try:
        label = int(label)
    except (TypeError, ValueError, OverflowError):
        return None
    if not (isinstance(path, str) and label >= 0 and isinstance(classname, str)):
        return None
    inside = path and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
    return Record(path, label, classname) if inside else None


def _check_labels(data: DataFolder, split: Split, origin: str) -> None:
    """Raise DamagedDataError unless labels count from 0 without a gap and each has one name in all lists."""
    names: dict[int, str] = {}
    for record in split.test if data.facts.test_only else split.train:
        if names.setdefault(record.label, record.classname) != record.classname:
            raise data.damaged(
                f"{origin}: label {record.label} is called both '{names[record.label]}' and '{record.classname}'."
            )
    if not names:
        raise data.damaged(f"{origin}: the training list is empty.")
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise data.damaged(f"{origin}: no training image has label {gap}, though labels go up to {max(names)}.")
    for record in (*split.val, *split.test):
        if names.get(record.label) != record.classname:
            raise data.damaged(
                f"{origin}: {record.impath} has label {record.label} and class name '{record.classname}', but in the "
                f"training list that label is {names.get(record.label, 'absent')!r}."
            )


def _check_images(data: DataFolder, split: Split, origin: str) -> None:
    """Raise MissingDataError if an image of the split is not there."""
    by_folder = defaultdict(set)
    for record in (*split.train, *split.val, *split.test):
        folder, _, name = record.impath.rpartition("/")
        by_folder[folder].add(name)
    absent = []
    for folder, names in by_folder.items():
        there = data.images / folder
        present = os.listdir(there) if there.is_dir() else ()
        absent += [str(PurePosixPath(folder, name)) for name in names.difference(present)]
    if absent:
        total = sum(map(len, by_folder.values()))
        raise data.missing(
            f"{len(absent):,} of the {total:,} images named in {origin} are not in {data.images}, "
            f"the first of them {min(absent)}."
        )
