"""The drawn lists of a data set, kept beside its images: few-shot subsets, and what a data set of many folders needs to start.

ImageNet has 1.28 million files in 2,000 folders. What a start needs of them, the drawn training list and the test list, is
written with the times at which the folders changed; while these are the same, so are the lists, and no folder is listed again.
"""

import hashlib
import json
import os

from dassl.data.datasets import DatasetBase

from kdpl.datasets.base import blind_draw, fewshot, kept_labels
from kdpl.datasets.coop import readers
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, Split
from kdpl.datasets.coop.splits import load_split, read_split, save_split

CACHE_FOLDER = "split_fewshot"
LISTED = (readers.imagenet,)  # readers whose lists depend on folders and classnames.txt alone, with test images of every class


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
    if data.facts.read not in LISTED or num_shots < 1 or seed < 0:
        return _drawn(dataset, data, num_shots, seed, blind)
    data.require()
    before = _times(data)
    kind = f"lists_{num_shots}{f'-random_{blind}' if blind else ''}-seed_{seed}-"
    name = f"{CACHE_FOLDER}/{kind}{before}.json"
    if split := _cached(data, name):
        print(f"Reading lists from {data.path / name}")
        return split, _names(split)
    split, names = _drawn(dataset, data, num_shots, seed, blind)
    if _times(data) == before:  # no folder changed while it was listed
        save_split(data.path / name, split, "lists")
        try:
            for old in (data.path / CACHE_FOLDER).glob(f"{kind}*.json"):  # of folders as they were
                if old != data.path / name:
                    old.unlink(missing_ok=True)
        except OSError as error:
            print(f"Lists drawn earlier cannot be removed: {error}")
    return split, names


def _drawn(dataset: DatasetBase, data: DataFolder, num_shots: int, seed: int, blind: str) -> tuple[Split, dict[int, str]]:
    split = load_split(data)
    names = _names(split)
    if not blind:
        return _fewshot(dataset, data, split, num_shots, seed), names
    kept = set(kept_labels(names, blind))
    return split._replace(train=blind_draw([r for r in split.train if r.label in kept], num_shots, seed)), names


def _fewshot(dataset: DatasetBase, data: DataFolder, split: Split, num_shots: int, seed: int) -> Split:
    """Return the split with its training and validation lists drawn by `fewshot`, read from the cache if they are there.

    The file's name holds a digest of the lists, so that a subset of another list is never used; one that names an image that is
    not in them is replaced. Runs started at the same time may share it. A run without a seed (below 0) saves nothing.
    """
    if num_shots < 1:
        return split
    dataset.drawn_from = list(split.train)
    name = f"{CACHE_FOLDER}/shot_{num_shots}-seed_{seed}-{_digest(split)}.json"
    cached = _cached(data, name) if seed >= 0 else None
    if cached and cached.train and set(cached.train) <= set(split.train) and set(cached.val) <= set(split.val):
        print(f"Reading few-shot split from {data.path / name}")
        return cached._replace(test=split.test)
    train, val = fewshot(dataset, split.train, split.val, num_shots, seed)
    if seed >= 0:
        save_split(data.path / name, Split(train, val, []), "few-shot split")
    return Split(train, val, split.test)


def _cached(data: DataFolder, name: str) -> Split | None:
    """Return a split that was saved; None if it is not there or cannot be read."""
    try:
        return read_split(data, name)
    except (DamagedDataError, OSError):
        return None


def _names(split: Split) -> dict[int, str]:
    return {record.label: record.classname for part in split for record in part}


def _times(data: DataFolder) -> str:
    """Return a digest of the class folders, of when each changed, and of classnames.txt."""
    found = [os.stat(data.path / "classnames.txt").st_mtime_ns]
    for part in ("train", "val"):
        top = f"{data.facts.images}/{part}"
        found += [(part, name, os.stat(data.path / top / name).st_mtime_ns) for name in data.subfolders(top)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for part in (split.train, split.val):
        for record in part:
            line = f"{record.impath}\t{record.label}\t{record.classname}\n"
            digest.update(line.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        digest.update(b"\n")
    return digest.hexdigest()[:16]
