"""Photos in folders by class: copied, linked, or moved with a log, by which they go back."""

import contextlib
import filecmp
import json
import os
import re
import shutil
import sys
from pathlib import Path

from kdpl.common.files import PART, sync
from kdpl.common.outputs import SORTED, take_folder

LOG = "moved.jsonl"  # in the folder of the folders: a line for each photo, [[from, to], ...], written before it is moved
LONGEST = 100  # of a folder's name, in characters
_UNFIT = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # characters that some file system does not take

Moves = list[tuple[str, str]]  # a photo and its sidecar: from, to


def folder_name(name: str) -> str:
    """Return a class name as the name of a folder, for every file system."""
    return _UNFIT.sub("_", name).strip(" .")[:LONGEST] or "_"


class Sorter:
    """Puts every photo into a folder named like its likeliest class.

    A photo that is there already, from an earlier run, is left alone; of two photos with one file name the second gets a
    number.

    Args:
        root: folder of the folders; it is made if missing.
        how: "copy", "link" or "move".
        names: the classes.

    Raises:
        ValueError: two classes have one folder name, or the folder has files of others.
    """

    def __init__(self, root: str | os.PathLike, how: str, names: list[str]):
        folders: dict[str, str] = {}
        for name in names:
            folder = folder_name(name).casefold()
            if folders.setdefault(folder, name) != name:
                raise ValueError(
                    f"The classes '{folders[folder]}' and '{name}' would share the folder '{folder_name(name)}': rename one."
                )
        self.root, self.how = take_folder(root, SORTED), how
        if how == "move":
            for moves in _logged(self.root / LOG)[-1:]:  # the last one of a run that was killed
                if os.path.lexists(moves[0][1]):
                    _move(moves)

    def add(self, path: str, name: str) -> None:
        """Sort one photo in.

        Raises:
            OSError: it cannot be copied, linked or moved.
        """
        folder, source, number = self.root / folder_name(name), Path(path).absolute(), 1
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            target = folder / (source.name if number == 1 else f"{source.stem} ({number}){source.suffix}")
            if not os.path.lexists(target):
                break
            if self.how == "copy" and _is_copy_of(target, source):
                return
            if self.how == "link" and target.is_symlink() and os.readlink(target) == str(source):
                return
            number += 1
        if self.how == "link":
            target.symlink_to(source)
        elif self.how == "copy":
            _copy(source, target)
        elif source.is_symlink():
            print(f"not moved: '{path}' is a link", file=sys.stderr)
        else:
            sidecar = Path(f"{source}.xmp")
            files = [(source, target), *([(sidecar, Path(f"{target}.xmp"))] if sidecar.is_file() else [])]
            moves = [(str(a), str(b.absolute())) for a, b in files]
            _append(self.root / LOG, moves)
            _move(moves)


def _is_copy_of(target: Path, source: Path) -> bool:
    return target.is_file() and not target.is_symlink() and filecmp.cmp(target, source, shallow=False)


def _copy(source: Path, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}{PART}")
    shutil.copy2(source, unfinished)
    os.replace(unfinished, target)


# --------------------------------------------------------------------------------------------------------- moved and back


def _move(moves: Moves) -> bool:
    """Move files, those that are still to be moved, never over a file that is there; return whether all have arrived."""
    for source, target in ((Path(source), Path(target)) for source, target in moves):
        if not os.path.lexists(source):
            continue
        if os.path.lexists(target):
            if _is_copy_of(target, source) and not os.path.samefile(target, source):  # a kill came before the last step
                source.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(source, target)
        except OSError:  # to another disk
            _copy(source, target)
            source.unlink()
        sync(target.parent)
    return all(os.path.lexists(target) and not os.path.lexists(source) for source, target in moves)


def _append(log: Path, moves: Moves) -> None:
    with open(log, "ab") as file:
        file.write(b"\n" + json.dumps(moves).encode())  # the line before may be torn by a kill: its files have not been moved
        file.flush()
        os.fsync(file.fileno())


def _logged(log: Path) -> list[Moves]:
    """Return the moves of a log; the last one to a place counts, as an earlier one has not been finished or was undone."""
    found: dict[str, Moves] = {}
    for line in log.read_bytes().splitlines() if log.is_file() else ():
        with contextlib.suppress(ValueError):
            moves = [(source, target) for source, target in json.loads(line)]
            found.pop(moves[0][1], None)
            found[moves[0][1]] = moves
    return list(found.values())


def undo(log: str | os.PathLike) -> tuple[int, list[str]]:
    """Move photos back to where they were, the last one first, never over a file that is there.

    Folders that are empty then are removed, and the log if all are back. It may be stopped and started again.

    Args:
        log: the file `LOG`, or its folder.

    Returns:
        How many photos were moved back, and the photos that stay, since a file has taken their place.

    Raises:
        ValueError: there is no such log.
        OSError: a file cannot be moved.
    """
    log = Path(log, LOG) if os.path.isdir(log) else Path(log)
    if log.name != LOG or not log.is_file():
        raise ValueError(
            f"There is no log '{log}': expected the file {LOG} in a folder that photos were moved to, or the folder."
        )
    back, left = 0, []
    for moves in reversed(_logged(log)):
        there = [(target, source) for source, target in moves if os.path.lexists(target)]
        if there and _move(there):
            back += 1
        elif there:
            left.append(moves[0][1])
        with contextlib.suppress(OSError):  # not empty, or gone
            Path(moves[0][1]).parent.rmdir()
    if not left:
        log.unlink()
    return back, left
