"""A data set's folder on disk: reading its files, listing its images, and saying what is wrong with it."""

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from dassl.data.datasets import Datum

if TYPE_CHECKING:
    from kdpl.datasets.catalog import Facts

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})


class MissingDataError(FileNotFoundError):
    """A data set, or a file of it, is not where it belongs."""


class DamagedDataError(ValueError):
    """A file of a data set does not hold what it should."""


class Record(NamedTuple):
    """An image before it becomes a `Datum`: `impath` is relative to the image folder, with forward slashes."""

    impath: str
    label: int
    classname: str


class Split(NamedTuple):
    """The three lists of a data set."""

    train: list[Record]
    val: list[Record]
    test: list[Record]


class DataFolder:
    """The folder of one data set.

    Args:
        facts: the data set's entry in the catalogue.
        root: the folder that holds all data sets (DATASET.ROOT).
    """

    def __init__(self, facts: "Facts", root: str | os.PathLike):
        self.facts = facts
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        self.path = self.root / facts.folder
        self.images = self.path / facts.images
        self.listdir = cache(self._listdir)

    # --- what is there ---

    @cached_property
    def has_published_split(self) -> bool:
        """Whether the split file that published results use is in the folder."""
        return bool(self.facts.split_address) and (self.path / self.facts.published_split).is_file()

    def absent(self) -> list[str]:
        """Name the files and folders that the data set needs and that are not there."""
        needed = [s for s in self.facts.sources if not (s.only_without_split and self.has_published_split)]
        return [path for source in needed for path in source.gives if not (self.path / path).exists()]

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
        """Yield `(place, fields)` for the lines of a text file; the last of `count` fields may contain spaces.

        Raises:
            DamagedDataError: a line has fewer than `count` fields.
        """
        for place, line in self.lines(name):
            fields = line.split(maxsplit=count - 1)
            if len(fields) < count:
                raise self.damaged(f"{place} is {line!r}; expected {count} fields separated by spaces.")
            yield place, fields

    def json(self, name: str):
        """Parse a JSON file."""
        try:
            return json.loads(self._text(name))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{name} is not valid JSON ({error}). {self._renew(name)}") from None

    def mat(self, name: str, variable: str):
        """Read one variable of a MATLAB file, structs as dictionaries.

        Raises:
            ModuleNotFoundError: SciPy is not installed.
            DamagedDataError: the file is no MATLAB file or lacks the variable.
        """
        try:
            from scipy.io import loadmat
        except ImportError:
            raise ModuleNotFoundError(
                f"{self.facts.name}: reading {name} needs SciPy. Install it (pip install scipy), or put the published "
                f"{self.facts.published_split} into {self.path}, which makes {name} unnecessary."
            ) from None
        path = self._file(name)
        try:
            return loadmat(str(path), simplify_cells=True)[variable]
        except Exception as error:  # loadmat has no common base class for the errors of a broken file
            raise self.damaged(f"{name} cannot be read: {error!r}. {self._renew(name)}") from None

    def subfolders(self, name: str) -> list[str]:
        """Sorted names of the folders, hidden ones apart, inside the folder `name`."""
        with os.scandir(self._folder(name)) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())

    def image_names(self, name: str) -> list[str]:
        """Sorted names of the image files inside the folder `name`.

        Raises:
            MissingDataError: there is none.
        """
        names = sorted(n for n in self.listdir(name) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES)
        names = [n for n in names if not n.startswith(".")]
        if not names:
            raise self.missing(f"{self.path / name} holds no image.")
        return names

    def check_images(self, split: Split, origin: str) -> None:
        """Raise MissingDataError if an image of the split is not there (each folder is listed once)."""
        by_folder = defaultdict(set)
        for record in (*split.train, *split.val, *split.test):
            folder, _, name = record.impath.rpartition("/")
            by_folder[folder].add(name)
        absent = []
        for folder, names in by_folder.items():
            try:
                present = self.listdir(str(PurePosixPath(self.facts.images) / folder))
            except MissingDataError:
                present = frozenset()
            absent += [str(PurePosixPath(folder, name)) for name in names - present]
        if absent:
            total = sum(map(len, by_folder.values()))
            raise self.missing(
                f"{len(absent):,} of the {total:,} images named in {origin} are not in {self.images}, "
                f"the first of them {min(absent)}."
            )

    def datums(self, records: Iterable[Record]) -> list[Datum]:
        """Turn records into Dassl's `Datum` objects, with whole paths."""
        prefix = str(self.images)
        return [Datum(impath=os.path.join(prefix, r.impath), label=r.label, classname=r.classname) for r in records]

    # --- saying what is wrong ---

    def missing(self, what: str) -> MissingDataError:
        """Build the error for a file or folder that is not there, with the expected tree and the way out."""
        return MissingDataError(f"{self.facts.name}: {what}{self._wrong_root()}\n{self._help()}")

    def damaged(self, what: str) -> DamagedDataError:
        """Build the error for a file that does not hold what it should."""
        return DamagedDataError(f"{self.facts.name}: {what} (in {self.path})")

    def _help(self) -> str:
        return (
            f"Expected under {self.root}:\n{self.facts.tree()}\n"
            f"To fetch it, or to read what must be fetched by hand: "
            f"python -m kdpl.datasets.prepare {self.facts.name} --root {self.root}"
        )

    def _wrong_root(self) -> str:
        if self.path.is_dir():
            return ""
        if not self.root.is_dir():
            return f" DATASET.ROOT {self.root} is not a folder."
        if self.root.name == self.facts.folder:
            return f" DATASET.ROOT must be the folder above {self.facts.folder}; try --root {self.root.parent}."
        folders = {entry.name.lower(): entry.name for entry in self.root.iterdir() if entry.is_dir()}
        closest = difflib.get_close_matches(self.facts.folder.lower(), folders, n=1, cutoff=0.7)
        return f" There is a folder '{folders[closest[0]]}': is it this one, misnamed?" if closest else ""

    def _renew(self, name: str) -> str:
        if name == self.facts.published_split:
            return f"Download it again from {self.facts.split_address}, or delete it."
        return "Delete it and fetch it again."

    # --- file system ---

    def _text(self, name: str) -> str:
        path = self._file(name)
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{name} is not UTF-8 text ({error.reason}). {self._renew(name)}") from None

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise self.missing(f"{name} not found in {self.path}.")
        return path

    def _folder(self, name: str) -> Path:
        path = self.path / name
        if not path.is_dir():
            raise self.missing(f"there is no folder {path}.")
        return path

    def _listdir(self, name: str) -> frozenset[str]:
        return frozenset(os.listdir(self._folder(name)))
