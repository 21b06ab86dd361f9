"""Reading the tensors of a CLIP checkpoint. Only tensors are unpickled, and nothing in a JIT archive is run."""

import hashlib
import importlib.util
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from torch import Tensor

from kdpl.common.messages import short_reason
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.common.tensor_files import check_tensors, is_torchscript, load_torch, load_torchscript


class WeightsError(OSError):
    """The weights of a CLIP are missing, cannot be fetched or are not those of a CLIP."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of weights, as `sha256sum` prints it; of an index, of it and all its files in a row."""
    digest = hashlib.sha256()
    for part in (path, *(_parts(path) if path.suffix == ".json" else ())):
        with part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: safetensors, a PyTorch state dict (also under "state_dict"), or a JIT archive.

    An index of transformers, `*.index.json`, stands for the files that it names.
    """
    if path.suffix == ".json":
        return {key: value for part in _parts(path) for key, value in read_state_dict(part).items()}
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = _tensors(load_torchscript(path) if is_torchscript(path) else load_torch(path), path)
        check_tensors(state.items())
        return state
    except WeightsError:
        raise
    except Exception as error:  # of many kinds, from inside the unpickler
        raise WeightsError(
            f"'{path}' cannot be read as a CLIP checkpoint ({short_reason(error)}). "
            "Expected a safetensors file, a PyTorch state dict of tensors alone, or OpenAI's JIT archive; "
            "if it was downloaded, delete it and download it again."
        ) from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a checkpoint's tensors, without their values where the format allows it."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"'{path}' is not a readable safetensors file: {error}") from error
    return {key: tuple(value.shape) for key, value in read_state_dict(path).items()}


def _parts(index: Path) -> list[Path]:
    """Return the files of a checkpoint in parts, which lie beside its index.

    Raises:
        WeightsError: it is no index, or a part is missing or elsewhere.
    """
    try:
        content = read_json(index)
        names = sorted({*content["weight_map"].values()})
    except (UnsafeTextError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"'{index}' is not the index of a checkpoint in parts ({short_reason(error)}).") from None
    parts = [index.parent / str(name) for name in names]
    if wrong := [part.name for part in parts if part.parent != index.parent or part.suffix == ".json" or not part.is_file()]:
        raise WeightsError(f"'{index}' names {wrong[0]!r}, which is not a file of weights beside it: copy all parts.")
    return parts


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors.")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


@lru_cache(maxsize=1)
def openai_clip() -> ModuleType:
    """Return OpenAI's `clip` package as the distribution rf-clip has installed it.

    Inside a fork `import clip` finds the fork's changed copy, which may build another model from the same weights. So the
    files of the distribution are imported, under a name of their own.

    Raises:
        ImportError: it is not installed.
    """
    try:
        file = distribution("rf-clip").locate_file("clip/__init__.py")
    except PackageNotFoundError:
        raise ImportError("OpenAI's CLIP is not installed: pip install rf-clip.") from None
    spec = importlib.util.spec_from_file_location("_kdpl_openai_clip", file, submodule_search_locations=[str(file.parent)])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
