"""What every trainer has: registered models with their checkpoints and optimizers, and the loop over epochs."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dassl.utils import check_availability, load_checkpoint, resume_from_checkpoint, save_checkpoint, tolist_if_not
from dassl.utils.checkpoint import BEST, NEWEST

Names = str | list[str] | None


class Models:
    """The models that a trainer saves, loads and updates.

    Methods that take `names` act on the registered models of these names, on all of them by default.
    """

    def __init__(self):
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim: Optimizer | None = None, sched: Any = None
    ) -> None:
        """Register a model with its optimizer and scheduler; checkpoints, in a folder of its name, hold what is registered.

        Raises:
            AttributeError: `super().__init__()` has not run yet.
            ValueError: the name is taken.
        """
        if "_models" not in self.__dict__:
            raise AttributeError(f"Model '{name}' is registered too early: call super().__init__() first.")
        if name in self._models:
            raise ValueError(f"Model '{name}' is registered already. Register every model once, each by its own name.")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return `names` as a list, or the names of all registered models.

        Raises:
            ValueError: a name is not registered.
        """
        names = list(self._models) if names is None else tolist_if_not(names)
        for name in names:
            check_availability(name, self._models)
        return names

    def save_model(
        self,
        epoch: int,
        directory: str | os.PathLike,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write a checkpoint of every registered model to `directory/<name>/`, as `save_checkpoint` does.

        Args:
            epoch: the epoch that has just finished, from 0.
            val_result: the result on the validation set.
        """
        for name, model in self._models.items():
            state = {
                "state_dict": model.state_dict(),
                "epoch": epoch + 1,
                "optimizer": self._optims[name] and self._optims[name].state_dict(),
                "scheduler": self._scheds[name] and self._scheds[name].state_dict(),
                "val_result": None if val_result is None else float(val_result),
            }
            save_checkpoint(state, Path(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str | os.PathLike) -> int:
        """Load the newest checkpoint of every registered model, if all have one, and return the number of finished epochs.

        Raises:
            ValueError: the models' newest checkpoints are of different epochs.
        """
        folders = {name: Path(directory, name) for name in self._models}
        if not folders or not all((folder / NEWEST).is_file() for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epochs = {
            name: resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
            for name, folder in folders.items()
        }
        if len(set(epochs.values())) > 1:
            raise ValueError(
                f"The newest checkpoints in '{directory}' are of different epochs: {epochs}. Write into each text file "
                f"'{NEWEST}' there the name of a checkpoint of an epoch that all models have, or delete the folder."
            )
        return next(iter(epochs.values()))

    def load_model(self, directory: str | os.PathLike, epoch: int | None = None) -> None:
        """Load the weights of every registered model.

        Args:
            directory: the output folder of a run; empty: nothing is loaded, and a line says so.
            epoch: the number of finished epochs; None: the best on the validation set, `model-best.pth.tar`.

        Raises:
            FileNotFoundError: there is no such checkpoint; the message lists those that there are.
        """
        if not directory:
            print("No model is loaded, because no folder is given (--model-dir)")
            return
        for name, model in self._models.items():
            path = Path(directory, name, BEST if epoch is None else f"model.pth.tar-{epoch}")
            if not path.is_file():
                present = sorted(file.name for file in path.parent.glob("model*"))
                raise FileNotFoundError(
                    f"No model at '{path}'. "
                    f"Its folder has {', '.join(present) or 'no checkpoint'}: choose one with --load-epoch."
                )
            checkpoint = load_checkpoint(path)
            model.load_state_dict(checkpoint["state_dict"])
            result = checkpoint.get("val_result")
            validated = "" if result is None else f", val_result={result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}{validated})")

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        check_availability(mode, ["train", "eval", "test"])
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: Names = None) -> None:
        """Step the schedulers; a trainer calls this at the last batch of every epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of the first model."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise a FloatingPointError if the loss is infinite or NaN."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"The loss is infinite or NaN ({loss}). Try a lower OPTIM.LR, a longer warm-up or PREC fp32."
            )

    def model_zero_grad(self, names: Names = None) -> None:
        for optim in self._optimizers(names):
            optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the loss, which must be finite."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        for optim in self._optimizers(names):
            optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Step the optimizers along the gradients of this loss alone."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def _optimizers(self, names: Names) -> list[Optimizer]:
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return [optim for optim in optims if optim is not None]


class TrainerBase(Models):
    """The loop over epochs, and the TensorBoard log."""

    def __init__(self):
        super().__init__()
        self._writer = None

    def init_writer(self, log_dir: str | os.PathLike) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=str(log_dir))

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a value to the TensorBoard log if it is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run `before_train`, which may set `start_epoch` again, the epochs before `max_epoch`, and `after_train`."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        raise NotImplementedError
