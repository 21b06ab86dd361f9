"""A data set's folder on disk: its files, its images, what is wrong with it, and how the lists of each data set are read."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdpl.common.images import SUFFIXES
from kdpl.common.messages import did_you_mean

if TYPE_CHECKING:
    from kdpl.datasets.coop.catalog import Facts

_SUFFIXES = tuple(SUFFIXES)


class MissingDataError(FileNotFoundError):
    """A data set, or a file of it, is not where it belongs."""


class DamagedDataError(ValueError):
    """A file of a data set does not hold what it should."""


class Record(NamedTuple):
    """One image of a list; `impath` is relative to the image folder, with forward slashes."""

    impath: str
    label: int
    classname: str


class Split(NamedTuple):
    """The three lists of a data set."""

    train: list[Record]
    val: list[Record]
    test: list[Record]


class DataFolder:
    """The folder of one data set below `root`, the folder that holds all (DATASET.ROOT)."""

    def __init__(self, facts: "Facts", root: str | os.PathLike):
        self.facts = facts
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        self.path = self.root / facts.folder
        self.images = self.path / facts.images

    # --- what is there ---

    def absent(self) -> list[str]:
        """Return the files and folders that the data set needs and that are not there."""
        return [path for source in self.facts.sources for path in source.gives if not (self.path / path).exists()]

    def require(self) -> None:
        """Raise MissingDataError unless everything the data set needs is there."""
        absent = self.absent()
        if absent:
            raise self.missing(f"{', '.join(absent)} not found in {self.path}.")

    # --- reading ---

    def lines(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield `(place, line)` for the lines of a text file that are not blank; `place` is for error messages."""
        for number, line in enumerate(self._text(name).splitlines(), start=1):
            if line.strip():
                yield f"{name}, line {number}", line.strip()

    def fields(self, name: str, count: int) -> Iterator[tuple[str, list[str]]]:
        """Yield `(place, fields)` for the lines of a text file; the last of `count` fields may contain spaces."""
        for place, line in self.lines(name):
            fields = line.split(maxsplit=count - 1)
            if len(fields) < count:
                raise self.damaged(f"{place} is {line!r}; expected {count} fields separated by spaces.")
            yield place, fields

    def json(self, name: str) -> Any:
        try:
            return json.loads(self._text(name))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{name} is not valid JSON ({error}).", name) from None

    def subfolders(self, name: str) -> list[str]:
        """Return the sorted names of the folders inside the folder `name`; hidden ones are left out."""
        with os.scandir(self._there(name, os.path.isdir)) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())

    def image_names(self, name: str) -> list[str]:
        """Return the sorted names of the image files inside the folder `name`, which has some; hidden ones are left out."""
        files = os.listdir(self._there(name, os.path.isdir))
        names = sorted(n for n in files if n.lower().endswith(_SUFFIXES) and not n.startswith("."))
        if not names:
            raise self.missing(f"{self.path / name} holds no image.")
        return names

    def _text(self, name: str) -> str:
        try:
            return self._there(name, os.path.isfile).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{name} is not UTF-8 text ({error.reason}).", name) from None

    def _there(self, name: str, is_right: Callable[[Path], bool]) -> Path:
        path = self.path / name
        if not is_right(path):
            raise self.missing(f"{name} not found in {self.path}.")
        return path

    # --- errors ---

    def missing(self, what: str) -> MissingDataError:
        """Return the error for a file or folder that is not there, with the expected tree and what to do."""
        return MissingDataError(
            "\n".join(
                [
                    f"{self.facts.name}: {what}{_wrong_root(self)}",
                    f"Expected under {self.root}:",
                    self.facts.tree(),
                    f"To fetch it, or to read what must be fetched by hand: "
                    f"python -m kdpl.datasets.prepare {self.facts.name} --root {self.root}",
                ]
            )
        )

    def damaged(self, what: str, name: str = "") -> DamagedDataError:
        """Return the error for a file that does not hold what it should; `name` is one that can be fetched again."""
        what += " Delete it and fetch it again." if name else ""
        return DamagedDataError(f"{self.facts.name}: {what} (in {self.path})")


def _wrong_root(data: DataFolder) -> str:
    if data.path.is_dir():
        return ""
    if not data.root.is_dir():
        return f" DATASET.ROOT {data.root} is not a folder."
    folder = data.facts.folder
    if data.root.name == folder:
        return f" DATASET.ROOT must be the folder above {folder}; try --root {data.root.parent}."
    return did_you_mean(folder, (entry.name for entry in data.root.iterdir() if entry.is_dir()), 0.7)


# ------------------------------------------------------------------------------------------------ the lists of each data set


def published_split(data: DataFolder) -> Split:
    """The split file of CoOp's authors."""
    split = read_split(data, data.facts.published_split)
    print(f"Reading split from {data.path / data.facts.published_split}")
    return split


def fgvc_aircraft(data: DataFolder) -> Split:
    """The data set's own three lists of variants."""
    labels = {variant: label for label, (_, variant) in enumerate(data.lines("variants.txt"))}

    def read(part: str) -> list[Record]:
        return [
            Record(f"{image}.jpg", _label(data, place, variant, labels, "variants.txt"), variant)
            for place, (image, variant) in data.fields(f"images_variant_{part}.txt", 2)
        ]

    return Split(read("train"), read("val"), read("test"))


def imagenet(data: DataFolder) -> Split:
    """All of train, and the validation images as the test list."""
    names = _classnames(data)

    def read(part: str) -> list[Record]:
        return _by_folder(data, {f"{part}/{folder}": names[folder] for folder in _class_folders(data, names, part)})

    return Split(read("train"), [], read("val"))


def imagenet_v2(data: DataFolder) -> Split:
    """Folders 0, 1, ... are the classes in the order of classnames.txt."""
    names = _classnames(data)
    numbers = [str(label) for label in range(len(names))]
    _class_folders(data, numbers)
    return Split([], [], _by_folder(data, dict(zip(numbers, names.values(), strict=True))))


def imagenet_sketch(data: DataFolder) -> Split:
    """A folder for each of ImageNet's classes."""
    names = _classnames(data)
    return Split([], [], _by_folder(data, {folder: names[folder] for folder in _class_folders(data, names)}))


def imagenet_part(data: DataFolder) -> Split:
    """A folder for each of 200 of ImageNet's classes, labelled from 0 (ImageNet-A and ImageNet-R)."""
    names = _classnames(data)
    folders = data.subfolders(data.facts.images)
    if len(folders) != data.facts.classes:
        raise data.missing(f"{data.images} holds {len(folders)} class folders, {data.facts.classes} expected.")
    if unknown := [folder for folder in folders if folder not in names]:
        raise data.damaged(f"classnames.txt has no name for the folder {unknown[0]}.")
    return Split([], [], _by_folder(data, {folder: names[folder] for folder in folders}))


def _classnames(data: DataFolder) -> dict[str, str]:
    return {folder: name for _, (folder, name) in data.fields("classnames.txt", 2)}


def _class_folders(data: DataFolder, expected: Iterable[str], part: str = ".") -> list[str]:
    """Return the sorted class folders of a part of the images, which must be the expected ones."""
    place, folders = data.images / part, data.subfolders(f"{data.facts.images}/{part}")
    absent, surplus = sorted(set(expected) - set(folders)), sorted(set(folders) - set(expected))
    if absent:
        raise data.missing(f"{len(absent):,} class folders that classnames.txt names are not in {place}: {absent[0]}.")
    if surplus:
        raise data.damaged(f"{place} holds a folder {surplus[0]} that is no class of classnames.txt.")
    return folders


def _by_folder(data: DataFolder, names: dict[str, str]) -> list[Record]:
    """Return the images of folders, each of which is a class, labelled in their order."""
    return [
        Record(f"{folder}/{name}", label, classname)
        for label, (folder, classname) in enumerate(names.items())
        for name in data.image_names(f"{data.facts.images}/{folder}")
    ]


def _label(data: DataFolder, place: str, name: str, labels: dict[str, int], origin: str) -> int:
    if name not in labels:
        raise data.damaged(f"{place} names the class '{name}', which {origin} does not have.")
    return labels[name]


def read_split(data: DataFolder, name: str) -> Split:
    """Read a split file: JSON with the lists "train", "val" and "test" of `[path in the image folder, label, class name]`."""
    content = data.json(name)
    try:
        return Split(*([Record(path, int(label), text) for path, label, text in content[part]] for part in Split._fields))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise data.damaged(
            f"{name} is not a split file ({error!r}): expected lists 'train', 'val' and 'test' of [image, label, class name]."
        ) from None


LISTING = (imagenet, imagenet_v2, imagenet_sketch, imagenet_part)  # their images are those that the folders hold
