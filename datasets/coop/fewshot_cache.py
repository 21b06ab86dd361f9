"""Few-shot subsets saved as JSON, one file for each seed, number of shots and training list."""

import hashlib

from dassl.data.datasets import DatasetBase

from kdpl.common.safe_text import print
from kdpl.datasets.base import fewshot
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, Split
from kdpl.datasets.coop.splits import read_split, save_split

CACHE_FOLDER = "split_fewshot"


def cached_fewshot(dataset: DatasetBase, data: DataFolder, split: Split, num_shots: int, seed: int) -> Split:
    """Return the split with its training and validation lists drawn by `fewshot`, read from the cache if they are there.

    The file's name holds a digest of the lists, so that a subset of another list is never used. It is written atomically, so
    that runs started at the same time may share it. An unreadable file, or one that names an image that is not in the lists, is
    replaced. A run without a seed (below 0) draws again and saves nothing.
    """
    if num_shots < 1:
        return split
    dataset.drawn_from = list(split.train)
    name = f"{CACHE_FOLDER}/shot_{num_shots}-seed_{seed}-{_digest(split)}.json"
    path = data.path / name
    if seed >= 0 and (cached := _read(data, name, split)):
        print(f"Reading few-shot split from {path}")
        return cached
    train, val = fewshot(dataset, split.train, split.val, num_shots, seed)
    if seed >= 0:
        save_split(path, Split(train, val, []), "few-shot split")
    return Split(train, val, split.test)


def _read(data: DataFolder, name: str, split: Split) -> Split | None:
    if not (data.path / name).is_file():
        return None
    try:
        cached = read_split(data, name)
    except (DamagedDataError, OSError):
        return None
    sound = cached.train and set(cached.train) <= set(split.train) and set(cached.val) <= set(split.val)
    return cached._replace(test=split.test) if sound else None


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for part in (split.train, split.val):
        for record in part:
            line = f"{record.impath}\t{record.label}\t{record.classname}\n"
            digest.update(line.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        digest.update(b"\n")
    return digest.hexdigest()[:16]
