"""An on-disk store of vectors by key, in append-only shards of fixed-size rows, shared by any number of runs.

Every process writes new vectors to its own shard, so several runs may read and write one folder at the same time. A row
holds a key, a vector and a checksum of both, so truncated or damaged rows are ignored. The folder's name is a hash of what
its vectors depend on (weights, transform, precision, ...).
"""

import hashlib
import json
import os
import struct
import uuid
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2  # of the rows; increased whenever the vectors of a key change
KEY_BYTES = 16
SMALL = 2**18  # bytes of a shard that is read at once: a cache has many small ones, and mapping takes longer


def key_of(*facts: Any) -> bytes:
    """Return the key that identifies these facts."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=KEY_BYTES).digest()


def store_folder(folder: str | os.PathLike, meaning: dict[str, Any]) -> Path:
    """Return the folder below `folder` for vectors that depend on `meaning`."""
    text = json.dumps({"format": FORMAT, **meaning}, sort_keys=True)
    return Path(folder, hashlib.sha256(text.encode()).hexdigest()[:32])


class RowStore:
    """Vectors on disk, by key.

    Args:
        folder: of the shards, see `store_folder`; created when the first row is written.
        width: d, the length of a vector.
        dtype: float16 or float32.
    """

    def __init__(self, folder: str | os.PathLike, width: int, dtype: np.dtype | type | str):
        self.folder = Path(folder)
        self.row = np.dtype([("key", f"V{KEY_BYTES}"), ("value", dtype, (width,)), ("checksum", "<u4")])
        self._file: int | None = None
        self._path: Path | None = None
        self.rows_written = 0

    def find(self, wanted: Collection[bytes] | None = None) -> Iterator[tuple[np.ndarray, list[tuple[bytes, int]]]]:
        """Yield each shard `(n,)` with the keys and row numbers of its `wanted` rows, by default of all.

        A large shard is memory-mapped. Each key is yielded once. Damaged rows are counted and reported in one line.
        """
        seen, damaged = set(), 0
        for path in sorted(self.folder.glob("*.rows")):
            shard, found = self._read(path), []
            for row, (key,) in enumerate(struct.iter_unpack(f"{KEY_BYTES}s", shard["key"].tobytes())):
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
        """Return the rows that this process has written, memory-mapped."""
        return self._map(self._path)

    def _is_sound(self, row: np.ndarray) -> bool:
        return zlib.crc32(row.tobytes()[:-4]) == int(row["checksum"]) and bool(np.isfinite(row["value"]).all())

    def append(self, keys: Sequence[bytes], values: np.ndarray) -> int:
        """Append rows to this process's shard and return the number of the first.

        Raises:
            OSError: the rows could not be written, for example on a full disk; earlier rows are unchanged.
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

    def forget(self) -> None:
        """Remove the rows of all processes; one that is at work goes on, and what it has read stays in its memory.

        Raises:
            OSError: a shard cannot be removed.
        """
        for path in self.folder.glob("*.rows"):
            path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Sync this process's shard to disk."""
        if self._file is not None:
            os.fsync(self._file)

    def _read(self, path: Path) -> np.ndarray:
        try:
            if not path.is_file():  # opening a FIFO would wait for ever
                return np.zeros(0, self.row)
            return self._map(path) if os.path.getsize(path) > SMALL else np.fromfile(path, self.row)
        except OSError:  # deleted meanwhile, or not a file
            return np.zeros(0, self.row)

    def _map(self, path: Path) -> np.ndarray:
        try:
            n = os.path.getsize(path) // self.row.itemsize
            return np.memmap(path, self.row, mode="r", shape=(n,)) if n else np.zeros(0, self.row)
        except OSError:  # deleted meanwhile, or not a file
            return np.zeros(0, self.row)
