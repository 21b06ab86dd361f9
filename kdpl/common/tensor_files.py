"""Safe loading of tensor files from elsewhere: no code runs, and no file takes more memory than its own size.

PyTorch's `weights_only` unpickler builds tensors, numbers and text only. This module also refuses archives that unpack to more
than their size and tensors with more elements than they store, and reads TorchScript archives without `torch.jit.load`, which
would run their code.
"""

import mmap
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

_SCRIPT_MARK = b"constants.pkl"  # the member by which PyTorch recognises a TorchScript archive


class TensorFileError(ValueError):
    """A file is not a tensor file, is damaged, or is refused."""


def load_torch(path: Path, stand_in: Callable[[str], type | Callable | None] = lambda name: None) -> Any:
    """Load a file written by `torch.save`, with its tensors on the CPU.

    Args:
        path: a zip archive, or a file of tensors only in the format of PyTorch before 1.6.
        stand_in: returns the replacement of a class or function named in the file, or None to refuse it.

    Raises:
        TensorFileError: the file holds objects that could run code, or claims to be larger than it is.
        Exception: many kinds, from inside PyTorch, if the file is damaged or of another format.
    """
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    check_zip(path)
    return _load_zip(path, stand_in)


def load_torchscript(path: Path) -> dict[str, Tensor]:
    """Return parameters and buffers of a TorchScript archive by name, without running its code.

    Raises:
        TensorFileError, Exception: as `load_torch`.
    """
    check_zip(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        with zipfile.ZipFile(path) as archive:
            directory = view[archive.start_dir :]
        # PyTorch reads the archive as plain tensors if it does not recognise TorchScript; only the in-memory view changes.
        view[-len(directory) :] = directory.replace(_SCRIPT_MARK, b"-" * len(_SCRIPT_MARK))
        module = _load_zip(view, lambda name: _Scripted if name.startswith(("__torch__.", "torch.jit._pickle.")) else None)
    state: dict[str, Tensor] = {}
    modules, seen = [("", module)], set()
    while modules:
        prefix, module = modules.pop()
        if not isinstance(module, _Scripted) or id(module) in seen or not isinstance(module.attributes, dict):
            continue
        seen.add(id(module))
        for name, value in module.attributes.items():
            if isinstance(value, Tensor) and name != "attn_mask":  # the only tensor of CLIP that is not a weight
                state[f"{prefix}{name}"] = value
            modules.append((f"{prefix}{name}.", value))
    return state


def update_digest(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors, by name, to a digest of hashlib: names, shapes, and values in fp32."""
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().view(-1).numpy())


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/" + _SCRIPT_MARK.decode()) for name in archive.namelist())


def check_zip(path: Path) -> None:
    """Refuse a zip archive that would unpack to more than its own size; PyTorch never compresses tensors.

    Raises:
        TensorFileError: its members claim more bytes than the file has.
        zipfile.BadZipFile: the file is not a zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        read = [m for m in archive.infolist() if "code" not in PurePosixPath(m.filename).parts[1:2]]  # of TorchScript
    if sum(member.file_size for member in read) > path.stat().st_size:
        raise TensorFileError(f"its members claim more than the file's {path.stat().st_size:,} bytes")


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


def _load_zip(source: Path | mmap.mmap, stand_in: Callable[[str], type | Callable | None]) -> Any:
    stand_ins = {name: stand_in(name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(source)}
    refused = sorted(name for name, value in stand_ins.items() if value is None)
    if refused:
        raise TensorFileError(f"it holds {', '.join(refused)}, which could run code when loaded")
    if isinstance(source, mmap.mmap):
        source.seek(0)
    with torch.serialization.safe_globals([(value, name) for name, value in stand_ins.items()]):
        return torch.load(source, map_location="cpu", weights_only=True)


class _Scripted:
    """Replaces a module of a TorchScript archive."""

    attributes: Any = None

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state
