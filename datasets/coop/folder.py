"""A data set's folder on disk: read its files, list its images, and report what is wrong with it."""

import json
import os
from collections.abc import Callable, Iterator
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
        found = os.listdir(self._there(name, os.path.isdir))
        names = sorted(n for n in found if n.lower().endswith(_SUFFIXES) and not n.startswith("."))
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
