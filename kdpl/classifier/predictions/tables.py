"""Where rows of predictions go: lines for the terminal, CSV, JSON lines, and folders of photos by class."""

import csv
import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from kdpl.common.class_names import REJECTED
from kdpl.common.files import PART
from kdpl.common.outputs import SORTED, take_folder
from kdpl.common.safe_text import on_one_line, to_cell

_UNFIT = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # characters that some file system does not take
LONGEST = 100  # of a folder's name, in characters


class Row(NamedTuple):
    """An image and what the classifier says about it."""

    path: str
    names: list[str]  # the likeliest, best first
    probabilities: list[float]
    rejected: bool = False  # none of the classes

    def shown(self, top: int) -> list[tuple[str, float | None]]:
        """Return names with probabilities, of a rejected image with `REJECTED` before them, which has no probability."""
        pairs = list(zip(self.names, self.probabilities, strict=True))
        return ([(REJECTED, None), *pairs] if self.rejected else pairs)[:top]


class Writer:
    """Writes rows into an open file, and what stands before and after them."""

    file: IO[str]

    def write(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write what stands after the rows."""


class CsvWriter(Writer):
    """A table: path, name, probability, name_2, ... A file name that is not UTF-8 is written with backslashes.

    What begins like a formula gets a quote before it, which `kdpl.common.safe_text.from_cell` takes away.
    """

    def __init__(self, file: IO[str], top: int):
        self.file, self.top, self._table = file, top, csv.writer(file)
        later = (column for k in range(2, top + 1) for column in (f"name_{k}", f"probability_{k}"))
        self._table.writerow(["path", "name", "probability", *later])

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            pairs = row.shown(self.top)
            fields = [field for name, p in pairs for field in (name, "" if p is None else f"{p:.6f}")]
            self._table.writerow(map(to_cell, [row.path, *fields]))


class JsonWriter(Writer):
    """One object a line: path, names, probabilities, and `rejected` if images may be."""

    def __init__(self, file: IO[str], reject: bool):
        self.file, self.reject = file, reject

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            content = {"path": row.path, "names": row.names, "probabilities": [round(p, 6) for p in row.probabilities]}
            if self.reject or row.rejected:  # a person may have said so
                content["rejected"] = row.rejected
            self.file.write(json.dumps(content, ensure_ascii=False) + "\n")


def line_of(row: Row, top: int) -> str:
    """Return the row as a line for the terminal, with tabs between path and names."""
    fields = [row.path, *(name if p is None else f"{name} {p:.4f}" for name, p in row.shown(top))]
    return "\t".join(on_one_line(field) for field in fields)


def written(path: str) -> str:
    """Return a path as the tables have it."""
    return path.encode("utf-8", "backslashreplace").decode()


def folder_name(name: str) -> str:
    """Return a class name as the name of a folder, for every file system."""
    return _UNFIT.sub("_", name).strip(" .")[:LONGEST] or "_"


class Sorter:
    """Puts every photo into a folder named like its likeliest class.

    A photo that is there already, from an earlier run, is left alone; of two photos with one file name the second gets a
    number.

    Args:
        root: folder of the folders; it is made if missing.
        link: make symbolic links; False: copy.
        names: the classes.

    Raises:
        ValueError: two classes have one folder name, or the folder has files of others.
    """

    def __init__(self, root: str | os.PathLike, link: bool, names: list[str]):
        self.root, self.link = take_folder(root, SORTED), link
        self._same: Callable[[Path, Path], bool] = _is_link_to if link else _is_copy_of
        folders: dict[str, str] = {}
        for name in names:
            folder = folder_name(name).casefold()
            if folders.setdefault(folder, name) != name:
                raise ValueError(
                    f"The classes '{folders[folder]}' and '{name}' would share the folder '{folder_name(name)}': rename one."
                )

    def add(self, row: Row) -> None:
        """Sort one photo in.

        Raises:
            OSError: it cannot be copied or linked.
        """
        (name, _), *_ = row.shown(1)
        folder, source = self.root / folder_name(name), Path(row.path).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            target = folder / (source.name if number == 1 else f"{source.stem} ({number}){source.suffix}")
            if not os.path.lexists(target):
                break
            if self._same(target, source):
                return
            number += 1
        if self.link:
            target.symlink_to(source)
            return
        unfinished = target.with_name(f".{target.name}{PART}")
        shutil.copy2(source, unfinished)
        os.replace(unfinished, target)


def _is_link_to(target: Path, source: Path) -> bool:
    return target.is_symlink() and os.readlink(target) == str(source)


def _is_copy_of(target: Path, source: Path) -> bool:
    return target.is_file() and not target.is_symlink() and filecmp.cmp(target, source, shallow=False)
