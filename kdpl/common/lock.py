"""The lock on an output folder: one run at a time writes to it."""

import atexit
import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, parse_json, read_text

if TYPE_CHECKING:
    from filelock import FileLock

FILE_NAME = ".run.lock"  # what is locked; nothing is written to it
HOLDER = ".run.json"  # beside it: the process that locked it last
MAX_BYTES = 2**16  # far more than is ever written
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[str, "FileLock | None"] = {}  # by path, for the life of the process; None: the file system has no locks


class OccupiedError(RuntimeError):
    """Another run writes to the output folder."""


def occupy(folder: str | os.PathLike) -> None:
    """Lock an output folder until this process ends; calling it again is harmless.

    The lock is an operating-system lock on a file in the folder, so it ends with the process, however that dies. If the file
    system has no locks, the process named beside it counts as the holder as long as it is alive.

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
    lock = _take(path, "Wait for it to end, stop it, or choose another --output-dir.")
    try:
        if before:
            print(f"Taking over '{folder}' from {_describe(before)}, which ended without releasing it")
        with atomic_write(folder / HOLDER, "w") as file:
            json.dump(this_process(), file)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    _held[str(path)] = lock
    atexit.register(_leave, folder, os.getpid())


@contextmanager
def nothing_runs_below(folder: str | os.PathLike, leave_out: str) -> Iterator[None]:
    """Hold the locks of all runs in subfolders of an output folder, links to folders included.

    Args:
        leave_out: the beginning of the names of its own subfolders that are not looked at.

    Raises:
        OccupiedError: a living process holds one of them.
        OSError: a lock cannot be opened.
    """
    with ExitStack() as stack:
        way_out = f"'{folder}' cannot be moved aside before it has ended: wait, stop it, or choose another --output-dir."
        for path in _locks_below(Path(folder), leave_out):
            if str(path) not in _held and (lock := _take(path, way_out)) is not None:
                stack.callback(lock.release)
        yield


def _locks_below(folder: Path, leave_out: str) -> Iterator[Path]:
    seen = set()
    for root, names, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if Path(root) == folder:
            names[:] = [name for name in names if not name.startswith(leave_out)]
        elif FILE_NAME in files and not os.path.islink(os.path.join(root, FILE_NAME)):
            yield Path(root).resolve() / FILE_NAME


def holder(folder: str | os.PathLike) -> dict:
    """Return the process that locked an output folder last, if any (see `this_process` and `lives`)."""
    return _read(Path(folder, HOLDER)) or _read(Path(folder, FILE_NAME))  # version 0.2 wrote into the lock itself


def this_process() -> dict:
    """Return what identifies this process: its host, process id and start."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": now, "born": _birth(os.getpid())}


def _take(path: Path, way_out: str) -> "FileLock | None":
    """Return the lock on a file, taken; None if the file system has no locks, and the last holder has ended."""
    last, older = holder(path.parent), _read(path)
    runs = older.get("host") == socket.gethostname() and lives(older)  # version 0.2, whose locks are of another kind
    taken = False if runs else _lock(path)
    if taken is False or (taken is None and last and lives(last)):
        raise OccupiedError(f"The output folder '{path.parent}' is in use by {_describe(last)}. {way_out}")
    return taken


def _lock(path: Path) -> "FileLock | Literal[False] | None":
    """Return the operating system's lock on a file; False if another process has it; None if the file system has no locks.

    Raises:
        OSError: the file is a link, through which another one would be locked, or cannot be opened.
    """
    from filelock import FileLock, Timeout  # its locks are not inherited by data-loader workers, which may outlive a run

    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(f"'{path}' is a link or not a regular file, so that it cannot be the lock of its folder: remove it.")
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return lock


def _leave(folder: Path, pid: int) -> None:
    """Remove the note of a process that ends by itself; the lock ends with the process."""
    if os.getpid() == pid and holder(folder).get("pid") == pid:
        with suppress(OSError):
            (folder / HOLDER).unlink()


def _read(path: Path) -> dict:
    try:
        found = parse_json(read_text(path, MAX_BYTES), path.name)
    except (OSError, UnsafeTextError):
        return {}
    return found if isinstance(found, dict) else {}


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
