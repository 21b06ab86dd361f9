"""Checkpoints of learned prompts: written atomically, read without running code, refused if they do not fit.

The layout is that of the forks: `<folder>/<model name>/model.pth.tar-<epoch>` holds a dictionary with `state_dict`, `epoch`,
`optimizer`, `scheduler` and `val_result`, and the text file `checkpoint` beside it names the newest one.
"""

import io
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdpl.common.files import atomic_write
from kdpl.common.messages import short_reason
from kdpl.common.tensor_files import TensorFileError, check_tensors, load_torch

NEWEST = "checkpoint"
BEST = "model-best.pth.tar"

# Published checkpoints hold schedulers, and the optimizers inside them, as pickled objects. Nothing reads them: they become
# empty. Any other object, and so any code, is refused.
_UNUSED = ("torch.optim.", "dassl.optim.")
_DICTIONARIES = ("collections.defaultdict", "builtins.dict", "__builtin__.dict")  # of an optimizer's state
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LEARNED = re.compile(r"(^|\.)(ctx|VPT\w*|meta_net\..+|proj\.(weight|bias)|compound_prompt\w*\..+)$")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unsafe, or does not fit the model."""


def checkpoint_path(folder: str | os.PathLike, model_name: str, epoch: int | None) -> Path:
    """Return the file of an epoch; None: the best on the validation set if there is one, else the newest.

    Raises:
        CheckpointError: there is no such file; the message lists the existing ones.
    """
    folder = Path(folder, model_name)
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    if epoch is None and not path.is_file():
        path = newest_checkpoint(folder) or path
    if not path.is_file():
        present = ", ".join(sorted(p.name for p in folder.glob("model*")))
        what = f"Its folder has {present}: choose one with --load-epoch."
        expected = f"Expected the output folder of a run in --model-dir, with '{model_name}/model.pth.tar-<epoch>' in it."
        raise CheckpointError(f"No model at '{path}'. {what if present else expected}")
    return path


def newest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the checkpoint named by the text file `checkpoint` in `folder`, or None if there is no such file."""
    pointer = Path(folder, NEWEST)
    if not pointer.is_file():
        return None
    # Only the file name is used: the folder may have been copied from elsewhere.
    return Path(folder, Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name)


def save_checkpoint(state: dict[str, Any], folder: str | os.PathLike, name: str, newest: bool = True) -> Path:
    """Write `state` to `folder/name`; if it is the `newest` and not BEST, name it in the text file `checkpoint`.

    Raises:
        OSError: the file could not be written; its previous version is untouched.
    """
    path = Path(folder, name)
    content = io.BytesIO()  # torch.save would hide the error of a failing file, and the states are small
    torch.save(state, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    if newest and name != BEST:
        with atomic_write(path.with_name(NEWEST), "w") as file:
            file.write(name + "\n")
    return path


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Load a checkpoint of KDPL, or of the public CoOp, MaPLe, PromptSRC and KDPL code, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or holds objects that could run code.
    """
    try:
        state = load_torch(Path(path), _stand_in)
        for key, kind in (("state_dict", dict), ("epoch", int), ("kdpl", dict)):
            if not isinstance(state.get(key) if key == "state_dict" else state.setdefault(key, kind()), kind):
                raise ValueError(f"'{key}' is no {kind.__name__}")
        check_tensors((k, v) for k, v in state["state_dict"].items() if isinstance(v, Tensor))
        return state
    except TensorFileError as error:
        raise CheckpointError(
            f"'{path}' is refused: {error}. A checkpoint of prompts holds only tensors and numbers."
        ) from error
    except Exception as error:  # many kinds, from inside the unpickler
        raise CheckpointError(
            f"'{path}' is not a readable checkpoint of prompts ({short_reason(error)}): it is missing, damaged, or was not "
            "written by torch.save. Delete it, or choose another with --load-epoch."
        ) from error


def _stand_in(name: str) -> Callable | None:
    return (lambda *_: {}) if name in _DICTIONARIES else _Unused if name.startswith(_UNUSED) else None


class _Unused:
    def __init__(self, *_: Any):
        pass

    __setstate__ = __init__


def load_learned(module: nn.Module, state_dict: dict[str, Tensor], source: str | os.PathLike) -> None:
    """Copy learned prompts into `module`; entries of class names and of the frozen CLIP are skipped.

    Args:
        module: a student's `learned`.
        state_dict: from `load_checkpoint`; it may hold class-dependent buffers and frozen weights.
        source: named in errors.

    Raises:
        CheckpointError: a parameter is missing, of another shape or not finite, or the checkpoint has more learned ones.
    """
    if hasattr(module, "fit_shapes"):
        module.fit_shapes(state_dict)
    wanted = dict(module.named_parameters())
    there = {k: v for k, v in state_dict.items() if isinstance(v, Tensor) and (k in wanted or _LEARNED.search(k))}
    problems = [f"{k} {tuple(p.shape)} is missing" for k, p in wanted.items() if k not in there]
    for k, v in there.items():
        if k not in wanted:
            problems.append(f"{k} {tuple(v.shape)} has no place in this model")
        elif v.shape != wanted[k].shape or v.dtype not in _FLOATS:
            problems.append(f"{k} is {tuple(v.shape)} in {v.dtype}, {tuple(wanted[k].shape)} in this model")
        elif not torch.isfinite(v).all():
            problems.append(f"{k} holds NaN or infinite values")
    if problems:
        raise CheckpointError(
            f"'{source}' does not fit: {'; '.join(problems[:4])}{'; ...' if len(problems) > 4 else ''}. Choose the trainer, "
            "MODEL.BACKBONE.NAME, context length and prompt depth that it was trained with, or another epoch."
        )
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(there[key])


def random_state() -> dict[str, Any]:
    """Return the random states of Python, NumPy and PyTorch, as tensors and numbers."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
