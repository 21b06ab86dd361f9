"""The life of a run that learns prompts, on a Dassl engine, installed or bundled: steps, epochs, checkpoints, resume.

A trainer combines a student class (what is learned) with an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` uses cross-entropy on labels. The engine's schedulers and its checkpoint loading are not used.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from dassl.optim import build_optimizer
from torch import Tensor
from yacs.config import CfgNode

from kdpl.bundle import write_bundle
from kdpl.clip.loading import describe, load_clip
from kdpl.common import distributed
from kdpl.common.command import leave, saves_first, stop_signal
from kdpl.common.outputs import occupy
from kdpl.config.checks import check_config, check_extended
from kdpl.config.defaults import student_options
from kdpl.distill.objective import Objective
from kdpl.students import Student
from kdpl.students.base import encode_names, prepare_names
from kdpl.text.prompts import sentence_features, warn_of_same_names
from kdpl.text.templates import fill
from kdpl.trainers import checkpoints
from kdpl.trainers.evaluation import EvaluatedTrainer
from kdpl.training import checkpoint
from kdpl.training.batches import SEEDS, EpochLoader
from kdpl.training.progress import DivergenceError, Progress
from kdpl.training.schedule import EpochSchedule, check_schedule

LEAST_LOSS_SCALE = 2**-8  # the scale starts at 2**16 and is halved by every step with non-finite gradients
LEAST_STEPS = 10  # between two reads of the terms from a GPU, unless TRAIN.PRINT_FREQ is more


class PromptTrainer(EvaluatedTrainer):
    """The life of a run that learns a student's prompts.

    Subclasses give `student_class`, `objective` and `compute_loss(batch)`, which returns the loss and the terms to report.
    `forward_backward(batch)` is the training step, as everywhere in Dassl: a subclass may override it, and calls
    `model_backward_and_update(loss)`, or its parts `model_zero_grad`, `model_backward` and `model_update`, which scale, sum
    over ranks and step.
    """

    student_class: type[Student]
    objective: Objective  # built at first use, because an evaluation does not need it
    fixed_views = 0  # of an image; 0: a new augmentation in every epoch

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        self.first_batch = 0  # of the current epoch: a resumed run may begin inside one
        self.share = 1.0  # this rank's fraction of the current batch
        self.progress = Progress()
        self.last_saved = time.monotonic()
        self.evaluation_text: Tensor | None = None
        self._stepped = False  # the last `model_update` found finite gradients
        self._updates = 0  # calls of `model_update`
        if cfg.TRAIN.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        distributed.start(cfg.USE_CUDA)
        self.ranks = distributed.world()
        self.seed = distributed.from_main(cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS))
        super().__init__(cfg)

    # ------------------------------------------------------------------------------------------------------ building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        student = self.student_class
        super().check_cfg(cfg)
        check_config(cfg, student.node)
        check_schedule(cfg.OPTIM)
        student.check(student_options(cfg, student.node), describe(cfg.MODEL.BACKBONE.NAME), cfg.MODEL.BACKBONE.NAME)

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if (loader := self.train_loader_x) is not None:
            views = self.fixed_views
            names = self.keys([item.impath for item in loader.dataset.data_source]) if views else ()
            self.train_loader_x = EpochLoader(loader, self.seed, views, self.cfg.TRAINER.KDPL.VIEW_SEED, names)
            self.train_loader_x.report = self.report_unreadable
            smallest = min(loader.batch_size, len(loader.dataset))
            if smallest < self.ranks:
                raise ValueError(
                    f"A batch of {smallest} images cannot be split among {self.ranks} processes: raise "
                    "DATALOADER.TRAIN_X.BATCH_SIZE, the batch size of all processes together, or start fewer."
                )

    def build_model(self) -> None:
        cfg, student_class = self.cfg, self.student_class
        key, options = f"TRAINER.{student_class.node}.PREC", student_options(cfg, student_class.node)
        precision = self.effective_precision(key, options.PREC)
        frozen = self.effective_precision(key, options.PREC, True) if student_class.reads_frozen_image_features else ""
        print(f"Loading student CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.clip = load_clip(cfg.MODEL.BACKBONE.NAME, precision, self.device, frozen)
        self.clip.text.max_rows = cfg.TRAINER.KDPL.MAX_TEXT_ROWS
        if cfg.TRAINER.KDPL.COMPILE:
            self.clip.compile()
        self.student = student_class(self.clip, options, self.class_names, self.template())
        learned = self.student.learned.float().to(self.device)
        distributed.same_as_main(learned.parameters())
        print(f"Learned parameters: {self.learned_parameters:,}")
        if cfg.MODEL.INIT_WEIGHTS:
            state = checkpoint.load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            checkpoint.load_learned(learned, state["state_dict"], cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        self.optim.register_step_post_hook(self._note_step)
        self.sched = EpochSchedule(self.optim, cfg.OPTIM)
        self.register_model(self.student.model_name, learned, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.clip.autocast_dtype == torch.float16)
        self.use_class_names()

    @property
    def learned_parameters(self) -> int:
        """The number of learned parameters; of a head that is solved for it depends on the photos."""
        return sum(p.numel() for p in self.student.learned.parameters())

    def use_class_names(self) -> None:
        # A class-agnostic training may have no class names.
        shard, names = self.cfg.TRAINER.KDPL.SHARD_CLASSES, self.class_names
        self.prepared = prepare_names(self.student, names, shard) if names else None
        if names:
            warn_of_same_names(names, sentence_features(self.clip, fill(self.template(), names)), self.clip.name)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        frozen = self.student.frozen_image_features(images) if self.student.image_features_are_frozen else None
        with self.clip.autocast():
            return self.student(images, self.prepared, self.evaluation_text, frozen).logits

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if self.class_names and not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.clip.autocast():
                self.evaluation_text = encode_names(self.student, self.prepared)
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None

    # -------------------------------------------------------------------------------------------------------- a step

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one step on a batch; the last batch of an epoch steps the schedule.

        Returns:
            The terms as scalars on the device, which are read for many steps at once so that no step waits for it.
        """
        loss, terms = self.compute_loss(batch)
        if self.student.closed_form:  # it has taken the batch, and solves after the epoch
            self._updates += 1
            return terms
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return terms

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Take an optimizer step on the loss; several ranks average it, weighted by their fractions of the batch.

        If gradients overflow because amp scales them, the backward pass is repeated with half the scale until they do not, so
        that no step is lost. Gradients that are not finite at any scale change nothing but the scale, which is halved once.
        """
        scales: list[float] = []  # after each pass whose gradients were not finite
        while not scales or scales[-1] >= LEAST_LOSS_SCALE:
            self.optim.zero_grad()
            self.model_backward(loss)
            self.model_update()
            if self._stepped:
                break
            scales.append(self.scaler.get_scale())  # waits for the device, which a step that is not repeated never does
        else:
            self.scaler.update(scales[0])

    def model_backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, scaled if gradients are; several ranks weight it by their fractions of the batch."""
        # The graph of a scaled loss is kept for a repetition.
        self.scaler.scale(loss * self.share).backward(retain_graph=self.scaler.is_enabled())

    def model_update(self, names: Any = None) -> None:
        """Step the optimizer along the sum of all ranks' gradients; if scaled ones are not finite, no step is taken."""
        if self.ranks > 1:
            distributed.sum_gradients(self.student.learned.parameters())
        # All ranks have the same sums, so they agree. The scaler knows by reading a number from the device; no second is read.
        self._stepped = False
        self.scaler.step(self.optim)
        self.scaler.update()
        self._updates += 1

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def take_step(self, batch: dict[str, Any]) -> None:
        """Call `forward_backward` and record the terms it returns.

        Raises:
            RuntimeError: in a job of several ranks, it did not call `model_update`, which sums their gradients.
        """
        lr, updates = self.optim.param_groups[0]["lr"], self._updates
        self.share = batch["counts"][distributed.rank()] / batch["size"] if self.ranks > 1 else 1.0
        terms = self.forward_backward(batch)
        if self.ranks > 1 and self._updates == updates:
            raise RuntimeError(
                f"{type(self).__name__}.forward_backward took no step through model_backward_and_update(loss), which sums "
                "the gradients of several processes: call it there, or start one process."
            )
        self.progress.add(self.batch_idx, lr, batch["impath"], terms, self.share)

    # ----------------------------------------------------------------------------------------------------- an epoch

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of an interrupted one; print every TRAIN.PRINT_FREQ batches.

        A GPU works on while the host asks for nothing, so several lines are printed together there: the terms of its steps are
        read once in LEAST_STEPS or TRAIN.PRINT_FREQ steps, whichever are more, and at the end of an epoch.
        """
        loader, first = self.train_loader_x, self.first_batch
        self.student.learned.train()
        loader.epoch, loader.start, self.num_batches = self.epoch, first, len(loader)
        every = self.cfg.TRAIN.PRINT_FREQ
        print_freq = every if self.num_batches >= every else 1  # an epoch with fewer batches prints each of them
        read_freq = print_freq if self.device.type == "cpu" else max(every, LEAST_STEPS)
        started = end = time.perf_counter()
        for self.batch_idx, batch in enumerate(loader, first):
            data, finished = time.perf_counter() - end, self.batch_idx + 1
            self.take_step(batch)
            self.progress.time(data, time.perf_counter() - end)
            if finished % print_freq == 0:
                left = (self.max_epoch - self.epoch) * self.num_batches - finished
                where = f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{finished}/{self.num_batches}]"
                self.progress.print_later(where, self.optim.param_groups[0]["lr"], left)
            if is_read := finished % read_freq == 0 or finished == self.num_batches:
                self.read_terms()
            if self.is_time_to_save(is_read):
                self.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save_inside_epoch()
            end = time.perf_counter()
        for batch in loader.left_out() if self.student.closed_form or loader.views else ():  # of them all is known, too
            (self.compute_loss if self.student.closed_form else self.features)(batch)
        for features in self.view_features if loader.views else ():
            features.save()
        self.first_batch = 0
        self.train_seconds += time.perf_counter() - started

    def read_terms(self) -> None:
        """Read the terms of the steps since the last call from the device, for lines, means and TensorBoard.

        Raises:
            DivergenceError: a term is not finite (the images of the batch are named), or gradients are never finite.
        """
        steps = self.progress.read()
        if steps and self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < LEAST_LOSS_SCALE:
            raise DivergenceError(
                f"Gradients are NaN or infinite in every step, so no step is taken: amp's loss scale fell to {scale}. "
                "Set PREC fp32 or bf16, or lower OPTIM.LR."
            )
        for step in steps:
            if step.line:
                print(step.line)
            for name, value in {**step.means, "lr": step.lr}.items():
                self.write_scalar(f"train/{name}", value, self.epoch * self.num_batches + step.batch)

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        self.progress.end_epoch(self.finished_epochs)
        if distributed.is_main():  # before the checkpoint: a run that fails between them does the epoch again, and writes both
            self.progress.write(self.output_dir)
        super().after_epoch()
        if distributed.is_main() and self.finished_epochs == self.max_epoch:
            # The checkpoint of the last epoch replaces the state inside an epoch.
            Path(self.output_dir, self.student.model_name, checkpoints.INSIDE).unlink(missing_ok=True)
        distributed.barrier()  # no rank reads a checkpoint before it is complete

    # --------------------------------------------------------------------------------------------------------- a run

    def load_for_training(self) -> None:
        """Load everything that only training needs, so that missing files are reported before the run starts."""
        _ = self.objective
        if self.train_loader_x is not None and self.manifest is None:
            self.manifest = checkpoints.manifest_of(self)

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        self.load_for_training()
        if distributed.is_main():
            occupy(self.output_dir)
        try:
            with saves_first():
                super().train()
        finally:
            self.close_writer()

    def after_train(self) -> None:
        self.last_result = None  # earlier tests evaluated earlier prompts
        try:
            super().after_train()
        finally:  # a failing test, for example on a damaged image, must not lose the prompts
            if distributed.is_main():
                print(f"Prompts written to {write_bundle(self.output_dir, checkpoints.bundle_of(self))}")

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parameters and everything else that an exact resume needs."""
        state = checkpoints.run_state(self, epoch + 1, 0, val_result)
        self.last_saved = time.monotonic()
        if distributed.is_main():
            name = model_name or (checkpoint.BEST if is_best else f"model.pth.tar-{epoch + 1}")
            path = checkpoint.save_checkpoint(state, Path(directory, self.student.model_name), name)
            print(f"Checkpoint saved to {path}")

    def is_time_to_save(self, steps_are_read: bool) -> bool:
        """Whether a signal or the clock asks for a save; several ranks agree on it, only when steps are read."""
        minutes = self.cfg.TRAIN.CHECKPOINT_EVERY_MINUTES
        due = bool(stop_signal()) or (minutes > 0 and time.monotonic() - self.last_saved >= 60 * minutes)
        return due if self.ranks == 1 else steps_are_read and distributed.any_rank(due)

    def save_inside_epoch(self) -> None:
        """Write the state after the last batch, and end the run if a signal asked for it."""
        self.read_terms()  # raises if the run has diverged, which is not saved
        state = checkpoints.run_state(self, self.epoch, self.batch_idx + 1)
        if distributed.is_main():
            folder = Path(self.output_dir, self.student.model_name)
            checkpoint.save_checkpoint(state, folder, checkpoints.INSIDE, newest=False)
        self.last_saved = time.monotonic()
        distributed.barrier()
        if distributed.any_rank(bool(stop_signal())):
            leave()

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from the newest state in `directory`, if there is one; return the number of finished epochs."""
        epochs = checkpoints.resume(self, Path(directory))
        if distributed.is_main() and self.manifest is not None:
            self.manifest.write(self.output_dir)
        return epochs

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        if not directory:
            print("No --model-dir is given, so no prompts are loaded: the initial ones are evaluated")
            return
        name = self.student.model_name
        path = checkpoint.checkpoint_path(directory, name, epoch)
        state = checkpoint.load_checkpoint(path)
        checkpoint.load_learned(self.student.learned, state["state_dict"], path)
        self.manifest = checkpoints.check_evaluated(self, path, state)
        self.finished_epochs, self.train_seconds = state["epoch"], state["kdpl"].get("train_seconds", 0.0)
        print(f'Loading weights to {name} from "{path}" (epoch = {self.finished_epochs})')


def is_ours(trainer: Any) -> bool:
    """Whether a trainer class, or a method of one, is defined in this package."""
    return trainer.__module__.startswith("kdpl.trainers.")
