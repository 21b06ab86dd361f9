"""Digests of files by content. They are remembered, so that a large set of images is not read at every start."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from kdpl.common.files import cache_dir
from kdpl.common.rows import KEY_BYTES, RowStore, key_of, store_folder

SAMPLE = 32  # files whose remembered digests are verified at every start
AT_ONCE = 4096  # digests that are written together
THREADS = 8


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


def _identity(path: str | os.PathLike) -> bytes:
    """Return a key that changes when a file is replaced or written to: device, inode, size and time."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at '{path}'. Check DATASET.ROOT.") from None
    return key_of(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def file_digests(paths: Sequence[str | os.PathLike], digest: Callable[[str | os.PathLike], bytes] = file_digest) -> list[bytes]:
    """Return the digest of each file's content.

    Digests are remembered by device, inode, size and time of change. A file that was changed without changing any of these
    would go unnoticed, so a sample is read again each time; if it disagrees, all files are.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    keys = [_identity(path) for path in paths]
    store = RowStore(store_folder(cache_dir() / "file_digests", {"digest": "blake2b"}), KEY_BYTES, "u1")
    known = {key: shard[row]["value"].tobytes() for shard, found in store.find(set(keys)) for key, row in found}
    remembered = [i for i, key in enumerate(keys) if key in known]
    sample = random.SystemRandom().sample(remembered, min(SAMPLE, len(remembered)))
    wrong = [i for i in sample if digest(paths[i]) != known[keys[i]]]
    if wrong:
        print(f"'{paths[wrong[0]]}' has changed although its size and time have not: all {len(paths):,} files are read again")
        known = {}
    new = [i for i, key in enumerate(keys) if key not in known]
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=len(new), desc="digests of files", disable=None, leave=False) as bar:
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            found = list(pool.map(digest, [paths[i] for i in some]))
            known.update(zip((keys[i] for i in some), found, strict=True))
            bar.update(len(some))
            if not wrong:  # the store keeps the first digest of a key
                _remember(store, [keys[i] for i in some], found)
    return [known[key] for key in keys]


def _remember(store: RowStore, keys: Sequence[bytes], digests: Sequence[bytes]) -> None:
    try:
        store.append(keys, np.frombuffer(b"".join(digests), "u1").reshape(len(digests), KEY_BYTES))
    except OSError as error:
        print(f"Digests of files are not remembered, because '{store.folder}' cannot be written: {error}")
