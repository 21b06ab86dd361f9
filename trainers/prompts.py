"""The life cycle of learned prompts on a Dassl engine, an installed one or the bundled one.

A trainer is a student class (what is learned) times an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` takes cross-entropy on labels. Neither engine's schedulers nor its loading are used.
"""

import os
import random
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from dassl.optim import build_optimizer
from torch import Tensor
from yacs.config import CfgNode

from kdpl.classifier.bundle import Bundle, Preprocessing, backbone_digest, write_bundle
from kdpl.clip.loading import describe, load_clip
from kdpl.common import distributed, lock
from kdpl.common.signals import Interrupted, StopRequest
from kdpl.config.checks import check_config
from kdpl.distill.objective import CrossEntropy, Objective
from kdpl.students import Student
from kdpl.text.templates import template_for
from kdpl.trainers import resuming
from kdpl.trainers.evaluation import EvaluatedTrainer
from kdpl.training import checkpoint
from kdpl.training.batches import EpochLoader
from kdpl.training.progress import DivergenceError, Progress
from kdpl.training.schedule import build_schedule, check_schedule
from kdpl.training.seeding import SEEDS

LEAST_LOSS_SCALE = 2**-8  # it begins at 2**16 and is halved by every step whose gradients are not finite


class _Checkpoints:
    """Saving and loading of a prompt trainer, in the forks' layout."""

    last_saved = 0.0  # time.monotonic()

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parameters and everything else that an exact resume needs."""
        state = resuming.run_state(self, epoch + 1, 0, val_result)
        self.last_saved = time.monotonic()
        if not distributed.is_main():
            return
        folder = f"{directory}/{self.student.model_name}"
        path = checkpoint.save_checkpoint(state, folder, model_name or f"model.pth.tar-{epoch + 1}")
        if is_best:
            checkpoint.save_checkpoint(state, folder, checkpoint.BEST)
        print(f"Checkpoint saved to {path}")

    def save_inside_epoch(self) -> None:
        """Write the state after the last batch, and end the run if a signal asked for it."""
        self.read_steps()  # what diverged is not saved
        state = resuming.run_state(self, self.epoch, self.batch_idx + 1)
        if distributed.is_main():
            checkpoint.save_checkpoint(state, f"{self.output_dir}/{self.student.model_name}", resuming.INSIDE, newest=False)
        self.last_saved = time.monotonic()
        distributed.barrier()
        if distributed.any_rank(bool(self.stop.signal)):
            self.leave()

    def is_time_to_save(self, steps_are_read: bool = True) -> bool:
        """Whether a signal or the clock wants the state saved; several ranks agree about it, only when steps are read."""
        minutes = self.cfg.TRAIN.CHECKPOINT_EVERY_MINUTES
        due = bool(self.stop.signal) or (minutes > 0 and time.monotonic() - self.last_saved >= 60 * minutes)
        return due if distributed.world() == 1 else steps_are_read and distributed.any_rank(due)

    def stop_if_asked(self) -> None:
        # When all epochs are trained, everything is saved; otherwise the next step saves.
        if self.finished_epochs == self.max_epoch and distributed.any_rank(bool(self.stop.signal)):
            self.leave()

    def leave(self) -> None:
        """End the run, which has saved its state, on the signal that came."""
        self.close_writer()
        message = f"Stopped by {self.stop.signal or 'a signal'} after saving: the same command resumes the run"
        print(message, flush=True)
        raise Interrupted(message)

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from the newest state in `directory`, if there is one; return the number of finished epochs."""
        return resuming.resume(self, Path(directory, self.student.model_name))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        if not directory:
            print("No prompts are loaded, because no folder is given (--model-dir): the initial ones are evaluated")
            return
        path = checkpoint.checkpoint_path(directory, self.student.model_name, epoch)
        state = checkpoint.load_checkpoint(path)
        checkpoint.load_learned(self.student.learned, state["state_dict"], path)
        self.finished_epochs = state["epoch"]
        self.train_seconds = state["kdpl"].get("train_seconds", 0.0)
        print(f'Loading weights to {self.student.model_name} from "{path}" (epoch = {self.finished_epochs})')

    def extra_state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs beyond prompts, optimizer, schedule and random generators."""
        return {}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state_dict` returned."""


class PromptTrainer(_Checkpoints, EvaluatedTrainer):
    """Training of a student's prompts. Subclasses give `student_class`, `objective` and `compute_loss`.

    `forward_backward(batch)` is the training step, as everywhere in Dassl: a subclass may override it, and calls
    `model_backward_and_update(loss)`, which scales, sums over ranks and steps.
    """

    student_class: type[Student]
    share = 1.0  # of the running batch that this rank has

    def __init__(self, cfg: CfgNode):
        self.seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        self.first_batch = 0  # at which the running epoch begins: a resumed one begins in its middle
        self.progress, self.stop = Progress(), StopRequest()
        self.last_saved = time.monotonic()
        self.evaluation_text: Tensor | None = None
        if cfg.TRAIN.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        distributed.start(cfg.USE_CUDA)
        self.seed = distributed.from_main(self.seed)
        super().__init__(cfg)

    # ------------------------------------------------------------------------------------------------------ building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        options, student = cfg.TRAINER[self.student_class.node], self.student_class
        super().check_cfg(cfg)
        check_config(cfg, student.node)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        check_schedule(cfg.OPTIM)
        architecture = describe(cfg.MODEL.BACKBONE.NAME)
        if tuple(cfg.INPUT.SIZE) != (architecture.resolution,) * 2:
            raise ValueError(
                f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)} is not what MODEL.BACKBONE.NAME '{cfg.MODEL.BACKBONE.NAME}' takes: "
                f"expected ({architecture.resolution}, {architecture.resolution})."
            )
        student.check(options, architecture, cfg.MODEL.BACKBONE.NAME)
        specific = student.learns_class_specific and options[student.learns_class_specific]
        if cfg.TRAINER.KDPL.SHARD_CLASSES and (student.text_depends_on_images or specific):
            reason = "learns a context for each class" if specific else "encodes the names anew for each image"
            raise ValueError(
                f"TRAINER.KDPL.SHARD_CLASSES True: {student.__name__} {reason}, which is shared among the processes "
                "by image alone. Set it to False."
            )

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is not None:
            self.train_loader_x = EpochLoader(self.train_loader_x, self.seed)
            smallest = min(self.train_loader_x.loader.batch_size, len(self.train_loader_x.dataset))
            if smallest < distributed.world():
                raise ValueError(
                    f"A batch of {smallest} images cannot be shared by {distributed.world()} processes: raise "
                    "DATALOADER.TRAIN_X.BATCH_SIZE, the images in a batch of all processes together, or start fewer."
                )

    def build_model(self) -> None:
        cfg, node = self.cfg, self.student_class.node
        key, options = f"TRAINER.{node}.PREC", cfg.TRAINER[node]
        precision = self.effective_precision(key, options.PREC)
        frozen = (
            self.effective_precision(key, options.PREC, frozen=True) if self.student_class.reads_frozen_image_features else ""
        )
        print(f"Loading student CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.clip = load_clip(cfg.MODEL.BACKBONE.NAME, precision, self.device, frozen)
        self.clip.text.max_rows = cfg.TRAINER.KDPL.MAX_TEXT_ROWS
        if cfg.TRAINER.KDPL.COMPILE:
            self.clip.compile()
        self.student = self.student_class(self.clip, options, self.class_names, self.template())
        learned = self.student.learned.float().to(self.device)
        distributed.same_as_main(learned.parameters())
        self.learned_parameters = sum(p.numel() for p in learned.parameters())
        print(f"Learned parameters: {self.learned_parameters:,}")
        if cfg.MODEL.INIT_WEIGHTS:
            state = checkpoint.load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            checkpoint.load_learned(learned, state["state_dict"], cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        self.sched = build_schedule(self.optim, cfg.OPTIM)
        self.register_model(self.student.model_name, learned, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.clip.autocast_dtype == torch.float16)
        self.use_class_names()

    def use_class_names(self) -> None:
        # a class-agnostic training may know no names at all
        self.prepared = self.prepare_names(self.class_names) if self.class_names else None

    def prepare_names(self, names: Sequence[str]) -> Any:
        """Return the student's constants of class names; with TRAINER.KDPL.SHARD_CLASSES of this rank's share of them."""
        return self.student.prepare_shard(names) if self.cfg.TRAINER.KDPL.SHARD_CLASSES else self.student.prepare(names)

    def template(self) -> str:
        """The hand-written sentence of the data set."""
        return template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)

    @cached_property
    def objective(self) -> Objective:
        """The loss of a batch; made when it is first needed, since an evaluation does without."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------ training

    def load_for_training(self) -> None:
        _ = self.objective

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the terms to report."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one step on a batch; the last batch of an epoch steps the schedule.

        Returns:
            The terms as scalars on the device, so that no step waits for it: many are read at a time.
        """
        loss, terms = self.compute_loss(batch)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: term.detach() for name, term in terms.items()}

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Step the optimizer along the gradient of the loss, of several ranks the mean by their shares of the batch."""
        self.optim.zero_grad()
        self.scaler.scale(loss * self.share).backward()
        distributed.sum_gradients(self.student.learned.parameters())
        self.scaler.step(self.optim)
        self.scaler.update()
        self._stepped = True

    def take_step(self, batch: dict[str, Any]) -> None:
        """Call `forward_backward`, a subclass's too, and take in what it reports.

        Raises:
            RuntimeError: in a job of several ranks, it did not update through `model_backward_and_update`.
        """
        lr, self._stepped = self.get_current_lr(), False
        self.share = batch["counts"][distributed.rank()] / batch["size"] if distributed.world() > 1 else 1.0
        terms = self.forward_backward(batch)
        if distributed.world() > 1 and not self._stepped:
            raise RuntimeError(
                f"{type(self).__name__}.forward_backward stepped without model_backward_and_update(loss), which sums the "
                "gradients of several processes: call it there, or start one process."
            )
        self.progress.add(self.batch_idx, lr, batch["impath"], terms, self.share)

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of one that was interrupted; print every TRAIN.PRINT_FREQ batches."""
        self.set_model_mode("train")
        loader = self.train_loader_x
        loader.epoch, loader.start = self.epoch, self.first_batch
        self.num_batches = len(loader)
        # A set with fewer batches than that prints each of them.
        print_freq = self.cfg.TRAIN.PRINT_FREQ if self.num_batches >= self.cfg.TRAIN.PRINT_FREQ else 1
        started = end = time.perf_counter()
        for i, batch in enumerate(loader, self.first_batch):
            self.batch_idx = i
            data = time.perf_counter() - end
            self.take_step(batch)
            self.progress.time(data, time.perf_counter() - end)
            to_read = (self.batch_idx + 1) % print_freq == 0
            if to_read:
                self.read_steps()
                left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
                where = f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}]"
                print(where, self.progress.line(self.get_current_lr(), left))
            if self.is_time_to_save(to_read):
                self.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save_inside_epoch()
            end = time.perf_counter()
        self.read_steps()
        self.first_batch = 0
        self.train_seconds += time.perf_counter() - started

    def read_steps(self) -> None:
        """Read the terms of the steps since the last time from the device, for means and curves.

        Raises:
            DivergenceError: a term is not finite, it names the images of the batch; or gradients never are.
        """
        steps = self.progress.read()
        if steps and self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < LEAST_LOSS_SCALE:
            raise DivergenceError(
                f"Gradients are NaN or infinite step after step, so that none is taken: amp's loss scale fell to {scale}. "
                "Set PREC fp32 or bf16, or lower OPTIM.LR."
            )
        for step in steps:
            n = self.epoch * self.num_batches + step.batch
            for name, mean in step.means.items():
                self.write_scalar(f"train/{name}", mean, n)
            self.write_scalar("train/lr", step.lr, n)

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        self.progress.end_epoch(self.finished_epochs)
        super().after_epoch()
        if distributed.is_main():
            self.progress.write(self.output_dir)
            if self.finished_epochs == self.max_epoch:
                # The checkpoint of the last epoch holds all that the state inside the epoch did.
                Path(self.output_dir, self.student.model_name, resuming.INSIDE).unlink(missing_ok=True)
        distributed.barrier()  # a checkpoint is whole for all ranks that read it

    def init_writer(self, log_dir: Any) -> None:
        if distributed.is_main():
            super().init_writer(log_dir)

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        self.load_for_training()
        if distributed.is_main():
            lock.occupy(self.output_dir)
        self.stop.install()
        try:
            super().train()
        finally:
            self.stop.uninstall()
            self.close_writer()

    def after_train(self) -> None:
        self.last_result = None  # tests between epochs were of other prompts
        try:
            super().after_train()
        finally:  # a test that fails, at an image say, does not cost the training
            if distributed.is_main():
                print(f"Prompts written to {write_bundle(self.output_dir, bundle_of(self))}")

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        frozen = self.student.frozen_image_features(images) if self.student.image_features_are_frozen else None
        with self.clip.autocast():
            return self.student(images, self.prepared, self.evaluation_text, frozen).logits

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if self.class_names and not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.clip.autocast():
                self.evaluation_text = self.student.encode_names(self.prepared)
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, the variant's own terms included."""

    @cached_property
    def objective(self) -> CrossEntropy:
        return CrossEntropy(self.student, self.class_names, self.cfg.TRAINER.KDPL.SHARD_CLASSES)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), batch["label"].to(self.device, non_blocking=True)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(*self.parse_batch_train(batch))


def bundle_of(trainer: PromptTrainer) -> Bundle:
    """Return a trainer's prompts as they are, with what is needed to use them."""
    cfg, teacher = trainer.cfg, trainer.teacher_name()
    pixels = cfg.INPUT
    preprocessing = Preprocessing(tuple(pixels.SIZE), pixels.INTERPOLATION, tuple(pixels.PIXEL_MEAN), tuple(pixels.PIXEL_STD))
    return Bundle(
        parameters=trainer.student.learned.state_dict(),
        variant=trainer.student_class.__name__,
        trainer=cfg.TRAINER.NAME,
        backbone=cfg.MODEL.BACKBONE.NAME,
        backbone_sha256=backbone_digest(trainer.clip),
        options=dict(trainer.student.options),
        preprocessing=preprocessing,
        dataset=cfg.DATASET.NAME,
        template=trainer.template(),
        classnames=trainer.class_names,
        teacher=teacher,
        class_agnostic=teacher is not None and cfg.TRAINER.KDPL.CLASS_AGNOSTIC,
        epoch=trainer.finished_epochs,
        results=[] if trainer.last_result is None else [dict(trainer.last_result)],
        config=cfg.dump(),
    )
