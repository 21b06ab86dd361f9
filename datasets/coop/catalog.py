"""The fifteen data sets of the CoOp family: folders, files, addresses, sizes and how their lists are read.

`catalog.yaml` holds them. Folders and file names are those of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md), so that a data
folder made for it or for one of its forks is used as it is. Sizes of the lists are those reported with them
(arXiv:2109.01134, appendix). Addresses and MD5 sums are torchvision's if it fetches the same archive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdpl.datasets.coop import readers
from kdpl.datasets.coop.folder import DataFolder, Split


@dataclass(frozen=True)
class Source:
    """A file to be fetched for a data set."""

    gives: tuple[str, ...]  # files and folders, relative to the data set's folder, that are there when it is done
    file: str = ""  # the archive's name, or the file's own
    url: str = ""  # direct address; empty if it must be fetched by hand
    md5: str = ""  # checksum of `file`; empty if none is published
    by_hand: str = ""  # where a person finds it
    inside: str = ""  # name in the archive of the first of `gives`, if it differs; it may be an archive itself
    copy_of: str = ""  # file of another data set, relative to DATASET.ROOT, that it is a copy of

    @property
    def is_archive(self) -> bool:
        """Whether `file` has to be unpacked to give what it gives."""
        return bool(self.file) and self.gives != (self.file,)


@dataclass(frozen=True)
class Facts:
    """What is particular to one data set."""

    name: str  # registered name, DATASET.NAME
    folder: str  # under DATASET.ROOT
    images: str  # folder of the images, relative to `folder`; paths in split files start there
    sizes: Sequence[int]  # published numbers of training, validation and test images
    read: Callable[[DataFolder], Split]  # of readers.py: returns the three lists
    sources: tuple[Source, ...]  # files to be fetched
    classes: int = 0  # number of class folders, of a data set whose folders are a part of those of classnames.txt
    test_only: bool = False  # there is no training list; the test list gives the class names
    val_is_test: bool = False  # validation uses the test images

    @property
    def published_split(self) -> str:
        """The split file that published results use."""
        return f"split_zhou_{self.name}.json"

    def tree(self) -> str:
        """Draw the files and folders that the data set needs."""
        return "\n".join([f"  {self.folder}/", *(f"    {path}" for source in self.sources for path in source.gives)])


def _facts(name: str, entry: dict[str, Any]) -> Facts:
    sources = tuple(Source(**{**source, "gives": tuple(source["gives"])}) for source in entry["sources"])
    return Facts(name=name, **{**entry, "read": getattr(readers, entry["read"]), "sources": sources})


_ENTRIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CATALOG = {name: _facts(name, entry) for name, entry in _ENTRIES.items()}
