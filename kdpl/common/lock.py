"""The lock on an output folder: one run at a time writes to it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

FILE_NAME = ".run.lock"
HOLDER = ".run.json"  # beside it: the process that locked it last
_held: dict[str, "BaseFileLock"] = {}  # by path, for the life of the process


class OccupiedError(RuntimeError):
    """Another run writes to the output folder."""


def occupy(folder: str | os.PathLike) -> None:
    """Lock an output folder until this process ends, however it dies; calling it again is harmless.

    Raises:
        OccupiedError: another process holds the lock.
        OSError: the folder cannot be written to.
    """
    folder = Path(os.path.realpath(folder))
    if str(folder) not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        _held[str(folder)] = _lock(folder, "Wait for it to end, stop it, or choose another --output-dir.")
        with atomic_write(folder / HOLDER, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)


@contextmanager
def nothing_runs_below(folder: str | os.PathLike, leave_out: str) -> Iterator[None]:
    """Hold the locks of all runs in subfolders of an output folder.

    Args:
        leave_out: the beginning of the names of its own subfolders that are not looked at.

    Raises:
        OccupiedError: another process holds one of them.
    """
    with ExitStack() as stack:
        for root, names, files in os.walk(folder):
            if Path(root) == Path(folder):
                names[:] = [name for name in names if not name.startswith(leave_out)]
            elif FILE_NAME in files and os.path.realpath(root) not in _held:
                stack.callback(_lock(Path(root), f"'{folder}' cannot be moved aside before it has ended.").release)
        yield


def holder(folder: str | os.PathLike) -> dict:
    """Return the host and process id of the last run in an output folder; empty if they are not known."""
    try:
        return dict(read_json(Path(folder, HOLDER)))
    except (OSError, UnsafeTextError, TypeError, ValueError):
        return {}


def _lock(folder: Path, what_to_do: str) -> "BaseFileLock":
    from filelock import FileLock, Timeout  # its locks are not inherited by data-loader workers, which may outlive a run

    lock = FileLock(folder / FILE_NAME, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        last = holder(folder)
        by = f"process {last.get('pid')} on host {last.get('host')}" if last else "another process"
        raise OccupiedError(f"The output folder '{folder}' is in use by {by}. {what_to_do}") from None
    return lock
