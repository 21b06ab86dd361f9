"""Epochs and steps of prompt training on a Dassl engine."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdpl.classifier.bundle import Bundle, write_bundle
from kdpl.clip.openclip.design import design_of
from kdpl.common import distributed, lock
from kdpl.config.manifest import read_manifest
from kdpl.distill.views import contents_of
from kdpl.trainers import records
from kdpl.trainers.records import INSIDE
from kdpl.training.progress import DivergenceError

if TYPE_CHECKING:
    from kdpl.trainers.prompts import PromptTrainer

LEAST_LOSS_SCALE = 2**-8  # the scale starts at 2**16 and is halved by every step with non-finite gradients
LEAST_STEPS, MOST_SECONDS = 10, 10.0  # between two reads of the terms from a GPU, unless TRAIN.PRINT_FREQ is more steps


class Training:
    """Epochs and steps of a prompt trainer.

    `forward_backward(batch)` is the training step, as everywhere in Dassl: a subclass may override it, and calls
    `model_backward_and_update(loss)`, or its parts `model_zero_grad`, `model_backward` and `model_update`, which scale, sum
    over ranks and step. Under amp the former repeats a step whose scaled gradients overflow, the parts leave it out.
    """

    share = 1.0  # this rank's fraction of the current batch
    _skipped = False  # the last update found gradients that are not finite
    _reported_repeat = False
    _last_read = 0.0  # time.perf_counter()

    def load_for_training(self) -> None:
        _ = self.objective
        if self.manifest is None and self.train_loader_x is not None:
            self.manifest = records.manifest_of(self)
        if self.train_loader_x is not None:  # after the main rank, whose digests are remembered
            self.train_loader_x.contents = contents_of(self.train_loader_x.dataset.data_source, self.training_images)

    def use_seed(self, seed: int) -> None:
        """Take over the seed that an unseeded run drew."""
        self.seed = self.train_loader_x.seed = seed
        if self.manifest is not None:
            self.manifest = replace(self.manifest, config={**self.manifest.config, "SEED": seed})

    def before_train(self) -> None:
        super().before_train()
        if distributed.is_main() and self.manifest is not None:
            then = read_manifest(self.output_dir)
            if then is not None and then.digest == self.manifest.digest:  # of a run that was tested before
                self.manifest = replace(self.manifest, tests={**then.tests, **self.manifest.tests})
            self.manifest.write(self.output_dir)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the terms to report."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one step on a batch; the last batch of an epoch steps the schedule.

        Returns:
            The terms as scalars on the device, which are read for many steps at once so that no step waits for it.
        """
        loss, terms = self.compute_loss(batch)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: term.detach() for name, term in terms.items()}

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Take an optimizer step on the loss; several ranks average it, weighted by their fractions of the batch.

        If gradients overflow because amp scales them, the backward pass is repeated with half the scale until they do not, so
        that no step is lost. Gradients that are not finite at any scale change nothing but the scale, which is halved once.
        """
        self._update_once(loss)
        if not self._skipped:
            return
        halved = scale = self.scaler.get_scale()  # waits for the device, which a step that is not repeated never does
        while self._skipped and scale >= LEAST_LOSS_SCALE:
            self._update_once(loss)
            scale = self.scaler.get_scale()
        if self._skipped:
            self.scaler.update(halved)
        elif not self._reported_repeat:
            self._reported_repeat = True
            print(
                f"amp: scaled gradients overflowed, so the backward pass was repeated with smaller loss scales, down to "
                f"{scale:g}; no step is lost (printed once)"
            )

    def _update_once(self, loss: Tensor) -> None:
        self.model_zero_grad()
        self.model_backward(loss)
        self.model_update()

    def model_backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, scaled if gradients are; several ranks weight it by their fractions of the batch."""
        # A scaled loss may be asked again; its graph ends with it.
        self.scaler.scale(loss * self.share).backward(retain_graph=self.scaler.is_enabled())

    def model_update(self, names: Any = None) -> None:
        """Step the optimizer along the sum of all ranks' gradients; if scaled ones are not finite, no step is taken."""
        distributed.sum_gradients(self.student.learned.parameters())
        # All ranks have the same sums, so they agree. The scaler knows by reading a number from the device; no second is read.
        self._skipped = True
        hook = self.optim.register_step_post_hook(self._note_step)
        self.scaler.step(self.optim)
        hook.remove()
        self.scaler.update()
        self._stepped = True

    def _note_step(self, *_: Any) -> None:
        self._skipped = False

    def take_step(self, batch: dict[str, Any]) -> None:
        """Call `forward_backward`, which a subclass may override, and record the terms it returns.

        Raises:
            RuntimeError: in a job of several ranks, it did not call `model_backward_and_update` or `model_update`.
        """
        lr, self._stepped = self.get_current_lr(), False
        self.share = batch["counts"][distributed.rank()] / batch["size"] if distributed.world() > 1 else 1.0
        terms = self.forward_backward(batch)
        if distributed.world() > 1 and not self._stepped:
            raise RuntimeError(
                f"{type(self).__name__}.forward_backward took no step through model_backward_and_update(loss), which sums "
                "the gradients of several processes: call it there, or start one process."
            )
        self.progress.add(self.batch_idx, lr, batch["impath"], terms, self.share)

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of an interrupted one; print every TRAIN.PRINT_FREQ batches.

        On a GPU several lines are printed together, when their terms are read: see `is_time_to_read`.
        """
        self.set_model_mode("train")
        loader = self.train_loader_x
        loader.epoch, loader.start = self.epoch, self.first_batch
        self.num_batches = len(loader)
        # An epoch with fewer batches than that prints each of them.
        print_freq = self.cfg.TRAIN.PRINT_FREQ if self.num_batches >= self.cfg.TRAIN.PRINT_FREQ else 1
        started = end = self._last_read = time.perf_counter()
        for i, batch in enumerate(loader, self.first_batch):
            self.batch_idx = i
            data = time.perf_counter() - end
            self.take_step(batch)
            self.progress.time(data, time.perf_counter() - end)
            if (self.batch_idx + 1) % print_freq == 0:
                left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
                where = f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}]"
                self.progress.print_later(where, self.get_current_lr(), left)
            to_read = self.is_time_to_read(print_freq)
            if to_read:
                self.read_steps()
            if self.is_time_to_save(to_read):
                self.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save_inside_epoch()
            end = time.perf_counter()
        self.read_steps()
        self.first_batch = 0
        self.train_seconds += time.perf_counter() - started

    def is_time_to_read(self, print_freq: int) -> bool:
        """Whether the terms of the last steps are read, so that their lines can be printed.

        A GPU works on while the host asks for nothing. So it is asked once in LEAST_STEPS or TRAIN.PRINT_FREQ steps, whichever
        are more, at the end of an epoch, and if a line has waited for MOST_SECONDS.
        """
        step, every = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        if self.device.type == "cpu":
            return step % print_freq == 0
        late = distributed.world() == 1 and time.perf_counter() - self._last_read >= MOST_SECONDS  # clocks of ranks differ
        return step % max(every, LEAST_STEPS) == 0 or step == self.num_batches or (late and self.progress.has_lines)

    def read_steps(self) -> None:
        """Read the terms of the steps since the last call from the device, for lines, means and curves.

        Raises:
            DivergenceError: a term is not finite (the images of the batch are named), or gradients are never finite.
        """
        steps = self.progress.read()
        if steps and self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < LEAST_LOSS_SCALE:
            raise DivergenceError(
                f"Gradients are NaN or infinite in every step, so no step is taken: amp's loss scale fell to {scale}. "
                "Set PREC fp32 or bf16, or lower OPTIM.LR."
            )
        self._last_read = time.perf_counter()
        for step in steps:
            if step.line:
                print(step.line)
            n = self.epoch * self.num_batches + step.batch
            for name, mean in step.means.items():
                self.write_scalar(f"train/{name}", mean, n)
            self.write_scalar("train/lr", step.lr, n)

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        self.progress.end_epoch(self.finished_epochs)
        if distributed.is_main():  # before the checkpoint: a run that fails between them does the epoch again, and writes both
            self.progress.write(self.output_dir)
        super().after_epoch()
        if distributed.is_main() and self.finished_epochs == self.max_epoch:
            # The checkpoint of the last epoch replaces the state inside an epoch.
            Path(self.output_dir, self.student.model_name, INSIDE).unlink(missing_ok=True)
        distributed.barrier()  # no rank reads a checkpoint before it is complete

    def init_writer(self, log_dir: Any) -> None:
        if distributed.is_main():
            super().init_writer(log_dir)

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        self.load_for_training()
        if distributed.is_main():
            lock.occupy(self.output_dir)
            records.check_folder(self, Path(self.cfg.RESUME or self.output_dir))
        self.stop.install()
        try:
            super().train()
        finally:
            self.stop.uninstall()
            self.close_writer()

    def after_train(self) -> None:
        self.last_result = None  # earlier tests evaluated earlier prompts
        try:
            super().after_train()
        finally:  # a failing test, for example on a damaged image, must not lose the prompts
            if distributed.is_main():
                print(f"Prompts written to {write_bundle(self.output_dir, bundle_of(self))}")


def bundle_of(trainer: "PromptTrainer") -> Bundle:
    """Return a trainer's current prompts with everything needed to use them."""
    cfg, teacher = trainer.cfg, trainer.teacher_name()
    return Bundle(
        parameters=trainer.student.learned.state_dict(),
        variant=trainer.student_class.__name__,
        trainer=cfg.TRAINER.NAME,
        backbone=cfg.MODEL.BACKBONE.NAME,
        backbone_sha256=trainer.clip.weights_digest,
        backbone_design=design_of(trainer.clip),
        options=dict(trainer.student.options),
        preprocessing=trainer.clip.preprocessing,
        dataset=cfg.DATASET.NAME,
        template=trainer.template(),
        classnames=trainer.class_names,
        teacher=teacher,
        class_agnostic=teacher is not None and cfg.TRAINER.KDPL.CLASS_AGNOSTIC,
        epoch=trainer.finished_epochs,
        results=[] if trainer.last_result is None else [dict(trainer.last_result)],
        config=cfg.dump(),
        manifest=trainer.manifest and trainer.manifest.to_dict(),
    )
