"""Batches of training images without their truth, and the checks that none is left (kdpl.trainers.truth takes it out)."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.trainers.truth import TESTED, TRAINED, is_closed
from kdpl.training.batches import EpochLoader

if TYPE_CHECKING:
    from dassl.engine import TrainerX

_PASSED_ON = re.compile(r"img\d*|domain")  # keys of a batch that hold no truth


class UnlabelledBatch(dict):
    """A batch for a trainer: images, domains and pseudo-labels; what else was in it is named when it is asked for."""

    def __init__(self, batch: Mapping[str, Any], labels: Any):
        super().__init__({key: value for key, value in batch.items() if _PASSED_ON.fullmatch(key)}, label=labels)
        self.taken_out = sorted(set(batch) - set(self))

    def __missing__(self, key: str) -> Any:
        if key in self.taken_out:
            raise UnsupportedStepError(
                f"The trainer reads batch['{key}'], which would tell the label: KDPL takes {', '.join(self.taken_out)} out of "
                "the batch."
            )
        raise KeyError(key)


class UnlabelledLoader(EpochLoader):
    """An `EpochLoader` of the epoch that a trainer is in; what it lacks is asked of the loader inside."""

    def __init__(self, trainer: "TrainerX", *args: Any):
        super().__init__(*args)
        self.trainer = trainer

    def __iter__(self):
        self.epoch = self.trainer.epoch
        return super().__iter__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["loader"], name)


def check_shots(trainer: "TrainerX") -> None:
    """Refuse TRAINER.KDPL.SHOTS random for a data set that does not know it.

    Raises:
        ValueError: the message names the data set and what to do.
    """
    if trainer.cfg.TRAINER.KDPL.SHOTS != "random" or trainer.cfg.DATASET.NUM_SHOTS <= 0:
        return
    from kdpl.datasets.base import ClassListDataset

    if not isinstance(trainer.dm.dataset, ClassListDataset):
        raise ValueError(
            f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(trainer.dm.dataset).__name__}, which is not "
            "one of kdpl.datasets: set SHOTS to 'class'."
        )


def check_closed(trainer: "TrainerX") -> None:
    """Refuse a trainer whose loaders or data set give images with their truth.

    Raises:
        UnsupportedStepError: they come from somewhere else than a data set that KDPL has closed.
    """
    names = ("train_loader_x", "train_loader_u", "val_loader", "test_loader")
    loaders = [getattr(trainer, name, None) for name in names]
    for loader in (each for each in loaders if each is not None):
        items = getattr(loader.dataset, "data_source", None)
        if items is None or not is_closed(items):
            raise UnsupportedStepError(
                f"A loader of {trainer.wrapped} has a {type(loader.dataset).__name__} whose images KDPL cannot take the labels "
                "out of: expected a dassl.data.DatasetWrapper with the images of a data set in its data_source."
            )
    for split in (*TRAINED, *TESTED):
        if not is_closed(getattr(trainer.dm.dataset, split, None)):
            raise UnsupportedStepError(
                f"The {split} of {type(trainer.dm.dataset).__name__} has labels after its construction: derive the data set "
                "from dassl.data.datasets.DatasetBase."
            )
