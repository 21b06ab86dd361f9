"""Photos sorted into folders by class: copied, or linked."""

import filecmp
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from kdpl.classifier.predictions.tables import Row
from kdpl.common.files import PART

_UNFIT = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # characters that some file system does not take
LONGEST = 100  # of a folder's name, in characters


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
        ValueError: two classes have one folder name.
    """

    def __init__(self, root: str | os.PathLike, link: bool, names: list[str]):
        self.root, self.link = Path(root), link
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
