"""Data sets: labelled images, and the splits that make a data set."""

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from yacs.config import CfgNode

from dassl.utils import Registry, build_registered

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> "DatasetBase":
    """Return the data set that DATASET.NAME names, built from `cfg`.

    Raises:
        ValueError: no data set of that name is registered.
    """
    return build_registered(DATASET_REGISTRY, "DATASET.NAME", cfg)


@dataclass(frozen=True, eq=False, slots=True)
class Datum:
    """One labelled image: its path, the indices of its class and domain, and the name of its class."""

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    def __post_init__(self):
        if not os.path.isfile(self.impath):
            raise FileNotFoundError(f"No image at '{self.impath}'. Check DATASET.ROOT and the data set's folder.")


class DatasetBase:
    """The splits of a data set (`train_u`: unlabelled images) and the names of its classes, which are those of `train_x`.

    Raises:
        ValueError: `train_x` is empty, or a label in it has two class names.
    """

    dataset_dir = ""  # the data set's folder under DATASET.ROOT
    domains: Sequence[str] = []

    def __init__(
        self,
        train_x: list[Datum],
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property  # so that a subclass can have other class names than those of its training images
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Return the number of classes: the highest label plus 1."""
        if not data_source:
            raise ValueError(
                "The data set has no labelled training image (train_x is empty). Check DATASET.ROOT and the split."
            )
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name of each label, as a dictionary and as a list, both in the order of the labels."""
        names: dict[int, str] = {}
        for item in data_source:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise ValueError(
                    f"Label {item.label} has two class names, '{names[item.label]}' and '{item.classname}' "
                    f"(at '{item.impath}'). Give every class its own label."
                )
        names = dict(sorted(names.items()))
        return names, list(names.values())

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1) -> list[Datum] | Sequence[list[Datum]]:
        """Draw `num_shots` images of every class of each list, with Python's `random`; below 1, return the lists as they are.

        A class that has fewer images is taken whole. The result is a list for one source, a sequence of lists for several.
        """
        if num_shots >= 1:
            print(f"Creating a {num_shots}-shot dataset")
            data_sources = [self._draw_shots(source, num_shots) for source in data_sources]
        return data_sources[0] if len(data_sources) == 1 else data_sources

    def _draw_shots(self, data_source: list[Datum], num_shots: int) -> list[Datum]:
        # Which classes come first decides what is drawn for a seed; this is Dassl's order, so splits are the same.
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        draws = (random.sample(items, num_shots) if len(items) >= num_shots else items for items in groups.values())
        return [item for items in draws for item in items]
