"""The lists of a data set, checked, with training images drawn.

ImageNet has 1.28 million files in 2,000 folders. What a start needs of them, the drawn training list and the test list, is
kept in `split_fewshot` with the times at which the folders changed; while these are the same, so are the lists, and no folder
is listed again.
"""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import PurePosixPath

from dassl.data.datasets import DatasetBase

from kdpl.common.files import atomic_write
from kdpl.datasets.base import blind_draw, fewshot, kept_labels
from kdpl.datasets.coop.folder import LISTING, DamagedDataError, DataFolder, Split, imagenet, read_split

CACHE_FOLDER = "split_fewshot"


def load_split(data: DataFolder) -> Split:
    """Return a data set's lists.

    Raises:
        MissingDataError: files, folders or images are absent.
        DamagedDataError: a file does not hold what it should.
    """
    data.require()
    split = data.facts.read(data)
    _check_labels(data, split)
    if data.facts.read not in LISTING:
        _check_images(data, split)
    return split


def drawn_split(
    dataset: DatasetBase, data: DataFolder, num_shots: int, seed: int, blind: str = ""
) -> tuple[Split, dict[int, str]]:
    """Return a data set's lists with training images drawn, and all its class names by label.

    Args:
        num_shots: images of every class; below 1 all.
        seed: below 0 the draw takes `random` as it stands, and is not kept.
        blind: draw as many whatever their labels, among the classes of this SUBSAMPLE_CLASSES; empty: draw by class.

    Raises:
        MissingDataError, DamagedDataError: as `load_split`.
    """
    if data.facts.read is not imagenet or num_shots < 1 or seed < 0:
        return _drawn(dataset, data, num_shots, seed, blind)
    data.require()
    before = _times(data)
    kind = f"lists_{num_shots}{f'-random_{blind}' if blind else ''}-seed_{seed}-"
    path = data.path / CACHE_FOLDER / f"{kind}{before}.json"
    try:
        split = read_split(data, f"{CACHE_FOLDER}/{path.name}")
        print(f"Reading lists from {path}")
        return split, _names(split)
    except (DamagedDataError, OSError):  # it was not drawn yet
        split, names = _drawn(dataset, data, num_shots, seed, blind)
    if _times(data) == before:  # no folder changed while it was listed
        try:
            with atomic_write(path, "w") as file:
                json.dump(split._asdict(), file)
            for old in path.parent.glob(f"{kind}*.json"):  # of folders as they were
                if old != path:
                    old.unlink(missing_ok=True)
        except OSError as error:
            print(f"The drawn lists are not kept: {error}")
    return split, names


def _drawn(dataset: DatasetBase, data: DataFolder, num_shots: int, seed: int, blind: str) -> tuple[Split, dict[int, str]]:
    split = load_split(data)
    names = _names(split)
    if blind:
        kept = set(kept_labels(names, blind))
        train = blind_draw([r for r in split.train if r.label in kept], num_shots, seed)
        return split._replace(train=train), names
    train, val = fewshot(dataset, split.train, split.val, num_shots, seed)
    return Split(train, val, split.test), names


def _names(split: Split) -> dict[int, str]:
    return {record.label: record.classname for part in split for record in part}


def _times(data: DataFolder) -> str:
    """Return a digest of the class folders, of when each changed, and of classnames.txt."""
    times = [os.stat(data.path / "classnames.txt").st_mtime_ns]
    for part in ("train", "val"):
        top = f"{data.facts.images}/{part}"
        times += [(part, name, os.stat(data.path / top / name).st_mtime_ns) for name in data.subfolders(top)]
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()[:16]


def _check_labels(data: DataFolder, split: Split) -> None:
    """Raise DamagedDataError unless labels count from 0 without a gap and each has one name in all lists."""
    names: dict[int, str] = {}
    for record in split.test if data.facts.test_only else split.train:
        if names.setdefault(record.label, record.classname) != record.classname:
            raise data.damaged(f"label {record.label} is called both '{names[record.label]}' and '{record.classname}'.")
    if not names:
        raise data.damaged("the training list is empty.")
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise data.damaged(f"no training image has label {gap}, though labels go up to {max(names)}.")
    for record in (*split.val, *split.test):
        if names.get(record.label) != record.classname:
            raise data.damaged(
                f"{record.impath} has label {record.label} and class name '{record.classname}', but in the "
                f"training list that label is {names.get(record.label, 'absent')!r}."
            )


def _check_images(data: DataFolder, split: Split) -> None:
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
            f"{len(absent):,} of the {total:,} images that are listed are not in {data.images}, "
            f"the first of them {min(absent)}."
        )
