"""One run at a time in an output folder."""

import contextlib
import errno
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import IO

from kdpl.common.files import naming_full_disks

FILE_NAME = ".run.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[str, IO[str]] = {}  # by folder; as long as the process lives


class OccupiedError(RuntimeError):
    """Another run writes to the output folder."""


def occupy(folder: str | os.PathLike) -> None:
    """Take an output folder for this process until it ends; again is no harm.

    The lock is the operating system's on a file in the folder, so that it ends with the process however that dies. Where the
    file system has no locks, the process that the file names is looked for on its host.

    Raises:
        OccupiedError: another process that lives has it; its host, process id and start are named.
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
        holder = _read(file.read())
        if locked is False or (locked is None and holder and lives(holder)):
            raise OccupiedError(
                f"The output folder '{path.parent}' is in use by {_describe(holder)}. Wait until it ends, stop it, or choose "
                "another --output-dir."
            )
        if holder:
            print(f"Taking over '{path.parent}' from {_describe(holder)}, which ended without giving it back")
        file.truncate(0)
        with naming_full_disks(path):
            json.dump(this_process(), file)
            file.flush()
    except BaseException:
        file.close()
        raise
    _held[str(path)] = file


def release(folder: str | os.PathLike) -> None:
    """Give an output folder back, if this process has it."""
    file = _held.pop(str(Path(folder).resolve() / FILE_NAME), None)
    if file is not None:
        with contextlib.suppress(OSError):
            file.truncate(0)  # nobody's any more: the file itself stays, else two could each lock a file of that name
        file.close()


def holder(folder: str | os.PathLike) -> dict:
    """Return which process took an output folder last and has not given it back, if any: see `this_process` and `lives`."""
    try:
        return _read((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def this_process() -> dict:
    """Return what tells this process from any other: its host, process id and start."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _now(), "born": _birth(os.getpid())}


def _lock(file: IO[str]) -> bool | None:
    """Return whether the operating system gave the lock; None: it has none here."""
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
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on host {holder.get('host')}, started {holder.get('started')}"


def lives(holder: dict) -> bool:
    """Whether the process may still be there; on another host nobody can tell, so that it counts as living."""
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
    """Return what tells a process from an earlier one of the same number: its start, in clock ticks since boot."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
