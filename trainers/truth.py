"""Data sets without truth: labels, class names and paths are gone when a data set is constructed, before a trainer sees it.

A data set may read labels while it is constructed: it draws shots and halves of the classes by them. What it leaves behind is
closed: every item of every split, every other reference to an item, and every further collection that it has set on itself or
its class. An item that is made at another time is closed at once.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from torch.utils.data._utils.collate import default_collate_fn_map
from yacs.config import CfgNode

from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.training.unlabelled import State

TRAINED = ("train_x", "train_u")  # splits whose truth is gone for good
TESTED = ("val", "test")  # splits whose truth a test may read
NAMES = ("lab2cname", "classnames", "num_classes")  # what is learned about stays
_PARSERS = {"posixpath", "ntpath", "pathlib", "pathlib._local", "pathlib._abc"}


# ------------------------------------------------------------------------------------------------------- what is in the place


class _Taken:
    """In the place of something that would tell labels: to read it is an error that names it."""

    __slots__ = ("_what",)

    def __init__(self, what: str):
        self._what = what

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedStepError(
            f"The trainer reads {self._what}, which KDPL has taken out: it learns without labels. Those of "
            "validation and test images are there in test() alone (docs/forks.md, 'No truth reaches the trainer')."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self._what,)

    def __repr__(self) -> str:
        return f"<hidden: {self._what}>"

    def __getattr__(self, name: str) -> Any:
        if name in ("to", "cuda", "cpu", "long", "pin_memory"):  # a batch is moved before it is read
            return lambda *args, **kwargs: self
        if name.startswith("__") and name != "__array__":
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> NoReturn:
        found = [x for x in (*args, *(kwargs or {}).values()) for x in (x if isinstance(x, list | tuple) else [x])]
        return next(x for x in found if isinstance(x, _Taken))._refuse()


_READS = """
    str eq ne lt le gt ge hash bool int float len iter getitem setitem contains call format
    add radd sub rsub mul rmul truediv floordiv mod pow neg and or
"""
for _name in _READS.split():
    setattr(_Taken, f"__{_name}__", _Taken._refuse)


class Hidden(_Taken):
    """In the place of a label, a class name or a collection of them."""

    __slots__ = ()
    __index__ = _Taken._refuse


class HiddenPath(_Taken):
    """The path of an image, which opens its file; as text it would tell the class."""

    __slots__ = ("_path",)

    def __init__(self, what: str, path: str):
        super().__init__(what)
        self._path = path

    def __reduce__(self) -> tuple:
        return type(self), (self._what, self._path)

    def __fspath__(self) -> str:
        return self._refuse() if sys._getframe(1).f_globals["__name__"] in _PARSERS else self._path


os.PathLike.register(HiddenPath)
# In a batch of a loader that the trainer iterates over itself:
default_collate_fn_map[Hidden] = lambda batch, **_: batch[0]
default_collate_fn_map[HiddenPath] = lambda batch, **_: list(batch)


class HiddenItem:
    """An image of a data set, in place of Dassl's `Datum`.

    Args:
        split: the name of its split, for messages.
        path: of its file.
        domain: its domain.
        truth: label and class name, of a split that a test may read.
        open: whether they are there at any time, such as in the worker of a loader that `test` has started.
    """

    __slots__ = ("_open", "_path", "_split", "_truth", "domain")

    def __init__(self, split: str, path: str, domain: int, truth: tuple = (), open: bool = False):
        self._split, self._path, self.domain, self._truth, self._open = split, path, domain, truth, open

    def _readable(self) -> bool:
        return bool(self._truth) and (self._open or self._split in State.readable)

    def __reduce__(self) -> tuple:
        return HiddenItem, (self._split, self._path, self.domain, *((self._truth, True) if self._readable() else ()))

    @property
    def impath(self) -> Any:
        return self._path if self._readable() else HiddenPath(f"the path of an image of {self._split} as text", self._path)

    @property
    def label(self) -> Any:
        return self._truth[0] if self._readable() else Hidden(f"the label of an image of {self._split}")

    @property
    def classname(self) -> Any:
        return self._truth[1] if self._readable() else Hidden(f"the class name of an image of {self._split}")


# ------------------------------------------------------------------------------------------------------------ when it is so


@contextmanager
def without_truth() -> Iterator[None]:
    """Close every data set that is constructed while this is entered."""
    _hook_data_sets()
    State.hiding += 1
    try:
        yield
    finally:
        State.hiding -= 1


@contextmanager
def readable(*splits: str) -> Iterator[None]:
    """Let the labels of closed splits be read: of these and of those that are readable already."""
    before = State.readable
    State.readable = before | set(splits)
    try:
        yield
    finally:
        State.readable = before


def _hook_data_sets() -> None:
    """Let the constructor of every data set class close what it has made, if `without_truth` is entered."""
    classes = [DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()]
    pending, seen = [DatasetBase, *(c for c in classes if isinstance(c, type))], set()
    while pending:
        cls = pending.pop()
        if cls not in seen:
            seen.add(cls)
            pending += cls.__subclasses__()
            _hook(cls)
    DatasetBase.__init_subclass__ = classmethod(_hook)  # those that are defined later
    if not hasattr(Datum.__init__, "closes"):
        Datum.__init__ = _closing_item(Datum.__init__)


def _hook(cls: type, **kwargs: Any) -> None:
    if "__init__" in vars(cls) and not hasattr(cls.__init__, "closes"):
        cls.__init__ = _closing(cls.__init__)


def _closing(init: Callable) -> Callable:
    """Return a constructor that closes the data set behind the outermost call."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if not State.hiding or "_kdpl_under_way" in vars(self):
            init(self, *args, **kwargs)
            return
        self._kdpl_under_way, before = True, _collections_of_classes(self)
        State.constructing += 1
        try:
            init(self, *args, **kwargs)
        finally:
            State.constructing -= 1
        del self._kdpl_under_way
        close(self)
        for (cls, name), value in _collections_of_classes(self).items():
            if value is not before.get((cls, name)):
                setattr(cls, name, Hidden(f"'{name}' of the class {cls.__name__}"))

    __init__.closes = True
    return __init__


def _closing_item(init: Callable) -> Callable:
    """Return the constructor of an item that is closed at once if no data set is under construction.

    It is made by a function that reads a list of images with their labels again.
    """

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if State.hiding and not State.constructing:
            _empty(self, "an image that is listed again")

    __init__.closes = True
    return __init__


def _collections_of_classes(dataset: Any) -> dict[tuple[type, str], Any]:
    """Return the lists and other collections that the classes of a data set have."""
    found = {(c, name): value for c in type(dataset).__mro__ for name, value in vars(c).items() if not name.startswith("__")}
    return {key: value for key, value in found.items() if isinstance(value, list | tuple | set | Mapping)}


# --------------------------------------------------------------------------------------------------------------- the closing


def close(dataset: Any) -> None:
    """Take the truth out of a data set that is constructed: out of its items, and whatever else it has collected."""
    splits = {split: list(getattr(dataset, split, None) or ()) for split in (*TRAINED, *TESTED)}
    known = [getattr(dataset, name, None) for name in NAMES]
    items = {split: [_item(split, datum) for datum in found] for split, found in splits.items()}
    for name, value in list(vars(dataset).items()):
        split = name.lstrip("_")
        if split in items:
            setattr(dataset, name, value and items[split])
        elif not _tells_nothing(value) and not any(_equal(value, each) for each in known):
            setattr(dataset, name, Hidden(f"'{split}' of the data set {type(dataset).__name__}"))
    for datum in {id(d): d for found in splits.values() for d in found}.values():
        _empty(datum, "an image that the data set has kept elsewhere")  # for whatever else refers to it


def _item(split: str, datum: Any) -> HiddenItem:
    if isinstance(datum, HiddenItem):
        return datum
    path, domain = os.fspath(datum.impath), getattr(datum, "domain", 0)
    return HiddenItem(split, path, domain, () if split in TRAINED else (datum.label, datum.classname))


def _empty(datum: Any, what: str) -> None:
    """Take everything but the domain out of an item of the data set's own class, in place."""
    if isinstance(datum, HiddenItem):
        return
    for name in [*getattr(datum, "__dict__", ()), *getattr(type(datum), "__slots__", ())]:
        if name.lstrip("_") != "domain":
            object.__setattr__(datum, name, Hidden(f"'{name.lstrip('_')}' of {what}"))


def _tells_nothing(value: Any) -> bool:
    """Whether a value of a data set is no collection: a folder, a file, a number, a setting."""
    return value is None or isinstance(value, str | int | float | os.PathLike | CfgNode | Hidden)


def _equal(value: Any, names: Any) -> bool:
    if not isinstance(value, Mapping | list | tuple) or names is None:
        return False
    try:
        return bool(value == names)
    except Exception:  # of arrays and tensors in a collection
        return False


def is_closed(data_source: Any) -> bool:
    """Whether all items of a loader's or a data set's list are closed."""
    return all(isinstance(item, HiddenItem) for item in data_source or ())
