"""Vectors that were computed before, by key: one safetensors file for each thing that they depend on."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from kdpl.common import sources
from kdpl.common.files import KEY_BYTES, atomic_write, cache_dir, file_digest, file_key

FORMAT = 3  # increased whenever the vectors of a key change
SAVE_EVERY = 60.0  # seconds of work that a killed process loses at most; a large file is written less often
WAIT = 60.0  # seconds for another process that writes the file
THREADS = 8  # that read files
SETTLED = 2.0  # seconds; a file that was changed later may change again at the same time, as file systems count it


class FeatureFile:
    """Vectors `(d,)` by key. A file belongs to all that its vectors depend on; to `save` adds to what it has got meanwhile.

    Vectors that are not finite are not known. If the file cannot be written, that is printed once, and the vectors are known
    to this process alone.

    Args:
        folder: of the cache; created at the first save.
        meaning: what the vectors depend on, such as weights, precision and sentences.
        width: d.
        dtype: of the vectors.

    Attributes:
        writable: False after the file could not be written.
        hits: how many vectors of earlier processes were read.
    """

    def __init__(self, folder: str | os.PathLike, meaning: dict[str, Any], width: int, dtype: torch.dtype = torch.float32):
        text = json.dumps({"format": FORMAT, **meaning}, sort_keys=True)
        self.path = Path(folder, f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors")
        self.width, self.dtype = width, dtype
        self.writable, self.hits = True, 0
        self._added: set[bytes] = set()
        self._saved, self._pause = time.monotonic(), SAVE_EVERY
        self._use(*self._read())

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def get(self, keys: Sequence[bytes]) -> Tensor:
        """Return the vectors `(N, d)` of known keys."""
        self.hits += sum(key not in self._added for key in keys)
        blocks, rows = torch.tensor([self._place[key] for key in keys], dtype=torch.long).view(-1, 2).T
        values = torch.empty(len(keys), self.width, dtype=self.dtype)
        for block in blocks.unique().tolist():
            values[blocks == block] = self._blocks[block][rows[blocks == block]]
        return values

    def add(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Add vectors `(N, d)`; they are saved from time to time."""
        self._blocks.append(values.detach().to("cpu", self.dtype))
        finite = torch.isfinite(self._blocks[-1]).all(1).tolist()
        self._unsaved += (new := [key for key, fine in zip(keys, finite, strict=True) if fine])
        self._added.update(new)
        self._place.update((key, (len(self._blocks) - 1, row)) for row, key in enumerate(keys) if finite[row])
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def save(self) -> None:
        """Write what was added, with what other processes have written meanwhile."""
        from filelock import FileLock

        if not self._unsaved or not self.writable:
            return
        start = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=WAIT):
                keys, values = self._read()
                there = set(keys)
                new = [key for key in dict.fromkeys(self._unsaved) if key not in there]
                keys, values = keys + new, torch.cat([values, self.get(new)])
                table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
                with atomic_write(self.path) as file:
                    file.write(save({"keys": table, "values": values}))
        except OSError as error:
            self.writable = False
            print(f"Features are not cached from now on: '{self.path}' cannot be written ({error})")
            return
        self._use(keys, values)
        self._saved = time.monotonic()
        self._pause = max(SAVE_EVERY, 20 * (self._saved - start))

    def _read(self) -> tuple[list[bytes], Tensor]:
        """Return the keys and vectors `(N, d)` of the file, of which memory is taken as they are used."""
        nothing = [], torch.empty(0, self.width, dtype=self.dtype)
        if not self.path.is_file():
            return nothing
        try:
            with safe_open(self.path, "pt") as file:
                table, values = file.get_tensor("keys"), file.get_tensor("values")
            if table.dtype != torch.uint8 or values.dtype != self.dtype or values.shape != (len(table), self.width):
                raise ValueError(f"it has vectors {tuple(values.shape)} in {values.dtype}")
            data = table.numpy().tobytes()
            return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)], values
        except (SafetensorError, OSError, ValueError) as error:
            print(f"'{self.path}' is damaged, and what it had is computed again ({error})")
            return nothing

    def _use(self, keys: list[bytes], values: Tensor) -> None:
        """Make the vectors of a file the known ones."""
        finite = torch.isfinite(values).all(1).tolist()
        self._blocks, self._unsaved = [values], []
        self._place = {key: (0, row) for row, key in enumerate(keys) if finite[row]}


def file_digests(paths: Sequence[str | os.PathLike], keys: Sequence[bytes] = ()) -> list[bytes]:
    """Return the digest of each file's content, which is remembered by the file's path, size and times.

    Args:
        keys: the `file_key` of each, if known.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    keys = keys or [file_key(path) for path in paths]
    known = FeatureFile(cache_dir() / "file_digests", {}, KEY_BYTES, torch.uint8)
    new = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    with ThreadPoolExecutor(THREADS) as pool:
        read = tqdm(pool.map(file_digest, new.values()), "digests of files", len(new), leave=False, disable=None)
        digests = dict(zip(new, read, strict=True))
    newest = (time.time() - SETTLED) * 1e9
    settled = [k for k, path in new.items() if k == file_key(path) and sources.stamp(path).ctime_ns < newest]
    if settled:
        known.add(settled, torch.tensor([list(digests[key]) for key in settled], dtype=torch.uint8))
        known.save()
    before = [key for key in keys if key not in digests]
    digests |= {key: bytes(row) for key, row in zip(before, known.get(before).tolist(), strict=True)}
    return [digests[key] for key in keys]
