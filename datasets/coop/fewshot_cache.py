"""Few-shot subsets kept as JSON, one file for each seed, number of shots and training list."""

import hashlib
from pathlib import Path

from dassl.data.datasets import DatasetBase

from kdpl.common.files import atomic_write
from kdpl.datasets.base import fewshot
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, Record, Split
from kdpl.datasets.coop.splits import read_split, split_text

CACHE_FOLDER = "split_fewshot"


def cached_fewshot(dataset: DatasetBase, data: DataFolder, split: Split, num_shots: int, seed: int) -> Split:
    """Return the split with its training and validation lists drawn by `fewshot`, from the cache where it is there.

    The file's name holds a digest of the lists, so that a subset of another list is never taken for one of this one;
    it is written atomically, so that runs started at the same time may share it; one that cannot be read, or names an
    image that is not in the lists, is drawn again. A run without a seed (below 0) draws anew and keeps nothing.
    """
    if num_shots < 1:
        return split
    name = f"{CACHE_FOLDER}/shot_{num_shots}-seed_{seed}-{_digest(split)}.json"
    path = data.path / name
    if seed >= 0 and (cached := _read(data, name, split)):
        print(f"Reading few-shot split from {path}")
        return cached
    train, val = fewshot(dataset, split.train, split.val, num_shots, seed)
    if seed >= 0:
        _write(path, train, val)
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


def _write(path: Path, train: list[Record], val: list[Record]) -> None:
    try:
        with atomic_write(path, "w") as file:
            file.write(split_text([("train", train), ("val", val), ("test", [])]))
        print(f"Saved few-shot split to {path}")
    except OSError as error:
        # The draw depends on the seed and the lists alone: without the file it is only drawn again.
        print(f"The few-shot split is not saved: {error}")


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for part in (split.train, split.val):
        for record in part:
            line = f"{record.impath}\t{record.label}\t{record.classname}\n"
            digest.update(line.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        digest.update(b"\n")
    return digest.hexdigest()[:16]
