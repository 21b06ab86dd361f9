"""Weights and training state in files, which are written whole or not at all and load safely."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdpl.common.files import atomic_write, write_torch
from kdpl.common.messages import short_reason
from kdpl.common.tensor_files import load_torch
from kdpl.training.checkpoint import BEST, NEWEST, newest_checkpoint


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, by default as `model.pth.tar-<epoch>`, and then the file `checkpoint` that names it as the newest.

    Args:
        state: a dictionary with at least "state_dict" and "epoch" (the number of finished epochs).
        is_best: write a second copy as `model-best.pth.tar`.
        remove_module_from_keys: drop the prefix "module." that `DataParallel` gives to the names of parameters.
    """
    if remove_module_from_keys:
        state = state | {"state_dict": _without_module_prefix(state["state_dict"])}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    for target in [name, BEST] if is_best else [name]:
        path = Path(save_dir, target)
        write_torch(state, path)
        print(f"Checkpoint saved to {path}")
    # Written last: it never names a file that is not complete.
    with atomic_write(Path(save_dir, NEWEST), "w") as file:
        file.write(f"{name}\n")


def load_checkpoint(fpath: str | os.PathLike) -> dict[str, Any]:
    """Return the contents of a checkpoint, its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds Python objects, which could run code.
    """
    if not Path(fpath).is_file():
        raise FileNotFoundError(f"No checkpoint at '{fpath}'.")
    try:
        return load_torch(Path(fpath))
    except Exception as error:  # of many kinds, from inside the unpickler
        raise ValueError(
            f"'{fpath}' is not a complete checkpoint of tensors, numbers and text alone ({short_reason(error)}). Use another "
            "epoch's file; if you trust one that holds more, save its 'state_dict' alone where it was made."
        ) from error


def resume_from_checkpoint(
    fdir: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the newest checkpoint of a folder into a model, its optimizer and scheduler; return the number of finished epochs.

    Raises:
        FileNotFoundError: the folder names no checkpoint, or the one it names is gone.
    """
    path = newest_checkpoint(fdir)
    if path is None:
        raise FileNotFoundError(f"No text file '{NEWEST}' in '{fdir}' that names the checkpoint to resume from.")
    print(f"Loading checkpoint from {path}")
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
    print(f"Finished epochs: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Load the weights of a checkpoint or state dictionary whose names and shapes are the model's; print the others' names."""
    checkpoint = load_checkpoint(weight_path)
    weights = _without_module_prefix(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not fitting:
        warnings.warn(f"'{weight_path}' has no weight whose name and shape fit the model", stacklevel=2)
        return
    model.load_state_dict(own | fitting)
    print(f"Loaded {len(fitting)} of {len(own)} weights from {weight_path}")
    if left_out := [name for name in weights if name not in fitting]:
        print(f"Left out, because name or shape does not fit: {left_out}")


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Count the numbers in a model's parameters, or in `params`: parameters, or groups of them as optimizers take.

    Raises:
        ValueError: neither is given.
    """
    if model is not None:
        params = model.parameters()
    if params is None:
        raise ValueError("count_num_param needs a model or parameters, got neither.")
    return sum(_numel(p["params"]) if isinstance(p, dict) else p.numel() for p in params)


def _numel(params: torch.Tensor | Iterable[torch.Tensor]) -> int:
    return params.numel() if isinstance(params, torch.Tensor) else sum(p.numel() for p in params)


def _without_module_prefix(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in state_dict.items()}
