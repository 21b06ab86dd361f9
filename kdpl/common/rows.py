"""Vectors on disk by key, as rows of a fixed size in append-only shards, for features that any number of runs share.

Every process that finds something new writes a shard of its own, so that runs may read and write one folder at the same time.
A row holds a key, a vector, and a checksum of both: a row that was cut off by a kill or has rotted does not count. What a
folder is for (weights, transform, precision, ...) is hashed into its name.
"""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2  # of the rows; raised whenever other vectors come out of the same key
KEY_BYTES = 16


def key_of(*facts: Any) -> bytes:
    """Return the key of what these facts describe."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=KEY_BYTES).digest()


def store_folder(folder: str | os.PathLike, meaning: dict[str, Any]) -> Path:
    """Return the folder below `folder` for vectors of this meaning."""
    text = json.dumps({"format": FORMAT, **meaning}, sort_keys=True)
    return Path(folder, hashlib.sha256(text.encode()).hexdigest()[:32])


class RowStore:
    """Vectors on disk, by key.

    Args:
        folder: of the shards, for one meaning of the vectors; it is made when the first row is written.
        width: d of the vectors.
        dtype: float16 or float32.
    """

    def __init__(self, folder: str | os.PathLike, width: int, dtype: np.dtype | type | str):
        self.folder = Path(folder)
        self.row = np.dtype([("key", f"V{KEY_BYTES}"), ("value", dtype, (width,)), ("checksum", "<u4")])
        self._file: int | None = None
        self._path: Path | None = None
        self.rows_written = 0

    def find(self, wanted: Collection[bytes] | None = None) -> Iterator[tuple[np.ndarray, list[tuple[bytes, int]]]]:
        """Yield each shard `(n,)`, mapped into memory, with the keys and row numbers of what it holds of `wanted`,
        by default of everything.

        Each key is found once. Damaged rows are counted and reported in one line.
        """
        seen, damaged = set(), 0
        for path in sorted(self.folder.glob("*.rows")):
            shard, found = self._map(path), []
            keys = shard["key"].tobytes()
            for row in range(len(shard)):
                key = keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]
                if key not in seen and (wanted is None or key in wanted):
                    if self._is_sound(shard[row]):
                        seen.add(key)
                        found.append((key, row))
                    else:
                        damaged += 1
            if found:
                yield shard, found
        if damaged:
            print(f"{damaged} rows in '{self.folder}' are damaged: these features are computed again")

    def own_shard(self) -> np.ndarray:
        """Return the rows that this process has written, mapped into memory."""
        return self._map(self._path)

    def _is_sound(self, row: np.ndarray) -> bool:
        return zlib.crc32(row.tobytes()[:-4]) == int(row["checksum"]) and bool(np.isfinite(row["value"]).all())

    def append(self, keys: Sequence[bytes], values: np.ndarray) -> int:
        """Write rows to this process's shard and return the number of the first.

        Raises:
            OSError: they could not be written whole, for want of room say; what is there is as before.
        """
        rows = np.zeros(len(keys), self.row)
        rows["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        rows["value"] = values
        rows["checksum"] = [zlib.crc32(row.tobytes()[:-4]) for row in rows]
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path = self.folder / f"{uuid.uuid4().hex}.rows"
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        first, data, start = self.rows_written, memoryview(rows.tobytes()), self.rows_written * self.row.itemsize
        while data:
            written = os.pwrite(self._file, data, start)
            data, start = data[written:], start + written
        self.rows_written += len(keys)
        return first

    def sync(self) -> None:
        """Make the operating system write everything to the disk."""
        if self._file is not None:
            os.fsync(self._file)

    def _map(self, path: Path) -> np.ndarray:
        try:
            n = os.path.getsize(path) // self.row.itemsize
            return np.memmap(path, self.row, mode="r", shape=(n,)) if n else np.zeros(0, self.row)
        except OSError:  # gone meanwhile, or not a file
            return np.zeros(0, self.row)
