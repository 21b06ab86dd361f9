"""Saving a run's state after and inside epochs, and resuming from it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdpl.common import distributed
from kdpl.common.messages import short_reason
from kdpl.config.manifest import Manifest, OtherRunError
from kdpl.trainers import records
from kdpl.trainers.records import INSIDE
from kdpl.training import checkpoint
from kdpl.training.progress import DivergenceError

if TYPE_CHECKING:
    from kdpl.trainers.prompts import PromptTrainer


class Checkpoints:
    """Saves and loads a prompt trainer's state, in the forks' layout."""

    def __init__(self, trainer: "PromptTrainer"):
        self.trainer = trainer
        self.last_saved = time.monotonic()

    def save(self, epoch: int, directory: str, is_best: bool, val_result: float | None, model_name: str) -> None:
        """Write the learned parameters and everything else that an exact resume needs."""
        state = run_state(self.trainer, epoch + 1, 0, val_result)
        self.last_saved = time.monotonic()
        if not distributed.is_main():
            return
        folder = f"{directory}/{self.trainer.student.model_name}"
        path = checkpoint.save_checkpoint(state, folder, model_name or f"model.pth.tar-{epoch + 1}")
        if is_best:
            checkpoint.save_checkpoint(state, folder, checkpoint.BEST)
        print(f"Checkpoint saved to {path}")

    def save_inside_epoch(self) -> None:
        """Write the state after the last batch, and end the run if a signal asked for it."""
        trainer = self.trainer
        trainer.loop.read()  # raises if the run has diverged, which is not saved
        state = run_state(trainer, trainer.epoch, trainer.batch_idx + 1)
        if distributed.is_main():
            checkpoint.save_checkpoint(state, f"{trainer.output_dir}/{trainer.student.model_name}", INSIDE, newest=False)
        self.last_saved = time.monotonic()
        distributed.barrier()
        if distributed.any_rank(bool(trainer.stop.signal)):
            trainer.stop.leave()

    def is_due(self, steps_are_read: bool = True) -> bool:
        """Whether a signal or the clock asks for a save; several ranks agree on it, only when steps are read."""
        minutes = self.trainer.cfg.TRAIN.CHECKPOINT_EVERY_MINUTES
        due = bool(self.trainer.stop.signal) or (minutes > 0 and time.monotonic() - self.last_saved >= 60 * minutes)
        return due if distributed.world() == 1 else steps_are_read and distributed.any_rank(due)

    def load(self, directory: str, epoch: int | None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        if not directory:
            print("No --model-dir is given, so no prompts are loaded: the initial ones are evaluated")
            return
        trainer, name = self.trainer, self.trainer.student.model_name
        path = checkpoint.checkpoint_path(directory, name, epoch)
        state = checkpoint.load_checkpoint(path)
        checkpoint.load_learned(trainer.student.learned, state["state_dict"], path)
        trainer.manifest = records.check_evaluated(trainer, path, state)
        trainer.finished_epochs = state["epoch"]
        trainer.train_seconds = state["kdpl"].get("train_seconds", 0.0)
        print(f'Loading weights to {name} from "{path}" (epoch = {trainer.finished_epochs})')


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
            "num_batches": len(trainer.train_loader_x),
            "seed": trainer.seed,
            "history": trainer.progress.state_dict(),
            "student": trainer.student.extra_state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "random": checkpoint.random_state(),
            "train_seconds": trainer.train_seconds,
            "trainer": trainer.objective.extra_state_dict(),
            "manifest": trainer.manifest and trainer.manifest.to_dict(),
            "best_result": None if trainer.best_result == float("-inf") else float(trainer.best_result),
        },
    }


def resume(trainer: "PromptTrainer", folder: Path) -> int:
    """Resume from the newest state in the folder of a run's checkpoints; return the number of finished epochs.

    Raises:
        CheckpointError: the state is damaged, or was written with other settings; the message names what to do.
    """
    path, state = _newest_state(folder)
    if path is None:
        print("No checkpoint found, train from scratch")
        return 0
    ours = state["kdpl"]
    if "history" not in ours or state.get("optimizer") is None:
        raise checkpoint.CheckpointError(
            f"Cannot resume from '{path}': it was not written by this version of this trainer. Evaluate it (--eval-only "
            "--model-dir), start a new training from it (MODEL.INIT_WEIGHTS), or choose another --output-dir."
        )
    try:
        _restore(trainer, path, state, ours)
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


def _newest_state(folder: Path) -> tuple[Path | None, dict[str, Any]]:
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


def _restore(trainer: "PromptTrainer", path: Path, state: dict[str, Any], ours: dict[str, Any]) -> None:
    _check_same_run(trainer, path, state, ours)
    checkpoint.load_learned(trainer.student.learned, state["state_dict"], path)
    trainer.finished_epochs = state["epoch"]
    trainer.optim.load_state_dict(state["optimizer"])
    trainer.sched.load_state_dict(state["scheduler"])
    trainer.student.load_extra_state_dict(ours["student"])
    trainer.objective.load_extra_state_dict(ours["trainer"])
    trainer.progress.load_state_dict(ours["history"])
    trainer.scaler.load_state_dict(ours["scaler"])
    checkpoint.set_random_state(ours["random"])
    trainer.train_seconds, trainer.first_batch = ours["train_seconds"], ours["batch"]
    if ours["best_result"] is not None:
        trainer.best_result = ours["best_result"]


def _check_same_run(trainer: "PromptTrainer", path: Path, state: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse to resume from another run's state."""
    if trainer.cfg.SEED < 0:
        records.use_seed(trainer, ours["seed"])
    then = Manifest.from_dict(ours.get("manifest"))
    if then is None:
        print(f"Note: '{path}' has no manifest: that it was written with these settings is not verified")
    elif trainer.manifest is not None:
        trainer.manifest = records.continued(trainer, then, f"'{path.parent.parent}'", state["epoch"])
    for what, a, b in (
        ("SEED (--seed)", ours["seed"], trainer.seed),
        ("batches in an epoch", ours["num_batches"], len(trainer.train_loader_x)),
    ):
        if a != b:
            raise checkpoint.CheckpointError(
                f"'{path}' was written with {a} as {what}, this run has {b}: resume with the settings it was started with, or "
                "choose another --output-dir."
            )
