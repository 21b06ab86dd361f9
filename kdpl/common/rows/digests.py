"""Digests of files by content. They are remembered, so that a large set of images is not read at every start."""

import hashlib
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from kdpl.common.files import cache_dir
from kdpl.common.rows import KEY_BYTES, RowStore, key_of, store_folder

SAMPLE = 32  # files whose remembered digests are verified at every start
AT_ONCE = 4096  # digests that are written together
THREADS = 8
TRIES = 5  # to read a file that is being written to
SETTLED_S = 2.0  # a file that was changed so shortly before may change again at the same time, as file systems count it

Digest = Callable[[str | os.PathLike], bytes]


class ChangedFileError(ValueError):
    """A file has another content than when its digest was taken."""


class Content(NamedTuple):
    """The digest of a file's content, and the identity that the file had when it was read."""

    digest: bytes
    identity: bytes


def file_digest(path: str | os.PathLike) -> bytes:
    """Return the digest (16 bytes) of a file's content.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.blake2b(digest_size=KEY_BYTES)
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at '{path}'. Check DATASET.ROOT.") from None
    return digest.digest()


def _identity(path: str | os.PathLike) -> tuple[bytes, float]:
    """Return a key that changes when a file is replaced or written to, and its time of change in seconds.

    The time of change (ctime), unlike that of modification, cannot be set back.
    """
    try:
        s = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at '{path}'. Check DATASET.ROOT.") from None
    return key_of(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns), s.st_ctime_ns / 1e9


def file_digests(paths: Sequence[str | os.PathLike], digest: Digest = file_digest) -> list[bytes]:
    """Return the digest of each file's content; see `file_contents`."""
    return [content.digest for content in file_contents(paths, digest)]


def file_contents(paths: Sequence[str | os.PathLike], digest: Digest = file_digest) -> list[Content]:
    """Return the digest of each file's content, with the file's identity.

    Digests are remembered by device, inode, size, and times of modification and of change. Where a file system lets a file
    change without changing any of these, that could go unnoticed, so a sample is read again each time; if it disagrees,
    everything that is remembered is forgotten, and all files are read.

    Raises:
        OSError: a file is missing or cannot be read.
        ChangedFileError: a file changes while it is read.
    """
    keys = [_identity(path)[0] for path in paths]
    store = RowStore(store_folder(cache_dir() / "file_digests", {"digest": "blake2b"}), KEY_BYTES, "u1")
    known = {key: shard[row]["value"].tobytes() for shard, found in store.find(set(keys)) for key, row in found}
    remembered = [i for i, key in enumerate(keys) if key in known]
    sample = random.SystemRandom().sample(remembered, min(SAMPLE, len(remembered)))
    wrong = [i for i in sample if digest(paths[i]) != known[keys[i]]]
    if wrong:
        print(f"'{paths[wrong[0]]}' has changed although its size and times have not: all {len(paths):,} files are read again")
        known = {}
        store.forget()
    new = [i for i, key in enumerate(keys) if key not in known]
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(new), desc="digests of files", disable=None, leave=False) as bar:
        for start in range(0, len(new), AT_ONCE):
            some, now = new[start : start + AT_ONCE], time.time()
            read = list(pool.map(lambda i: _read(paths[i], digest), some))
            for i, (content, _) in zip(some, read, strict=True):
                keys[i] = content.identity
                known[content.identity] = content.digest
            bar.update(len(some))
            _remember(store, [content for content, changed in read if changed < now - SETTLED_S])
    return [Content(known[key], key) for key in keys]


def refuse_changed(path: str | os.PathLike, content: Content) -> None:
    """Refuse a file whose content is not that of its digest any more; it is read only if its identity is another.

    Raises:
        ChangedFileError: it has changed.
    """
    if _identity(path)[0] != content.identity and file_digest(path) != content.digest:
        raise ChangedFileError(
            f"'{path}' has changed since the start of the run, so that what is computed now is of other images than what was "
            "computed before. Leave data sets alone while they are in use, and start again in another --output-dir or with "
            "--fresh."
        )


def _read(path: str | os.PathLike, digest: Digest) -> tuple[Content, float]:
    """Return a file's content, and its time of change in seconds."""
    identity, changed = _identity(path)
    for _ in range(TRIES):
        found, before = digest(path), identity
        identity, changed = _identity(path)
        if identity == before:
            return Content(found, identity), changed
    raise ChangedFileError(f"'{path}' changes while it is read: wait until whatever writes to it has ended.")


def _remember(store: RowStore, contents: Sequence[Content]) -> None:
    if not contents:
        return
    values = np.frombuffer(b"".join(content.digest for content in contents), "u1").reshape(len(contents), KEY_BYTES)
    try:
        store.append([content.identity for content in contents], values)
    except OSError as error:
        print(f"Digests of files are not remembered, because '{store.folder}' cannot be written: {error}")
