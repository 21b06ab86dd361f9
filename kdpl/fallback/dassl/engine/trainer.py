"""The trainers that variants derive from: models, data, tests and checkpoints of a configured run, and its training epochs."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.utils import Registry, build_registered, set_random_seed
from kdpl.config.keys import SPLITS, check_choice, check_key
from kdpl.training.batches import epoch_seed
from kdpl.training.checkpoint import BEST, checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint

TRAINER_REGISTRY = Registry("TRAINER")
Names = str | list[str] | None


def build_trainer(cfg: CfgNode) -> "TrainerBase":
    """Return the trainer that TRAINER.NAME names, built from `cfg`."""
    return build_registered(TRAINER_REGISTRY, "TRAINER.NAME", cfg)


class TrainerBase:
    """Registered models with their checkpoints and optimizers, the loop over epochs, and the TensorBoard log.

    Methods that take `names` act on the registered models of these names, on all of them by default.
    """

    def __init__(self):
        self._models: dict[str, nn.Module] = {}
        self._optims: dict[str, Optimizer | None] = {}
        self._scheds: dict[str, Any] = {}
        self._writer = None

    # --- models

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim: Optimizer | None = None, sched: Any = None
    ) -> None:
        """Register a model with its optimizer and scheduler; checkpoints, in a folder of its name, hold what is registered."""
        if name in self._models:
            raise ValueError(f"Model '{name}' is registered already. Register every model once, each by its own name.")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return `names` as a list, or the names of all registered models."""
        return list(self._models) if names is None else [names] if isinstance(names, str) else names

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write a checkpoint of every model, `directory/<name>/model.pth.tar-<epoch + 1>`, after an epoch (from 0).

        Args:
            is_best: write a second copy as `model-best.pth.tar`.
        """
        for name, model in self._models.items():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": model.state_dict(),
                "epoch": epoch + 1,
                "optimizer": optim and optim.state_dict(),
                "scheduler": sched and sched.state_dict(),
                "val_result": None if val_result is None else float(val_result),
            }
            for file in (model_name or f"model.pth.tar-{epoch + 1}", *([BEST] if is_best else [])):
                print(f"Checkpoint saved to {save_checkpoint(state, Path(directory, name), file)}")

    def resume_model_if_exist(self, directory: str | os.PathLike) -> int:
        """Load the newest checkpoint of every registered model, if all have one, and return the number of finished epochs.

        Raises:
            ValueError: the models' newest checkpoints are of different epochs.
        """
        paths = {name: newest_checkpoint(Path(directory, name)) for name in self._models}
        if not paths or None in paths.values():
            print("No checkpoint found, train from scratch")
            return 0
        states = {name: load_checkpoint(path) for name, path in paths.items()}
        epochs = {name: state["epoch"] for name, state in states.items()}
        if len({*epochs.values()}) > 1:
            raise ValueError(f"The newest checkpoints in '{directory}' are of different epochs: {epochs}. Delete the folder.")
        for name, state in states.items():
            self._models[name].load_state_dict(state["state_dict"])
            for key, part in (("optimizer", self._optims[name]), ("scheduler", self._scheds[name])):
                if part is not None and state.get(key) is not None:
                    part.load_state_dict(state[key])
        print(f"Resume from {directory} (epoch={max(epochs.values())})")
        return max(epochs.values())

    def load_model(self, directory: str | os.PathLike, epoch: int | None = None) -> None:
        """Load the weights of every registered model.

        Args:
            directory: the output folder of a run; empty: nothing is loaded.
            epoch: the number of finished epochs; None: the best on the validation set if there is one, else the newest.

        Raises:
            CheckpointError: there is no such checkpoint; the message lists those that there are.
        """
        if not directory:
            print("No model is loaded, because no folder is given (--model-dir)")
            return
        for name, model in self._models.items():
            path = checkpoint_path(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            model.load_state_dict(checkpoint["state_dict"])
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={checkpoint.get('val_result')})")

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        check_choice("The mode", mode, ("train", "eval", "test"))
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
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the loss, which must be finite."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Step the optimizers along the gradients of this loss alone."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # --- TensorBoard

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

    # --- epochs

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


class SimpleTrainer(TrainerBase):
    """A run from a configuration: it builds data, model and evaluator, resumes, tests and saves.

    A variant implements `build_model`, which registers a model and sets `self.model` or overrides `model_inference`.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        check_key("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL)
        self.check_cfg(cfg)
        self.cfg, self.output_dir = cfg, cfg.OUTPUT_DIR
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise an error if the variant cannot run with `cfg`."""

    def build_data_loader(self) -> None:
        """Set `dm`, the loaders of all splits, and the data set's classes."""
        self.dm = dm = DataManager(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains, self.lab2cname = dm.num_classes, dm.num_source_domains, dm.lab2cname

    def build_model(self) -> None:
        """Build the model with its optimizer and scheduler and register them; every variant has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no build_model(), which must call register_model().")

    def train(self) -> None:
        """Run all epochs that are left, then the final test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume from the newest checkpoint in RESUME or else OUTPUT_DIR, and open the TensorBoard log."""
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        if self.start_epoch and self.cfg.TEST.FINAL_MODEL == "best_val":
            best = Path(self.output_dir, next(iter(self._models)), BEST)
            self.best_result = load_checkpoint(best)["val_result"] if best.is_file() else self.best_result
        self.init_writer(Path(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_train(self) -> None:
        """Test the last model, or with TEST.FINAL_MODEL best_val the best one, and print the elapsed time."""
        # The forks' result parsers wait for this line, so it stays as it is.
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Validate if TEST.FINAL_MODEL is best_val; save every TRAIN.CHECKPOINT_FREQ epochs and after the last."""
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        finished, every = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if finished == self.max_epoch or (every > 0 and finished % every == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Return the accuracy in percent on a split, "test" or "val" (without one: "test"); print and log all results."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        check_choice("split", split, SPLITS)
        if split == "val" and self.val_loader is None:
            split = "test"
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(self.val_loader if split == "val" else self.test_loader):
            images, labels = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(images), labels)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of images (B, 3, H, W)."""
        return self.model(images)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of a batch, on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """A trainer on labelled images: an epoch is one pass over `train_loader_x`, a step `forward_backward(batch)`."""

    def run_epoch(self) -> None:
        """Train for one epoch; print every TRAIN.PRINT_FREQ batches and log to TensorBoard."""
        if self.cfg.SEED >= 0:
            set_random_seed(epoch_seed(self.cfg.SEED, self.epoch))  # an epoch draws the same whatever ran before
        self.set_model_mode("train")
        loader, self.num_batches = self.train_loader_x, len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(loader):
            terms = {**self.forward_backward(batch), "lr": self.get_current_lr()}
            if (self.batch_idx + 1) % self.cfg.TRAIN.PRINT_FREQ == 0 or self.batch_idx + 1 == self.num_batches:
                where = f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}]"
                print(where, *(f"{name} {float(value):.4g}" for name, value in terms.items()))
            for name, value in terms.items():
                self.write_scalar(f"train/{name}", float(value), self.epoch * self.num_batches + self.batch_idx)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the images, labels and domains of a batch, on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
