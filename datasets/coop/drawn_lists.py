"""The drawn lists of a data set that is read folder by folder, kept so that a second start need not list its folders.

ImageNet has 1.28 million files in 2,000 folders. What a start needs of them, the drawn training list and the test list, is
written beside the few-shot subsets with the times at which the folders changed; while these are the same, so are the lists.
"""

import hashlib
import json
import os

from dassl.data.datasets import DatasetBase

from kdpl.common.safe_text import print
from kdpl.datasets.base import blind_draw, kept_labels
from kdpl.datasets.coop import readers
from kdpl.datasets.coop.fewshot_cache import CACHE_FOLDER, cached_fewshot
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, MissingDataError, Split
from kdpl.datasets.coop.splits import load_split, read_split, save_split

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
    name = f"{CACHE_FOLDER}/lists_{num_shots}{f'-random_{blind}' if blind else ''}-seed_{seed}-{before}.json"
    if (data.path / name).is_file():
        try:
            split = read_split(data, name)
            print(f"Reading lists from {data.path / name}")
            return split, _names(split)
        except (DamagedDataError, MissingDataError, OSError):
            pass
    split, names = _drawn(dataset, data, num_shots, seed, blind)
    if _times(data) == before:  # no folder changed while it was listed
        _write(data, name, split)
    return split, names


def _drawn(dataset: DatasetBase, data: DataFolder, num_shots: int, seed: int, blind: str) -> tuple[Split, dict[int, str]]:
    split = load_split(data)
    names = _names(split)
    if not blind:
        return cached_fewshot(dataset, data, split, num_shots, seed), names
    kept = set(kept_labels(names, blind))
    return split._replace(train=blind_draw([r for r in split.train if r.label in kept], num_shots, seed)), names


def _names(split: Split) -> dict[int, str]:
    return {record.label: record.classname for part in split for record in part}


def _times(data: DataFolder) -> str:
    """Return a digest of the class folders, of when each changed, and of classnames.txt."""
    found = [os.stat(data.path / "classnames.txt").st_mtime_ns]
    for part in ("train", "val"):
        top = f"{data.facts.images}/{part}"
        found += [(part, name, os.stat(data.path / top / name).st_mtime_ns) for name in data.subfolders(top)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _write(data: DataFolder, name: str, split: Split) -> None:
    save_split(data.path / name, split, "lists")
    try:
        for old in (data.path / CACHE_FOLDER).glob(f"{name.split('/')[1].rpartition('-')[0]}-*.json"):
            if old.name != name.split("/")[1]:
                old.unlink(missing_ok=True)  # of folders as they were
    except OSError as error:
        print(f"Lists drawn earlier cannot be removed: {error}")
