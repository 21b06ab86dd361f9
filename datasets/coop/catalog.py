"""The fifteen data sets of the CoOp family, a Dassl class for each: folders, files, addresses, sizes, how their lists are read.

`catalog.yaml` holds them. Folders and file names are those of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md), so that a data
folder made for it or for one of its forks is used as it is. Sizes of the lists are those reported with them
(arXiv:2109.01134, appendix). Addresses and MD5 sums are torchvision's if it fetches the same archive.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dassl.data.datasets import Datum
from yacs.config import CfgNode

from kdpl.datasets.base import ClassListDataset, draws_blindly, subsample_classes
from kdpl.datasets.coop import folder
from kdpl.datasets.coop.folder import DataFolder, Split
from kdpl.datasets.coop.splits import drawn_split, load_split


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
    read: Callable[[DataFolder], Split]  # of folder.py: returns the three lists
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
    return Facts(name=name, **{**entry, "read": getattr(folder, entry["read"]), "sources": sources})


_ENTRIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CATALOG = {name: _facts(name, entry) for name, entry in _ENTRIES.items()}


class CoOpDataset(ClassListDataset):
    """A data set in CoOp's folder layout.

    Reads DATASET.ROOT, DATASET.NUM_SHOTS, DATASET.SUBSAMPLE_CLASSES and SEED. A data set that is for testing only returns its
    test images as training images too, since Dassl takes the class names from these; NUM_SHOTS has no effect on it.

    Raises:
        MissingDataError: the data set, a file or an image of it is not under DATASET.ROOT.
        DamagedDataError: a file of it does not hold what it should.
    """

    facts: Facts

    def __init__(self, cfg: CfgNode):
        facts = self.facts
        data = DataFolder(facts, cfg.DATASET.ROOT)
        self.dataset_dir = str(data.path)
        self.image_dir = str(data.images)
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        if facts.test_only:
            split = load_split(data)
            split, names = split._replace(train=split.test), {r.label: r.classname for r in split.test}
        else:
            blind = subsample if draws_blindly(cfg) else ""
            split, names = drawn_split(self, data, cfg.DATASET.NUM_SHOTS, cfg.SEED, blind)
        lists = [
            [Datum(os.path.join(self.image_dir, r.impath), r.label, classname=r.classname) for r in part] for part in split
        ]
        (train, val, test), kept = subsample_classes(lists, subsample, names)
        super().__init__(kept, train_x=train, val=(test if facts.val_is_test else val) or None, test=test)


def dataset_dir_check(cfg: CfgNode) -> None:
    """Raise MissingDataError if the files and folders of a data set of the catalogue are not under DATASET.ROOT."""
    facts = CATALOG.get(cfg.DATASET.NAME)
    if facts is not None:
        DataFolder(facts, cfg.DATASET.ROOT).require()


def _dataset_class(facts: Facts) -> type[CoOpDataset]:
    about = f"{facts.name}, in the folder `{facts.folder}`."
    members = {"__doc__": about, "__module__": __name__, "dataset_dir": facts.folder, "facts": facts}
    return type(facts.name, (CoOpDataset,), members)


DATASETS = {name: _dataset_class(facts) for name, facts in CATALOG.items()}
globals().update(DATASETS)  # so that a class is found, and pickled, by its name
