"""The lock on an output folder: one run at a time writes to it."""

import errno
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import IO

from kdpl.common.files import naming_full_disks
from kdpl.common.safe_text import UnsafeTextError, parse_json, read_text

FILE_NAME = ".run.lock"
MAX_BYTES = 2**16  # far more than is ever written
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[str, IO[str]] = {}  # lock file by path, for the life of the process


class OccupiedError(RuntimeError):
    """Another run writes to the output folder."""


def occupy(folder: str | os.PathLike) -> None:
    """Lock an output folder until this process ends; calling it again is harmless.

    The lock is an operating-system lock on a file in the folder, so it ends with the process, however that dies. If the file
    system has no locks, the process named in the file counts as the holder as long as it is alive.

    Raises:
        OccupiedError: another living process holds the lock; its host, process id and start are named.
        OSError: the folder cannot be written to.
    """
    path = Path(folder).resolve() / FILE_NAME
    if str(path) in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  it stays open as long as the lock is held
    try:
        locked = _lock(file)
        file.seek(0)
        holder = _read(file.read(MAX_BYTES))
        if locked is False or (locked is None and holder and lives(holder)):
            raise OccupiedError(
                f"The output folder '{path.parent}' is in use by {_describe(holder)}. Wait for it to end, stop it, or choose "
                "another --output-dir."
            )
        if holder:
            print(f"Taking over '{path.parent}' from {_describe(holder)}, which ended without releasing it")
        file.truncate(0)
        with naming_full_disks(path):
            json.dump(this_process(), file)
            file.flush()
    except BaseException:
        file.close()
        raise
    _held[str(path)] = file


def holder(folder: str | os.PathLike) -> dict:
    """Return the process that locked an output folder last, if any (see `this_process` and `lives`)."""
    try:
        return _read(read_text(Path(folder) / FILE_NAME, MAX_BYTES))
    except (OSError, UnsafeTextError):
        return {}


def this_process() -> dict:
    """Return what identifies this process: its host, process id and start."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": now, "born": _birth(os.getpid())}


def _lock(file: IO[str]) -> bool | None:
    """Return whether the operating system granted the lock; None if the file system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by data-loader workers, unlike flock's
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        return False
    return True


def _read(text: str) -> dict:
    try:
        holder = parse_json(text, FILE_NAME)
    except UnsafeTextError:
        return {}
    return holder if isinstance(holder, dict) else {}


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
