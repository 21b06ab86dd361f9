"""What an exact resume of somebody else's trainer needs beyond its own checkpoints, which hold registered models alone.

Optimizers and nets that are not registered, gradient scalers, and attributes that are numbers or tensors (a step counter, an
average of the weights) are written beside its checkpoints, in `kdpl_state.pth.tar`.
"""

from collections.abc import Iterator
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
LATER = ("teacher", "teacher's design")  # what a run of an earlier version did not write down
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
    ours = {"run": run, "parts": dict(_parts(trainer))}
    save_checkpoint({"state_dict": {}, "epoch": epoch, "kdpl": ours}, directory, FILE, newest=False)


def load_whole_state(trainer: "TrainerX", directory: str, epoch: int, run: dict[str, Any]) -> None:
    """Restore what `save_whole_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another epoch or run, or holds what the trainer does not have.
    """
    path = Path(directory, FILE)
    if not path.is_file():
        raise CheckpointError(
            f"Cannot resume from '{directory}': its checkpoints of epoch {epoch} were not written by {type(trainer).__name__} "
            f"({FILE} is missing), perhaps by the same trainer with labels. Choose another --output-dir."
        )
    state = load_checkpoint(path)
    ours, parts = state["kdpl"].get("run", {}), state["kdpl"].get("parts", {})
    compared = [key for key in run if key in ours or key not in LATER]
    different = [f"{key} {ours.get(key)}, now {run[key]}" for key in compared if ours.get(key) != run[key]]
    if state["epoch"] != epoch:
        different.insert(0, f"epoch {state['epoch']}, the checkpoints {epoch}")
    if different:
        raise CheckpointError(
            f"Cannot resume from '{path}': it was written with {'; '.join(different)}. Resume with the settings that the run "
            "was started with, or choose another --output-dir."
        )
    for name, saved in parts.items():
        _restore(trainer, name, saved, path)


def _parts(trainer: "TrainerX") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each part of a trainer's state."""
    known = {id(x) for group in (trainer._optims, trainer._scheds) for x in group.values()}
    for name, value in vars(trainer).items():
        if name in _ENGINE or name.startswith(("_models", "_optims", "_scheds", "_writer", "_kdpl")) or id(value) in known:
            continue
        if isinstance(value, nn.Module):
            if learned := _unregistered(trainer, value):
                yield f"net:{name}", {k: p.detach().clone() for k, p in learned.items()}
        elif isinstance(value, Optimizer | LRScheduler | torch.amp.GradScaler):
            yield f"state:{name}", value.state_dict()
        elif _is_data(value):
            yield f"value:{name}", _data(value)


def _unregistered(trainer: "TrainerX", net: nn.Module) -> dict[str, nn.Parameter]:
    """Return a net's learned parameters that no registered model has."""
    registered = {id(p) for model in trainer._models.values() for p in model.parameters()}
    return {k: p for k, p in net.named_parameters() if p.requires_grad and id(p) not in registered}


@torch.no_grad()
def _restore(trainer: "TrainerX", name: str, saved: Any, path: Path) -> None:
    """Restore one of `_parts`."""
    kind, _, attribute = name.partition(":")
    if kind == "value":  # one that is None or missing at the start too
        setattr(trainer, attribute, _restored(saved, trainer.device))
        return
    present = getattr(trainer, attribute, None)
    if kind == "state" and hasattr(present, "load_state_dict"):
        present.load_state_dict(saved)
        return
    learned = _unregistered(trainer, present) if isinstance(present, nn.Module) else {}
    if learned.keys() != saved.keys():
        raise CheckpointError(
            f"Cannot resume from '{path}': {type(trainer).__name__} has no '{attribute}' with the parameters whose state it "
            "holds. Resume with the code that wrote it, or choose another --output-dir."
        )
    for key, parameter in learned.items():
        parameter.copy_(saved[key])


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
