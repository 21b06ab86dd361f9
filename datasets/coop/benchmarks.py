"""The data sets of the CoOp family as Dassl data sets, one class for each entry of the catalogue."""

import os

from dassl.data.datasets import Datum
from yacs.config import CfgNode

from kdpl.datasets.base import ClassListDataset, draws_blindly, subsample_classes
from kdpl.datasets.coop.catalog import CATALOG, Facts
from kdpl.datasets.coop.folder import DataFolder
from kdpl.datasets.coop.splits import drawn_split, load_split


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
