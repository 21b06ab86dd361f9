"""Atomic writing (a crash or a full disk leaves the old file or the new one, never a part of it), and digests."""

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdpl.common import sources

RECORD = ".kdpl.json"  # in a folder that a command has written: see outputs.py
PART = ".kdpl-part"  # of the names of unfinished files; no other program gives it
KEY_BYTES = 16  # of digests
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(OSError):
    """A file could not be written because the disk is full, or a quota or a file-size limit is reached."""


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Open a temporary file beside `path`; at a clean exit it is synced to disk and renamed onto `path`.

    Args:
        path: the finished file; its folder is created if missing.
        mode: "w" for text (UTF-8) or "wb" for bytes.

    Raises:
        NoRoomError: there is no room for the file; the previous version of `path` is untouched.
        OSError: the file could not be written; the previous version of `path` is untouched.
    """
    path = Path(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    with naming_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            with os.fdopen(fd, mode, **kwargs) as file:
                yield file
            mask = os.umask(0)  # it can only be read by setting it
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def remove_parts(*folders: str | os.PathLike) -> None:
    """Remove the unfinished files that killed writers have left directly in folders, which no one else may be writing to.

    Files of other programs, links and subfolders, in which other runs may be at work, are left alone.
    """
    for folder in folders:
        for path in Path(folder).glob(f".*{PART}"):
            if path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def replace(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a finished file onto `path` in the same file system; after a crash it is there whole or not at all.

    Raises:
        OSError: the file could not be renamed; the previous version of `path` is untouched.
    """
    _sync(source)
    os.replace(source, path)
    sync_folder(Path(path).parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Sync a folder's entries to disk, if the operating system and the file system support it."""
    with contextlib.suppress(OSError):
        _sync(folder)


def rename_folder(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a finished folder, whatever its depth; after a crash it is there whole or not at all.

    Raises:
        OSError: the folder could not be renamed.
    """
    if hasattr(os, "sync"):
        os.sync()  # one call for all files is far quicker than one per file
    os.rename(source, path)
    sync_folder(Path(path).parent)


def write_torch(state: Any, path: str | os.PathLike) -> None:
    """Save `state` with `torch.save`, atomically.

    Raises:
        NoRoomError, OSError: as `atomic_write`.
    """
    import torch

    content = io.BytesIO()  # torch.save would hide the error of a failing file, and the states are small
    torch.save(state, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


@contextmanager
def naming_full_disks(path: str | os.PathLike) -> Iterator[None]:
    """Raise NoRoomError, which names `path` and what to do, if a write fails for lack of room."""
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            if error.strerror is None:
                raise
            raise type(error)(error.errno, f"{error.strerror}, so that it cannot be written", os.fspath(path)) from error
        raise NoRoomError(
            f"'{path}' cannot be written: {error.strerror}. The previous version is untouched. Make room on its disk, or "
            "raise the quota or the file-size limit."
        ) from error


def _sync(path: str | os.PathLike) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def name_below(path: str | os.PathLike, root: str | os.PathLike) -> str:
    """Return the path of a file relative to a folder, or the absolute one if it lies elsewhere."""
    path = os.path.abspath(path)
    below = os.path.relpath(path, os.path.abspath(root)) if root else path
    return path if below.startswith("..") else below


def cache_dir() -> Path:
    """Return the cache folder, which may not exist yet: $KDPL_CACHE if set, else ~/.cache/kdpl."""
    path = Path(os.environ.get("KDPL_CACHE") or "~/.cache/kdpl")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"KDPL_CACHE is '{path}', and there is no such user or home: expected a folder.") from None


def key_of(*facts: Any) -> bytes:
    """Return the key that identifies these facts, which JSON can hold."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=KEY_BYTES).digest()


def file_key(path: str | os.PathLike) -> bytes:
    """Return a key of a file's path, size and times of modification and change; that of change cannot be set back.

    Raises:
        OSError: it is missing.
    """
    stamp = sources.stamp(path)
    return key_of(os.path.abspath(path), stamp.size, stamp.mtime_ns, stamp.ctime_ns)


def file_digest(path: str | os.PathLike) -> bytes:
    """Return the digest of a file's content.

    Raises:
        OSError: it is missing or cannot be read.
    """
    if (data := sources.content(path)) is not None:
        return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.digest()
