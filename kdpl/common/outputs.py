"""Where a command may write: one rule for all of them, and one run at a time in a folder.

A folder is new, empty, or carries the record of the same kind of command, `.kdpl.json`; a file is none of the inputs, of a
bundle or an image. All else is refused before any work. What is no regular file, such as a device or a FIFO, is written
through, and a link stays: its target is written.
"""

import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kdpl.common import exits
from kdpl.common.files import RECORD, atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.common.sources import SUFFIXES

if TYPE_CHECKING:
    from filelock import BaseFileLock

FIT, TRAINING, DEMO, EXPORT = "kdpl fit", "train.py", "kdpl fit --demo", "kdpl export"
GALLERY, SORTED = "kdpl predict --html", "kdpl predict --copy-to or --link-to"
BUNDLE = "prompts.safetensors"
LOCK, HOLDER = ".run.lock", ".run.json"  # the lock of a run, and which process has it
STANDARD_OUTPUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
_TABLES = frozenset({".csv", ".tsv", ".html", ".json"})  # that `kdpl predict` and `kdpl eval` may have written into our folders
_RECORDS = frozenset({"fit.json", "photos.json", "teacher.json", "labels.json", "manifest.json", "results.json"})
_held: dict[str, "BaseFileLock"] = {}  # by folder, for the life of the process


class OutputError(ValueError):
    """An output would replace something that the command has not written, or cannot be written."""


class OccupiedError(OutputError):
    """Another run writes to the output folder."""

    exit_status = exits.OCCUPIED


def check_folder(folder: str | os.PathLike, kind: str, photos: str | os.PathLike | None = None) -> None:
    """Refuse a folder for the outputs of a command if it has files of others.

    Args:
        kind: of the command, one of the constants above.
        photos: the folder of photos that the command reads: what is written into it would be read as photos the next time.

    Raises:
        OutputError: the message names the file that is in the way.
    """
    folder = Path(folder)
    if photos is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(photos)):
        raise OutputError(f"The output folder '{folder}' is inside the photos' folder '{photos}': choose one outside of it.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise OutputError(f"The output folder '{folder}' cannot be made: '{nearest}' is a file. Choose another path.")
    there = kind_of(folder)
    if there == kind or not folder.is_dir():
        return
    if there:
        raise OutputError(f"'{folder}' was written by {there}, and {kind} would replace its files: choose another folder.")
    foreign = (e for e in os.scandir(folder) if not e.name.startswith(".") and e.name not in ("Thumbs.db", "desktop.ini"))
    if foreign := sorted(e.name for e in foreign if kind != TRAINING or not e.is_dir()):  # folders are often of other runs
        raise OutputError(
            f"'{folder}' has a file that {kind} did not write, '{foreign[0]}': choose a folder that is new or empty, or one "
            f"that {kind} has written."
        )


def take_folder(folder: str | os.PathLike, kind: str, photos: str | os.PathLike | None = None) -> Path:
    """Check a folder, make it, and leave in it the record that it is of a kind of command; errors as for `check_folder`."""
    check_folder(folder, kind, photos)
    record = Path(folder, RECORD)
    if not record.is_file():
        with atomic_write(record, "w") as file:
            json.dump({"written by": kind}, file)
    return Path(folder)


def kind_of(folder: str | os.PathLike) -> str:
    """Return which kind of command a folder is of; empty if it is of none."""
    try:
        return str(read_json(Path(folder, RECORD))["written by"])
    except (OSError, UnsafeTextError, KeyError, TypeError):
        return ""


def occupy(folder: str | os.PathLike) -> None:
    """Lock an output folder until this process ends, however it dies; calling it again is harmless.

    Raises:
        OccupiedError: another process holds the lock.
        OSError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout  # its locks are not inherited by data-loader workers, which may outlive a run

    folder = Path(os.path.realpath(folder))
    if str(folder) in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK, timeout=0, thread_local=False), folder / HOLDER
    try:
        lock.acquire()
    except Timeout:
        by = "process {pid} on host {host}".format_map(read_json(holder)) if holder.is_file() else "another process"
        way_out = "Wait for it to end, stop it, or choose another output folder."
        raise OccupiedError(f"The output folder '{folder}' is in use by {by}. {way_out}") from None
    _held[str(folder)] = lock
    with atomic_write(holder, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)


def check_files(outputs: Iterable[str | os.PathLike | None], inputs: Iterable[str | os.PathLike | None] = ()) -> None:
    """Refuse files as outputs that are inputs, of a bundle, images, folders, or given twice; None and "" are left out.

    Args:
        inputs: files that the command reads.

    Raises:
        OutputError: the message names the output.
    """
    given = ["-" if path in STANDARD_OUTPUT else os.path.realpath(path) for path in map(os.fspath, filter(None, outputs))]
    inputs = [path for path in inputs if path and os.path.exists(path)]
    for path in given:
        there, name, suffix = os.path.exists(path), os.path.basename(path), Path(path).suffix.lower()
        ours = kind_of(os.path.dirname(path)) in (FIT, TRAINING) and (name in _RECORDS or suffix not in _TABLES)
        problem = ""
        if given.count(path) > 1 and (path == "-" or is_file(path)):
            problem = "is given for two outputs: give each its own file"
        elif path == "-":
            continue
        elif os.path.isdir(path):
            problem = "is a folder: expected the path of a file"
        elif not os.path.isdir(next(p for p in Path(path).parents if os.path.lexists(p))):
            problem = "cannot be written: what should be its folder is a file"
        elif suffix in SUFFIXES:
            problem = "has the name of an image: choose another"
        elif name in (BUNDLE, RECORD) or (there and ours):
            problem = "is a file of learned prompts or of their training: choose another path"
        elif there and any(os.path.samefile(path, other) for other in inputs):
            problem = "is one of the inputs: choose another path"
        if problem:
            raise OutputError(f"The output '{path}' {problem}.")


def is_file(path: str | os.PathLike) -> bool:
    """Whether a path is a regular file, or nothing yet, so that a finished file may take its place."""
    return os.path.isfile(path) or not os.path.exists(path)


@contextmanager
def open_output(path: str | os.PathLike, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Open an output: a file appears whole at a clean exit, anything else is written through; errors as for `atomic_write`."""
    target = os.path.realpath(path)
    if os.fspath(path) in STANDARD_OUTPUT:
        yield sys.stdout if "b" not in mode else sys.stdout.buffer
        sys.stdout.flush()
    elif is_file(target):
        with atomic_write(target, mode, **kwargs) as file:
            yield file
    else:
        with open(target, mode, **({} if "b" in mode else {"encoding": "utf-8"}) | kwargs) as file:
            yield file
