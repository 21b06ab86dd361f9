"""The state of a training, after or inside an epoch, and the exact resume from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdpl.common.messages import short_reason
from kdpl.config.manifest import Manifest, OtherRunError
from kdpl.trainers import manifests
from kdpl.training import checkpoint
from kdpl.training.progress import DivergenceError

if TYPE_CHECKING:
    from kdpl.trainers.prompts import PromptTrainer

INSIDE = "resume.pth.tar"  # the state inside an epoch, beside the checkpoints of whole epochs


def run_state(trainer: "PromptTrainer", epochs: int, batches: int, val_result: float | None = None) -> dict[str, Any]:
    """Return the learned parameters and everything else that an exact resume needs, in the forks' layout.

    Args:
        epochs: number of finished epochs.
        batches: number of finished batches in the next epoch.
        val_result: the accuracy on the validation images.

    Raises:
        DivergenceError: a learned parameter is not finite.
    """
    learned = trainer.student.learned.state_dict()
    broken = [name for name, value in learned.items() if not torch.isfinite(value).all()]
    if broken:
        raise DivergenceError(
            f"{', '.join(broken)} became NaN or infinite in epoch {trainer.epoch + 1}, and is not saved: lower OPTIM.LR, "
            "lengthen the warm-up, or set PREC fp32."
        )
    return {
        "state_dict": learned,
        "epoch": epochs,
        "optimizer": trainer.optim.state_dict(),
        "scheduler": trainer.sched.state_dict(),
        "val_result": None if val_result is None else float(val_result),
        "kdpl": {
            "batch": batches,
            "seed": trainer.seed,
            "history": trainer.progress.state_dict(),
            "student": trainer.student.extra_state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "random": checkpoint.random_state(),
            "train_seconds": trainer.train_seconds,
            "selection": selection.state_dict() if (selection := trainer.objective.selection) else None,
            "manifest": trainer.manifest and trainer.manifest.to_dict(),
            "best_result": None if trainer.best_result == float("-inf") else float(trainer.best_result),
        },
    }


def saved_states(folder: Path) -> list[Path]:
    """Return the files in a run's folder that say what to resume from."""
    return [path for name in (checkpoint.NEWEST, INSIDE) for path in sorted(folder.glob(f"*/{name}"))]


def resume(trainer: "PromptTrainer", directory: Path) -> int:
    """Resume from the newest state in a run's folder, after comparing the settings; return the number of finished epochs.

    Raises:
        OtherRunError: the state was written with other settings, or by another learner; the message lists what differs.
        CheckpointError: the state is damaged, or was not written by this version; the message names what to do.
    """
    name = trainer.student.model_name
    names = [path.parent.name for path in saved_states(directory)]
    path, state = newest_state(directory / (name if name in names or not names else names[0]))
    if path is None:
        print("No checkpoint found, train from scratch")
        return 0
    saved = state["kdpl"]
    then = Manifest.from_dict(saved.get("manifest"))
    if then is None or "history" not in saved or state.get("optimizer") is None:
        raise checkpoint.CheckpointError(
            f"Cannot resume from '{path}': it was not written by this version of this trainer. Evaluate it (--eval-only "
            "--model-dir), start a new training from it (MODEL.INIT_WEIGHTS), or choose another --output-dir."
        )
    try:
        seed = saved["seed"]
        if trainer.cfg.SEED < 0:
            manifests.use_seed(trainer, seed)
        trainer.manifest = manifests.continued(trainer, then, f"'{directory}'", state["epoch"]) if trainer.manifest else then
        _restore(trainer, path, state, saved)
    except (checkpoint.CheckpointError, OtherRunError):
        raise
    except Exception as error:  # many kinds, from inside PyTorch: a part of the state is missing or of another type
        raise checkpoint.CheckpointError(
            f"Cannot resume from '{path}' ({short_reason(error)}): it is damaged or was written with other settings. Start "
            "with the settings of that run, delete the file to resume from an earlier one, or choose another --output-dir."
        ) from error
    inside = f", batch={trainer.first_batch}" if trainer.first_batch else ""
    print(f"Resume from {path} (epoch={state['epoch']}{inside})")
    return state["epoch"]


def newest_state(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and the content of the newest state, after or inside an epoch."""
    path = checkpoint.newest_checkpoint(folder)
    state = {} if path is None else checkpoint.load_checkpoint(path)
    inside = folder / INSIDE
    if inside.is_file():
        try:
            other = checkpoint.load_checkpoint(inside)
        except checkpoint.CheckpointError as error:
            print(f"Warning: {error} The run resumes from the last whole epoch.")
        else:
            if other["epoch"] >= state.get("epoch", 0):
                return inside, other
    return path, state


def _restore(trainer: "PromptTrainer", path: Path, state: dict[str, Any], saved: dict[str, Any]) -> None:
    checkpoint.load_learned(trainer.student.learned, state["state_dict"], path)
    trainer.finished_epochs = state["epoch"]
    trainer.optim.load_state_dict(state["optimizer"])
    trainer.sched.load_state_dict(state["scheduler"])
    trainer.student.load_extra_state_dict(saved["student"])
    if trainer.objective.selection:
        trainer.objective.selection.load_state_dict(saved["selection"])
    trainer.progress.load_state_dict(saved["history"])
    trainer.scaler.load_state_dict(saved["scaler"])
    checkpoint.set_random_state(saved["random"])
    trainer.train_seconds, trainer.first_batch = saved["train_seconds"], saved["batch"]
    if saved["best_result"] is not None:
        trainer.best_result = saved["best_result"]
