"""The tensors of checkpoints, of which only tensors are unpickled and no JIT archive is run, and OpenAI's package."""

import importlib.util
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from torch import Tensor

from kdpl.common.messages import short_reason
from kdpl.common.tensor_files import check_tensors, load_torch


class WeightsError(OSError):
    """The weights of a CLIP are missing, cannot be fetched or are not those of a CLIP."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: safetensors, a PyTorch state dict (also under "state_dict"), or a JIT archive."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = load_torch(path)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"it holds a {type(state).__name__}, not a state dict of tensors")
        check_tensors(state.items())
        return {str(key).removeprefix("module."): value for key, value in state.items()}
    except Exception as error:  # of many kinds, from inside the unpickler
        raise WeightsError(
            f"'{path}' cannot be read as a CLIP checkpoint ({short_reason(error)}). "
            "Expected a safetensors file, a PyTorch state dict of tensors alone, or OpenAI's JIT archive; "
            "if it was downloaded, delete it and download it again."
        ) from error


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


def openai_file(name: str) -> tuple[str, Path]:
    """Return the address of OpenAI's weights, and the file that they are downloaded to."""
    url = openai_clip().clip._MODELS[name]
    return url, Path("~/.cache/clip").expanduser() / Path(url).name


def openai_weights(name: str) -> Path:
    """Return the file of OpenAI's weights, downloaded if it is not here or has not the published SHA-256."""
    url, file = openai_file(name)
    try:
        return Path(openai_clip().clip._download(url, str(file.parent)))
    except (OSError, RuntimeError) as error:  # no network, no room, or a wrong checksum
        raise WeightsError(
            f"The weights of '{name}' are not here and cannot be downloaded ({error}). Get the file '{file.name}' from "
            f"{url} and put it into {file.parent}, or write 'openai:FILE' with a file of these weights."
        ) from error
