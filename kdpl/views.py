"""Features of frozen towers for the fixed views of a training set, computed once and kept in memory and on disk.

On disk they are rows of a fixed size in shards, one shard for each process that found something new, so that any number of
runs may read and write one folder at the same time. A row holds a key of image and view, the feature, and a checksum of
both: a row that was cut off by a kill or has rotted is not taken for a feature. What a folder is for (weights,
transform, precision) is hashed into its name.
"""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpl import distributed

FORMAT = 1  # of the rows; raised whenever other features come out of the same key
KEY_BYTES = 16
_IN_MEMORY, _OWN_SHARD = 0, 1  # segments of a table; the shards found at the start follow


@dataclass(frozen=True)
class ImageFile:
    """What stands for an image: its name in the data set, and size and time of change (ns) of its file."""

    name: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: str | os.PathLike, root: str | os.PathLike) -> "ImageFile":
        """Return that of a file; its name is its path below `root` where it lies there.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = os.path.abspath(path)
        try:
            status = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"No image at '{path}' ({error.strerror}). Check DATASET.ROOT.") from None
        below = os.path.relpath(path, os.path.abspath(root)) if root else path
        return cls(path if below.startswith("..") else below, status.st_size, status.st_mtime_ns)

    def key(self, view: int) -> bytes:
        facts = json.dumps([self.name, self.size, self.changed, view]).encode()
        return hashlib.blake2b(facts, digest_size=KEY_BYTES).digest()


class RowStore:
    """Features on disk, by key.

    Args:
        folder: of the shards, for one meaning of the features; it is made when the first row is written.
        width: d of the features.
        dtype: float16 or float32.
    """

    def __init__(self, folder: str | os.PathLike, width: int, dtype: np.dtype | type):
        self.folder = Path(folder)
        self.row = np.dtype([("key", f"V{KEY_BYTES}"), ("value", dtype, (width,)), ("checksum", "<u4")])
        self._file: int | None = None
        self._path: Path | None = None
        self.rows_written = 0

    def shards(self) -> list[np.ndarray]:
        """Return the rows of all shards there are, `(n,)` each, mapped into memory."""
        return [rows for path in sorted(self.folder.glob("*.rows")) if len(rows := self._map(path))]

    def own_shard(self) -> np.ndarray:
        """Return the rows that this process has written, mapped into memory."""
        return self._map(self._path)

    def is_sound(self, row: np.ndarray) -> bool:
        """Whether a row is as it was written."""
        return zlib.crc32(row.tobytes()[:-4]) == int(row["checksum"])

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
        """Have the operating system write everything to the disk."""
        if self._file is not None:
            os.fsync(self._file)

    def _map(self, path: Path) -> np.ndarray:
        n = os.path.getsize(path) // self.row.itemsize
        return np.memmap(path, self.row, mode="r", shape=(n,)) if n else np.zeros(0, self.row)


class FeatureTable:
    """Features `(d,)` by image and view: those found in a store, and those put in since.

    Args:
        images: the training set, N of them.
        views: V of each.
        width: d.
        dtype: float16 or float32; what is put in is rounded to it, so that it reads the same from memory and disk.
        store: where they are kept on disk; None: in memory alone.
    """

    def __init__(self, images: Sequence[ImageFile], views: int, width: int, dtype: torch.dtype, store: RowStore | None = None):
        self.images, self.width, self.dtype, self.store = images, width, dtype, store
        shape = (len(images), views)
        self.known = torch.zeros(shape, dtype=torch.bool)
        self._segment, self._row = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.long)
        self._memory: Tensor | None = None  # (N * V, d), in place: pages that nothing is put into take no memory
        self._own: np.ndarray | None = None
        self.writable = store is not None
        self._shards: list[np.ndarray] = []
        if store is not None:
            self._find()

    @property
    def missing(self) -> int:
        """How many features are not known."""
        return int((~self.known).sum())

    def get(self, index: Tensor, view: Tensor) -> Tensor:
        """Return the features `(B, d)` on the CPU; those that are not known are NaN."""
        features = torch.full((len(index), self.width), torch.nan, dtype=self.dtype)
        known, segments, rows = self.known[index, view], self._segment[index, view], self._row[index, view]
        for segment in segments[known].unique().tolist():
            here = known & (segments == segment)
            features[here] = self._values(segment, rows[here])
        return features

    def put(self, index: Tensor, view: Tensor, features: Tensor) -> None:
        """Take in features `(B, d)`; what is not finite is left out."""
        finite = torch.isfinite(features).all(1)
        index, view, features = index[finite], view[finite], features[finite].to(self.dtype)
        if not len(index):
            return
        segment, rows = self._write(index, view, features)
        self._segment[index, view] = segment
        self._row[index, view] = rows
        self.known[index, view] = True

    def sync(self) -> None:
        """Have everything that was put in written to the disk, where there is a store."""
        if self.store is not None:
            self.store.sync()

    def _write(self, index: Tensor, view: Tensor, features: Tensor) -> tuple[int, Tensor]:
        if self.writable:
            keys = [self.images[i].key(v) for i, v in zip(index.tolist(), view.tolist(), strict=True)]
            try:
                first = self.store.append(keys, features.numpy())
                return _OWN_SHARD, torch.arange(first, first + len(keys))
            except OSError as error:
                print(f"Features of views are kept in memory alone from now on: '{self.store.folder}' ({error})")
                self.writable = False
        if self._memory is None:
            self._memory = torch.empty(self.known.numel(), self.width, dtype=self.dtype)
        rows = index * self.known.shape[1] + view
        self._memory[rows] = features
        return _IN_MEMORY, rows

    def _values(self, segment: int, rows: Tensor) -> Tensor:
        if segment == _IN_MEMORY:
            return self._memory[rows]
        if segment == _OWN_SHARD:
            if self._own is None or int(rows.max()) >= len(self._own):
                self._own = self.store.own_shard()
            return torch.from_numpy(self._own["value"][rows.numpy()])
        return torch.from_numpy(self._shards[segment - 2]["value"][rows.numpy()])

    def _find(self) -> None:
        wanted = {image.key(v): (i, v) for i, image in enumerate(self.images) for v in range(self.known.shape[1])}
        damaged = 0
        for shard in self.store.shards():
            found = []
            keys = shard["key"].tobytes()
            for row in range(len(shard)):
                key = keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]
                if key in wanted:
                    if self.store.is_sound(shard[row]):
                        found.append((*wanted.pop(key), row))
                    else:
                        damaged += 1
            if found:
                index, view, rows = torch.tensor(found).T
                self._segment[index, view] = len(self._shards) + 2
                self._row[index, view] = rows
                self.known[index, view] = True
                self._shards.append(shard)
        if damaged:
            print(f"{damaged} rows in '{self.store.folder}' are damaged: these features are computed again")


class ViewFeatures:
    """A frozen tower's features of views, computed when a view is first seen.

    Args:
        compute: normalised images `(n, 3, H, W)` to features `(n, d)`.
        table: where they are kept.
        chunk: images that are computed together. It is always this many, filled up with blank ones, so that an image's feature
            is the same to the last bit in whatever company it is computed.
        device: where the features are given.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], table: FeatureTable, chunk: int, device: torch.device):
        self.compute, self.table, self.chunk, self.device = compute, table, chunk, device

    def missing(self, index: Tensor, view: Tensor) -> Tensor:
        """Return which images' pixels are needed, `(B,)`."""
        return ~self.table.known[index, view]

    def agree(self) -> None:
        """Forget what not every rank has found, so that all know the same from now on; rank 0 alone writes to the disk."""
        if distributed.world() > 1:
            self.table.known &= distributed.total(self.table.known.int()) == distributed.world()
            self.table.writable &= distributed.is_main()

    def __call__(self, batch: dict[str, Any], pixels: Tensor | None) -> Tensor:
        """Return the features `(B, d)` in fp32.

        Args:
            batch: of an `EpochLoader` with views.
            pixels: normalised images `(len(batch["rows"]), 3, H, W)`; None where nothing is missing.
        """
        index, view, rows = batch["index"], batch["view"], batch["rows"]
        missing = self.missing(index, view).nonzero().squeeze(1)
        new_features = [torch.empty(0, self.table.width)]
        for new in missing.split(self.chunk) if len(missing) else ():
            images = pixels[torch.searchsorted(rows, new).to(pixels.device)]
            blank = images.new_zeros(self.chunk - len(images), *images.shape[1:])
            new_features.append(self.compute(torch.cat([images, blank]))[: len(new)].float().cpu())
        self._put_for_all(batch, torch.cat(new_features))
        features = self.table.get(index, view)
        if self.device.type == "cuda":
            features = features.pin_memory()
        return features.to(self.device, non_blocking=True).float()

    def _put_for_all(self, batch: dict[str, Any], features: Tensor) -> None:
        """Take in what this rank has computed and what the others have, in the order of the whole batch."""
        index, view = batch["all_index"], batch["all_view"]
        missing = self.missing(index, view)
        if missing.any():
            counts = [int(part.sum()) for part in missing.split(batch["counts"])]
            self.table.put(index[missing], view[missing], distributed.gather_rows(features, counts))


def store_folder(folder: str | os.PathLike, meaning: dict) -> Path:
    """Return the folder of a store below CACHE_DIR for features of this meaning (weights, transform, precision, ...)."""
    text = json.dumps({"format": FORMAT, **meaning}, sort_keys=True)
    return Path(folder, "views", hashlib.sha256(text.encode()).hexdigest()[:32])
