"""The data sets of a trainer that learns without labels: each image has the class that the teacher finds most probable.

Truth is there in two places: while a data set is constructed, since shots and halves of the classes are drawn by it, and in a
test, for the images of the split that is tested.
"""

import functools
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.transforms import build_transform
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from yacs.config import CfgNode

from kdpl.distill.loss import mean_logits
from kdpl.distill.pseudo_labels import UnsupportedStepError, at_work
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.text.prompts import check_names
from kdpl.text.templates import template_for
from kdpl.trainers.teachers import load_teacher
from kdpl.training.batches import read_image, seeded

Names = tuple[str, ...]
TRAINED, TESTED = ("train_x", "train_u"), ("val", "test")
_RAW = {name: vars(Datum)[name] for name in ("label", "classname")}  # the engine's own
_draw = DatasetBase.generate_fewshot_dataset
_records: dict[Datum, "Record"] = {}


@dataclass
class Record:
    """What is known of an item: whose it is, its true label and class name, the names of all classes, its splits."""

    labels: "TeacherLabels"
    truth: dict[str, Any]
    names: Names
    splits: set[str] = field(default_factory=set)


class TeacherLabels:
    """The labels of all data sets that are constructed while a trainer is built, trains or tests.

    Args:
        cfg: of the trainer.
        seed: puts the training images into another order, since their places in a list may tell the class.
    """

    def __init__(self, cfg: CfgNode, seed: int):
        self.cfg, self.seed = cfg, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.building: list[Any] = []  # data sets under construction, which may read the truth
        self.tested = ""  # the split whose truth is there
        self.names: Names = ()  # of the data set that was constructed first
        self._classes: dict[Names, dict[str, int]] = defaultdict(dict)  # by the path of an image
        self._teachers: dict[Names, Teacher | Ensemble] = {}
        _hook()

    @contextmanager
    def at_work(self, tested: str = "") -> Iterator[None]:
        """Give new data sets, and images that are listed again, these labels; the truth of a split that is `tested`."""
        before, self.tested = self.tested, tested or self.tested
        at_work.append(self)
        try:
            yield
        finally:
            at_work.pop()
            self.tested = before

    def teacher(self, names: Names) -> Teacher | Ensemble:
        """Return the teacher over class names."""
        if names not in self._teachers:
            check_names(names)
            template = template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)
            with seeded(0):  # the trainer's own random numbers stay the same
                self._teachers[names] = load_teacher(self.cfg, names, template, self.device)
        return self._teachers[names]

    @torch.no_grad()
    def classes(self, names: Names, paths: Sequence[str]) -> list[int]:
        """Return the most probable class of each image; an image is looked at once, with the test transform."""
        known = self._classes[names]
        new = [path for path in dict.fromkeys(paths) if path not in known]
        if new and get_worker_info() is not None:
            raise UnsupportedStepError(
                f"The label of '{new[0]}' is read in a loader's process, where there is no teacher: set DATALOADER.NUM_WORKERS "
                "0 for a trainer that reads validation or test images while it learns."
            )
        if new:
            teacher, transform, loaders = self.teacher(names), build_transform(self.cfg, is_train=False), self.cfg.DATALOADER
            loader = DataLoader(
                new,
                loaders.TEST.BATCH_SIZE,
                num_workers=loaders.NUM_WORKERS,
                collate_fn=lambda some: torch.stack([transform(read_image(path)) for path in some]),
                generator=torch.Generator(),
            )
            scale, found = teacher.members[0].clip.logit_scale, []  # the student is not built yet
            for images in loader:
                logits = mean_logits(teacher.logits(teacher.image_features(images.to(self.device)), scale))  # (B, C)
                found += logits.argmax(1).tolist()
            known.update(zip(new, found, strict=True))
        return [known[path] for path in paths]

    def take(self, dataset: DatasetBase) -> None:
        """Put the teacher's labels into a data set that was just constructed."""
        names = tuple(dataset.lab2cname[label] for label in sorted(dataset.lab2cname))
        splits = {split: list(getattr(dataset, split, None) or ()) for split in (*TRAINED, *TESTED)}
        self.names = self.names if self.names or self.building else names
        for split, items in splits.items():
            for item in items:
                if item not in _records:
                    _records[item] = Record(self, {name: raw.__get__(item, Datum) for name, raw in _RAW.items()}, names)
                    for name in _RAW:
                        getattr(item, "__dict__", {}).pop(f"_{name}", None)
                _records[item].labels, _records[item].names = self, names  # of the outermost data set that has it
                _records[item].splits.add(split)
        trained = list(dict.fromkeys([*splits["train_x"], *splits["train_u"]]))
        if trained and "--eval-only" not in sys.argv:
            found = self.classes(names, [item.impath for item in trained])
            lacking = [name for label, name in enumerate(names) if label not in found]
            without = f"; it finds no image of {len(lacking)}: {', '.join(lacking)}" if lacking else ""
            print(f"KDPL: the teacher has labelled {len(trained):,} training images of {len(names):,} classes{without}")
        classes = [c for c in type(dataset).__mro__ if c not in (DatasetBase, object)]
        modules = [sys.modules[c.__module__] for c in classes if not c.__module__.startswith(("dassl.", "kdpl."))]
        renewal = _Renewal(self, names, splits)
        for owner in (dataset, *classes, *modules):
            for name, value in list(vars(owner).items()):
                if (new := renewal(value)) is not value:
                    setattr(owner, name, new)


class _Renewal:
    """Replaces what is kept of the truth beside the items: their order, labels as numbers, groups of images by class."""

    def __init__(self, labels: TeacherLabels, names: Names, splits: Mapping[str, list[Datum]]):
        self.splits, self.seed = splits, labels.seed
        self.classes = functools.partial(labels.classes, names)
        self.paths = {item.impath for items in splits.values() for item in items}
        self.truth = {split: [_records[item].truth["label"] for item in items] for split, items in splits.items()}

    def __call__(self, value: Any, nested: bool = False) -> Any:
        """Return a value without truth: itself, if it is none of what is replaced."""
        match value:
            case dict() if self._is_grouped(value):
                return self._regrouped(value)
            case dict() if not nested:
                new = {key: self(x, nested=True) for key, x in value.items()}
                return new if any(new[key] is not value[key] for key in value) else value
            case [Datum(), *_] if all(isinstance(x, Datum) for x in value):
                tested = value in [self.splits[split] for split in TESTED]
                return value if tested else type(value)(_shuffled(value, self.seed))
            case [list(), *_] if self._is_grouped(groups := dict(enumerate(value))):
                return type(value)(self._regrouped(groups).values())
            case [int() | np.integer(), *_] | np.ndarray(ndim=1) | Tensor(ndim=1):
                return self._numbers(value)
        return value

    def _numbers(self, value: Any) -> Any:
        """Return labels of a split in a list, array or tensor as the teacher's, in the new order of the images."""
        for split, truth in self.truth.items():
            if truth and len(truth) == len(value) and (value.tolist() if hasattr(value, "tolist") else [*value]) == truth:
                items = self.splits[split]
                found = self.classes([item.impath for item in (items if split in TESTED else _shuffled(items, self.seed))])
                if isinstance(value, Tensor):
                    return value.new_tensor(found)
                return np.array(found, value.dtype) if isinstance(value, np.ndarray) else type(value)(found)
        return value

    def _is_grouped(self, groups: Mapping) -> bool:
        """Whether these are lists of images, or of their paths, by label."""
        lists = all(isinstance(key, int) and isinstance(some, list) for key, some in groups.items())
        return lists and any(groups.values()) and all(_path(x) in self.paths for some in groups.values() for x in some)

    def _regrouped(self, groups: Mapping) -> dict[int, list]:
        """Return images by the teacher's class; a class in which it finds none has them all."""
        images = _shuffled([x for some in groups.values() for x in some], self.seed)
        found = self.classes([_path(x) for x in images])
        new = {label: [x for x, c in zip(images, found, strict=True) if c == label] for label in sorted(groups)}
        return {label: some or images for label, some in new.items()}


def _path(x: Any) -> Any:
    return x.impath if isinstance(x, Datum) else x if isinstance(x, str) else None


def _shuffled(items: Sequence, seed: int) -> list:
    by_path = sorted(items, key=_path)  # the order that they come in may tell the truth
    return random.Random(seed).sample(by_path, len(by_path))


def _drawn(dataset: DatasetBase, *sources: Any, **kwargs: Any) -> Any:
    """Draw shots as the engine does, in an order that has nothing of the classes: data sets write it into files."""
    found = _draw(dataset, *sources, **kwargs)
    return _shuffled(found, at_work[-1].seed) if at_work and all(isinstance(x, Datum) for x in found) else found


def _hook() -> None:
    """Let items ask for their labels, and constructors of data sets hand over what they have made."""
    classes = [DatasetBase, *map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())]
    for cls in classes:  # which grows
        classes += (sub for sub in cls.__subclasses__() if sub not in classes)
        _hook_class(cls)
    DatasetBase.generate_fewshot_dataset = _drawn
    DatasetBase.__init_subclass__ = classmethod(_hook_class)  # those that are defined later
    for name, raw in _RAW.items():
        setattr(Datum, name, property(functools.partial(_read, name), getattr(raw, "__set__", None)))
    if not hasattr(Datum, "__slots__"):
        Datum.__getstate__ = lambda item: {**vars(item), **{f"_{name}": getattr(item, name) for name in _RAW}}


def _hook_class(cls: type, **kwargs: Any) -> None:
    init = vars(cls).get("__init__")
    if init is None or hasattr(init, "hands_over"):
        return

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        labels = at_work[-1] if at_work else None
        if labels is None or any(other is self for other in labels.building):
            init(self, *args, **kwargs)
            return
        labels.building.append(self)
        try:
            init(self, *args, **kwargs)
        finally:
            labels.building.pop()
        labels.take(self)

    __init__.hands_over = True
    cls.__init__ = __init__


def _read(attribute: str, item: Datum) -> Any:
    """Return the label or the class name of an item: the teacher's, or the truth where that may be read."""
    record, last = _records.get(item), at_work[-1] if at_work else None
    labels = record.labels if record else last
    if labels is None or (last and last.building) or (record and labels.tested in record.splits):
        return record.truth[attribute] if record else _RAW[attribute].__get__(item, Datum)
    names, paths = record.names if record else labels.names, [item.impath]
    if record and item.impath not in labels._classes[names]:  # ask for all of its split at once
        paths += [i.impath for i, r in _records.items() if (r.labels, r.names, r.splits) == (labels, names, record.splits)]
    label = labels.classes(names, paths)[0]
    return label if attribute == "label" else names[label]
