"""The trainers that variants derive from: data, tests and checkpoints of a configured run, and its training epochs."""

import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.engine.base import TrainerBase
from dassl.evaluation import build_evaluator
from dassl.utils import AverageMeter, MetricMeter, load_checkpoint, set_random_seed  # noqa: F401  forks import meters from here
from dassl.utils.checkpoint import BEST
from dassl.utils.registry import Registry, build_registered
from kdpl.config.keys import FINAL_MODELS, SPLITS, check_choice
from kdpl.training.batches import EpochLoader
from kdpl.training.progress import Progress
from kdpl.training.seeding import SEEDS, epoch_seed

TRAINER_REGISTRY = Registry("TRAINER")


def __getattr__(name: str) -> Any:
    if name == "SummaryWriter":  # forks import it from here; TensorBoard is slow to import
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """Return the trainer that TRAINER.NAME names, built from `cfg`."""
    return build_registered(TRAINER_REGISTRY, "TRAINER.NAME", cfg)


class SimpleTrainer(TrainerBase):
    """A run from a configuration: it builds data, model and evaluator, resumes, tests and saves.

    A variant implements `build_model`, which registers a model and sets `self.model` or overrides `model_inference`.

    Raises:
        ValueError: TEST.SPLIT, TEST.FINAL_MODEL or TRAIN.PRINT_FREQ has a value that is not possible.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        _check_run(cfg)
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
        """Train for one epoch; print every TRAIN.PRINT_FREQ batches and log to TensorBoard.

        With a SEED, an epoch draws the same whatever ran before and however many workers load.
        """
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else random.randrange(SEEDS)
        if self.cfg.SEED >= 0:
            set_random_seed(epoch_seed(seed, self.epoch))
        self.set_model_mode("train")
        loader, progress = self.train_loader_x, Progress()
        if not isinstance(loader, EpochLoader):
            loader = EpochLoader(loader, seed)
        loader.epoch, self.num_batches = self.epoch, len(loader)
        # A set with fewer batches than that prints each of them.
        print_freq = self.cfg.TRAIN.PRINT_FREQ if self.num_batches >= self.cfg.TRAIN.PRINT_FREQ else 1
        end = time.perf_counter()
        for batch_idx, batch in enumerate(loader):
            self.batch_idx = batch_idx
            data = time.perf_counter() - end
            terms = self.forward_backward(batch)
            progress.add(batch_idx, self.get_current_lr(), batch.get("impath", ()), terms)
            progress.time(data, time.perf_counter() - end)
            (step,) = progress.read()
            if (batch_idx + 1) % print_freq == 0:
                left = (self.max_epoch - self.epoch) * self.num_batches - batch_idx - 1
                where = f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch_idx + 1}/{self.num_batches}]"
                print(where, progress.line(step.lr, left))
            for name, mean in {**step.means, "lr": step.lr}.items():
                self.write_scalar(f"train/{name}", mean, self.epoch * self.num_batches + batch_idx)
            end = time.perf_counter()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the images, labels and domains of a batch, on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


def _check_run(cfg: CfgNode) -> None:
    check_choice("TEST.SPLIT", cfg.TEST.SPLIT, SPLITS)
    check_choice("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL, FINAL_MODELS)
    if cfg.TRAIN.PRINT_FREQ < 1:
        raise ValueError(f"TRAIN.PRINT_FREQ is {cfg.TRAIN.PRINT_FREQ}, expected a number of batches, at least 1.")
