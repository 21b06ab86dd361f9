"""Atomic writing (a crash or a full disk leaves the old file or the new one, never a part of it), keys and digests."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdpl.common import sources

RECORD = ".kdpl.json"  # in a folder that a command has written: see outputs.py
PART = ".kdpl-part"  # of the names of unfinished files; no other program gives it
KEY_BYTES = 16  # of digests


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Open a temporary file beside `path`; at a clean exit it is synced to disk and renamed onto `path`.

    Args:
        path: the finished file; its folder is created if missing.
        mode: "w" for text (UTF-8) or "wb" for bytes.

    Raises:
        OSError: the file, which it names, could not be written; the previous version of `path` is untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{PART}")
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode.replace("w", "x"), **kwargs) as file:
            yield file
        replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)
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
    """Rename a finished file, or a folder of any depth, onto `path`; after a crash it is there whole or not at all.

    A folder with files in it is not replaced.
    """
    if os.path.isdir(source) and hasattr(os, "sync"):
        os.sync()  # one call for all files is far quicker than one per file
    sync(source)
    os.replace(source, path)
    sync(Path(path).parent)


def sync(path: str | os.PathLike) -> None:
    """Sync a file, or the entries of a folder, to disk; of a folder, if the system supports it."""
    with contextlib.suppress(OSError) if os.path.isdir(path) else contextlib.nullcontext():
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
    """Return a key of a photo's path, size and times of modification and change; that of change cannot be set back."""
    return key_of(os.path.abspath(path), *sources.stamp(path))


def file_digest(path: str | os.PathLike) -> bytes:
    """Return the digest of a photo's or a file's content; errors as for `sources.content`."""
    return hashlib.blake2b(sources.content(path), digest_size=KEY_BYTES).digest()
