"""The lock on an output folder: one run at a time writes to it."""

import atexit
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

FILE_NAME = ".run.lock"  # what is locked; nothing is written to it
HOLDER = ".run.json"  # beside it: the process that locked it last
_held: dict[str, "BaseFileLock"] = {}  # by path, for the life of the process


class OccupiedError(RuntimeError):
    """Another run writes to the output folder."""


def occupy(folder: str | os.PathLike) -> None:
    """Lock an output folder until this process ends, however it dies; calling it again is harmless.

    Raises:
        OccupiedError: another living process holds the lock; its host, process id and start are named.
        OSError: the folder cannot be written to, or its lock is a link.
    """
    folder = Path(os.path.realpath(folder))  # Path.resolve raises another error for a link that leads to itself
    path = folder / FILE_NAME
    if str(path) in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = holder(folder)
    lock = _lock(path, "Wait for it to end, stop it, or choose another --output-dir.")
    try:
        if before:
            print(f"Taking over '{folder}' from {_describe(before)}, which ended without releasing it")
        with atomic_write(folder / HOLDER, "w") as file:
            json.dump(this_process(), file)
    except BaseException:
        lock.release()
        raise
    _held[str(path)] = lock
    atexit.register(_leave, folder, os.getpid())


@contextmanager
def nothing_runs_below(folder: str | os.PathLike, leave_out: str) -> Iterator[None]:
    """Hold the locks of all runs in subfolders of an output folder.

    Args:
        leave_out: the beginning of the names of its own subfolders that are not looked at.

    Raises:
        OccupiedError: a living process holds one of them.
        OSError: a lock cannot be opened.
    """
    with ExitStack() as stack:
        what_to_do = f"'{folder}' cannot be moved aside before it has ended: wait, stop it, or choose another --output-dir."
        for root, names, files in os.walk(folder):
            if Path(root) == Path(folder):
                names[:] = [name for name in names if not name.startswith(leave_out)]
            elif FILE_NAME in files and os.path.realpath(Path(root, FILE_NAME)) not in _held:
                stack.callback(_lock(Path(root, FILE_NAME), what_to_do).release)
        yield


def holder(folder: str | os.PathLike) -> dict:
    """Return the process that locked an output folder last, if any (see `this_process` and `lives`)."""
    try:
        found = read_json(Path(folder, HOLDER), 2**16)
    except (OSError, UnsafeTextError):
        return {}
    return found if isinstance(found, dict) else {}


def this_process() -> dict:
    """Return what identifies this process: its host, process id and start."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": now, "born": _birth(os.getpid())}


def _lock(path: Path, what_to_do: str) -> "BaseFileLock":
    from filelock import FileLock, Timeout  # its locks are not inherited by data-loader workers, which may outlive a run

    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(f"'{path}' is a link or not a regular file, so that it cannot be the lock of its folder: remove it.")
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        about = _describe(holder(path.parent))
        raise OccupiedError(f"The output folder '{path.parent}' is in use by {about}. {what_to_do}") from None
    return lock


def _leave(folder: Path, pid: int) -> None:
    """Remove the note of a process that ends by itself; the lock ends with the process."""
    if os.getpid() == pid and holder(folder).get("pid") == pid:
        with suppress(OSError):
            (folder / HOLDER).unlink()


def _describe(holder: dict) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on host {holder.get('host')}, started {holder.get('started')}"


def lives(holder: dict) -> bool:
    """Whether the process may still be alive; on another host that is unknown, and it counts as alive."""
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder.get("pid")
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    except PermissionError:
        pass
    return _birth(pid) == holder.get("born")


def _birth(pid: int) -> str:
    """Return a process's start in clock ticks since boot, which differs from an earlier process with the same id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
