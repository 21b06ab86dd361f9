"""Files of tensors: features that were computed before, by key, and the safe loading of checkpoints from elsewhere.

PyTorch's `weights_only` unpickler builds tensors, numbers and text only. Archives that unpack to more than their size, and
tensors with more elements than they store, are refused besides.
"""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from kdpl.common.files import KEY_BYTES, atomic_write, cache_dir, file_digest, file_key

FORMAT = 3  # increased whenever the vectors of a key change
SAVE_EVERY = 60.0  # seconds of work that a killed process loses at most; a large file is written less often
WAIT = 60.0  # seconds for another process that writes the file
THREADS = 8  # that read files


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
        self._saved, self._pause = time.monotonic(), SAVE_EVERY
        keys, values = self._read()
        self._blocks, self._unsaved = [values], {}
        finite = torch.isfinite(values).all(1).tolist()
        self._place = {key: (0, row) for row, key in enumerate(keys) if finite[row]}  # by key: block, row

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def get(self, keys: Sequence[bytes]) -> Tensor:
        """Return the vectors `(N, d)` of known keys."""
        blocks, rows = torch.tensor([self._place[key] for key in keys], dtype=torch.long).view(-1, 2).T
        self.hits += int((blocks == 0).sum())
        values = torch.empty(len(keys), self.width, dtype=self.dtype)
        for block in blocks.unique().tolist():
            values[blocks == block] = self._blocks[block][rows[blocks == block]]
        return values

    def add(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Add vectors `(N, d)`; they are saved from time to time."""
        self._blocks.append(values.detach().to("cpu", self.dtype))
        finite = torch.isfinite(self._blocks[-1]).all(1).tolist()
        new = {key: (len(self._blocks) - 1, row) for row, key in enumerate(keys) if finite[row]}
        self._place |= new
        self._unsaved |= new
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
                new = list(self._unsaved.keys() - keys)
                keys, values = keys + new, torch.cat([values, self.get(new)])
                table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
                with atomic_write(self.path) as file:
                    file.write(save({"keys": table, "values": values}))
        except OSError as error:
            self.writable = False
            print(f"Features are not cached from now on: '{self.path}' cannot be written ({error})")
            return
        self._unsaved = {}
        self._saved = time.monotonic()
        self._pause = max(SAVE_EVERY, 20 * (self._saved - start))

    def _read(self) -> tuple[list[bytes], Tensor]:
        """Return the keys and vectors `(N, d)` of the file, of which memory is taken as they are used."""
        if self.path.is_file():
            try:
                with safe_open(self.path, "pt") as file:
                    table, values = file.get_tensor("keys"), file.get_tensor("values")
                if table.dtype != torch.uint8 or values.dtype != self.dtype or values.shape != (len(table), self.width):
                    raise ValueError(f"it has vectors {tuple(values.shape)} in {values.dtype}")
                data = table.numpy().tobytes()
                return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)], values
            except (SafetensorError, OSError, ValueError) as error:
                print(f"'{self.path}' is damaged, and what it had is computed again ({error})")
        return [], torch.empty(0, self.width, dtype=self.dtype)


def file_digests(paths: Sequence[str | os.PathLike], keys: Sequence[bytes] = ()) -> list[bytes]:
    """Return the digest of each file's content, which is remembered by the file's path, size and times.

    Args:
        keys: the `file_key` of each, if known.

    Raises:
        OSError, ValueError: a file is missing or cannot be read.
    """
    keys = keys or [file_key(path) for path in paths]
    known = FeatureFile(cache_dir() / "file_digests", {}, KEY_BYTES, torch.uint8)
    if new := {key: path for key, path in zip(keys, paths, strict=True) if key not in known}:
        with ThreadPoolExecutor(THREADS) as pool:
            digests = tqdm(pool.map(file_digest, new.values()), "digests of files", len(new), leave=False, disable=None)
            known.add(list(new), torch.tensor([list(digest) for digest in digests], dtype=torch.uint8))
        known.save()
    return [bytes(row) for row in known.get(keys).tolist()]


class TensorFileError(ValueError):
    """A file is not a tensor file, is damaged, or is refused."""


def load_torch(path: Path, stand_in: Callable[[str], type | Callable | None] = lambda name: None) -> Any:
    """Load a file written by `torch.save`, or the state of a TorchScript archive, with its tensors on the CPU.

    Args:
        path: a zip archive, or a file of tensors only in the format of PyTorch before 1.6.
        stand_in: returns the replacement of a class or function named in the file, or None to refuse it.

    Raises:
        TensorFileError: the file holds objects that could run code, or claims to be larger than it is.
        Exception: many kinds, from inside PyTorch, if the file is damaged or of another format.
    """
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    tensors = [m for m in members if "code" not in PurePosixPath(m.filename).parts[1:2]]  # PyTorch never compresses them
    if sum(member.file_size for member in tensors) > path.stat().st_size:
        raise TensorFileError(f"its members claim more than the file's {path.stat().st_size:,} bytes")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        return torch.jit.load(path, map_location="cpu").state_dict()  # no method of it is called
    stand_ins = {name: stand_in(name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)}
    if refused := sorted(name for name, value in stand_ins.items() if value is None):
        raise TensorFileError(f"it holds {', '.join(refused)}, which could run code when loaded")
    with torch.serialization.safe_globals([(value, name) for name, value in stand_ins.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_tensors(tensors: Iterable[tuple[Any, Tensor]]) -> None:
    """Refuse tensors that are not dense, on the CPU, and stored with as many elements as their shape has.

    Raises:
        TensorFileError: the message names the first such tensor.
    """
    for name, tensor in tensors:
        plain = isinstance(name, str) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise TensorFileError(f"{name!r} is not a plain dense tensor with a name")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise TensorFileError(f"{name!r} {tuple(tensor.shape)} has more elements than the file stores")


def update_digest(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors, by name, to a digest of hashlib: names, shapes, and values in fp32."""
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().view(-1).numpy())
