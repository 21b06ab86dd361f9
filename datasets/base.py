"""Splits of a data set: the few-shot draw, and the base and new halves of the classes."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from dassl.data.datasets import DatasetBase, Datum
from yacs.config import CfgNode

from kdpl.config.keys import SUBSAMPLES, check_choice, is_distilled
from kdpl.distill.pseudo_labels import at_work
from kdpl.training.batches import seeded

MAX_VAL_SHOTS = 4


def kept_labels(labels: Iterable[int], subsample: str) -> list[int]:
    """Return the labels of the base or of the new half of the classes, or of all, in their order."""
    check_choice("DATASET.SUBSAMPLE_CLASSES", subsample, SUBSAMPLES)
    labels = sorted(set(labels))
    half = math.ceil(len(labels) / 2)
    return {"all": labels, "base": labels[:half], "new": labels[half:]}[subsample]


def subsample_classes(
    splits: Iterable[Sequence[Datum]], subsample: str, names: Mapping[int, str]
) -> tuple[list[list[Datum]], dict[int, str]]:
    """Return splits and names of the base or the new half of the classes, relabelled from 0 in the order of the old labels.

    With C classes the first ceil(C / 2) labels are the base classes and the rest the new ones (base-to-new setting of CoCoOp,
    arXiv:2203.05557). With "all" nothing changes.
    """
    new = {label: place for place, label in enumerate(kept_labels(names, subsample))}
    kept = {place: names[label] for label, place in new.items()}
    if subsample == "all":
        return [list(split) for split in splits], kept
    return [[Datum(d.impath, new[d.label], d.domain, d.classname) for d in split if d.label in new] for split in splits], kept


def fewshot(
    dataset: DatasetBase, train: Sequence[Datum], val: Sequence[Datum], num_shots: int, seed: int
) -> tuple[list[Datum], list[Datum]]:
    """Draw `num_shots` training images and at most four validation images of every class.

    The draw is the forks': the data set's `generate_fewshot_dataset`, training list first, on Python's `random` right after
    seeding. The state of `random` is restored afterwards, so that nothing that runs later depends on this draw.

    Args:
        dataset: has `generate_fewshot_dataset`; gets `drawn_from`, the whole training list.
        num_shots: images a class, or all of a class that has fewer; below 1 the lists are returned whole.
        seed: the run's seed; below 0 the draw takes `random` as it stands (the run is not seeded).
    """
    if num_shots < 1:
        return list(train), list(val)
    dataset.drawn_from = list(train)
    with seeded(seed) if seed >= 0 else nullcontext():
        few_train = dataset.generate_fewshot_dataset(train, num_shots=num_shots)
        few_val = dataset.generate_fewshot_dataset(val, num_shots=min(num_shots, MAX_VAL_SHOTS)) if val else []
    return few_train, few_val


def blind_draw(train: Sequence[Datum], num_shots: int, seed: int) -> list[Datum]:
    """Draw `num_shots` times the number of classes of training images, whatever their labels, as `draw_images` does."""
    return draw_images(train, num_shots * len({datum.label for datum in train}), seed)


def draw_images(train: Sequence[Datum], count: int, seed: int) -> list[Datum]:
    """Draw `count` images in the order of the list; below 1, or if there are no more, all of them.

    Args:
        seed: the run's seed; below 0 the draw takes `random` as it stands.
    """
    if not 0 < count < len(train):
        return list(train)
    with seeded(seed) if seed >= 0 else nullcontext():
        chosen = sorted(random.sample(range(len(train)), count))
    return [train[i] for i in chosen]


def draws_blindly(cfg: CfgNode) -> bool:
    """Return whether TRAINER.KDPL.SHOTS is "random" and the trainer learns without labels: supervised ones draw by class."""
    options = cfg.TRAINER.get("KDPL")
    without_labels = bool(at_work) or is_distilled(cfg.TRAINER.NAME)
    return without_labels and options is not None and options.get("SHOTS") == "random"


class ClassListDataset(DatasetBase):
    """A data set with given class names, by label or by a list of images that shows them all, whatever `train_x` shows."""

    def __init__(
        self,
        names: Mapping[int, str] | Sequence[Datum],
        train_x: list[Datum],
        val: list[Datum] | None,
        test: list[Datum] | None,
    ):
        super().__init__(train_x=train_x, val=val, test=test)
        if not isinstance(names, Mapping):
            names, _ = self.get_lab2cname(names)
        self._names = {label: names[label] for label in sorted(names)}

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._names

    @property
    def classnames(self) -> list[str]:
        return list(self._names.values())

    @property
    def num_classes(self) -> int:
        return 1 + max(self._names, default=-1)
