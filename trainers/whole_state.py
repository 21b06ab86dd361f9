"""What an exact resume of somebody else's trainer needs beyond its own checkpoints, which hold registered models alone.

Optimizers and nets that are not registered, gradient scalers, and attributes that are numbers or tensors (a step counter, an
average of the weights) are written beside its checkpoints, in `kdpl_state.pth.tar`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdpl.distill.pseudo_labels import Tracked
from kdpl.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from dassl.engine import TrainerX

FILE = "kdpl_state.pth.tar"
_ENGINE = frozenset(  # attributes that Dassl's own classes set
    (
        "cfg", "device", "start_epoch", "epoch", "max_epoch", "output_dir", "dm", "train_loader_x", "train_loader_u",
        "val_loader", "test_loader", "num_classes", "num_source_domains", "lab2cname", "evaluator", "best_result", "time_start",
        "batch_idx", "num_batches", "command",
    )
)  # fmt: skip
_NUMBERS = (bool, int, float, str, type(None))


def save_whole_state(trainer: "TrainerX", directory: str, epoch: int, run: dict[str, Any]) -> None:
    """Write a trainer's state after an epoch.

    Args:
        epoch: how many are finished.
        run: what a resumed run must have in common with this one: numbers and texts by name.
    """
    state = {name: value for name, _, value in _parts(trainer)}
    save_checkpoint({"state_dict": {}, "epoch": epoch, "kdpl": {"run": run, "parts": state}}, directory, FILE, newest=False)


def load_whole_state(trainer: "TrainerX", directory: str, epoch: int, run: dict[str, Any]) -> None:
    """Restore what `save_whole_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another epoch or of another run.
    """
    path = Path(directory, FILE)
    if not path.is_file():
        raise CheckpointError(
            f"Cannot resume from '{directory}': its checkpoints of epoch {epoch} were not written by {type(trainer).__name__} "
            f"({FILE} is missing), perhaps by the same trainer with labels. Choose another --output-dir."
        )
    state = load_checkpoint(path)
    ours, parts = state["kdpl"].get("run", {}), state["kdpl"].get("parts", {})
    different = [f"{key} {ours.get(key)}, now {value}" for key, value in run.items() if ours.get(key) != value]
    if state["epoch"] != epoch:
        different.insert(0, f"epoch {state['epoch']}, the checkpoints {epoch}")
    if different:
        raise CheckpointError(
            f"Cannot resume from '{path}': it was written with {'; '.join(different)}. Resume with the settings that the run "
            "was started with, or choose another --output-dir."
        )
    for name, load, _ in list(_parts(trainer)):
        if name in parts:
            load(parts[name])
    for name in parts.keys() - {name for name, _, _ in _parts(trainer)}:  # an attribute that was None or missing at the start
        kind, _, attribute = name.partition(":")
        if kind == "value":
            setattr(trainer, attribute, _restored(parts[name], trainer.device))


def _parts(trainer: "TrainerX") -> Iterator[tuple[str, Callable[[Any], None], Any]]:
    """Yield name, loader and value of each part of a trainer's state."""
    registered = {id(p) for model in trainer._models.values() for p in model.parameters()}
    known = {id(x) for group in (trainer._optims, trainer._scheds) for x in group.values()}
    for name, value in vars(trainer).items():
        if name in _ENGINE or name.startswith(("_models", "_optims", "_scheds", "_writer", "_kdpl")) or id(value) in known:
            continue
        if isinstance(value, nn.Module):
            learned = {k: p for k, p in value.named_parameters() if p.requires_grad and id(p) not in registered}
            if learned:
                yield f"net:{name}", _loader_of(learned), {k: p.detach().clone() for k, p in learned.items()}
        elif isinstance(value, Optimizer | LRScheduler | torch.amp.GradScaler):
            yield f"state:{name}", value.load_state_dict, value.state_dict()
        elif _is_data(value):
            yield f"value:{name}", _setter(trainer, name), _data(value)


def _loader_of(parameters: dict[str, nn.Parameter]) -> Callable[[dict[str, Tensor]], None]:
    @torch.no_grad()
    def load(saved: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])

    return load


def _setter(trainer: "TrainerX", name: str) -> Callable[[Any], None]:
    return lambda saved: setattr(trainer, name, _restored(saved, trainer.device))


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, _NUMBERS) and _is_data(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_data, value))
    if isinstance(value, Tracked):
        return False
    return isinstance(value, (*_NUMBERS, Tensor, np.generic)) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _data(value: Any) -> Any:
    """Return data as safe loading takes it: an array as a marked tensor."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"__array__": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if isinstance(value, dict):
        return {k: _data(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_data, value))
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _restored(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__array__"}:
            return value["__array__"].numpy()
        return {k: _restored(v, device) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_restored(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value
