"""Training data without its truth: images whose label, class name and path are taken out before a trainer sees them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.training.batches import EpochLoader

if TYPE_CHECKING:
    from dassl.engine import TrainerX

HIDDEN = 2**62  # in place of a label: whatever it indexes has no such entry
_PASSED_ON = re.compile(r"img\d*|domain")  # keys of a batch that hold no truth


@dataclass(frozen=True)
class UnlabelledItem:
    """An image of a training set, in place of Dassl's `Datum`."""

    impath: str
    domain: int = 0
    label: int = HIDDEN
    classname: str = ""


def hide_labels(trainer: "TrainerX") -> None:
    """Take labels and class names out of a trainer's training sets, in its loaders and its data set.

    The class names themselves, `lab2cname` and `classnames`, stay: they are what is learned about.

    Raises:
        UnsupportedStepError: a loader keeps its images elsewhere than Dassl's does.
    """
    dataset = trainer.dm.dataset
    hidden: dict[int, list[UnlabelledItem]] = {}
    for loader in (trainer.train_loader_x, trainer.train_loader_u):
        if loader is None:
            continue
        items = getattr(loader.dataset, "data_source", None)
        if items is None:
            raise UnsupportedStepError(
                f"The training set is a {type(loader.dataset).__name__} without data_source, so its labels cannot be hidden: "
                "derive it from dassl.data.DatasetWrapper."
            )
        loader.dataset.data_source = hidden.setdefault(id(items), _hidden(items))
    for name, items in list(vars(dataset).items()):  # _train_x in Dassl, train_x in the bundled engine
        if items and name.lstrip("_") in ("train_x", "train_u"):
            setattr(dataset, name, hidden.setdefault(id(items), _hidden(items)))


def _hidden(items: list) -> list[UnlabelledItem]:
    return [UnlabelledItem(item.impath, item.domain) for item in items]


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
        ValueError: the message names the data set and the way out.
    """
    if trainer.cfg.TRAINER.KDPL.SHOTS != "random" or trainer.cfg.DATASET.NUM_SHOTS <= 0:
        return
    from kdpl.datasets.base import ClassListDataset

    if not isinstance(trainer.dm.dataset, ClassListDataset):
        raise ValueError(
            f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(trainer.dm.dataset).__name__}, which is not "
            "one of kdpl.datasets: set SHOTS to 'class'."
        )
