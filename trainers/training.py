"""Epochs and steps of prompt training on a Dassl engine."""

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdpl.common import distributed
from kdpl.training.progress import DivergenceError

if TYPE_CHECKING:
    from kdpl.trainers.prompts import PromptTrainer

LEAST_LOSS_SCALE = 2**-8  # the scale starts at 2**16 and is halved by every step with non-finite gradients
LEAST_STEPS, MOST_SECONDS = 10, 10.0  # between two reads of the terms from a GPU, unless TRAIN.PRINT_FREQ is more steps


class Loop:
    """The steps and epochs of a prompt trainer, whose `forward_backward`, a subclass's too, is called for every batch.

    Under amp `update` repeats a step whose scaled gradients overflow; the parts that it consists of leave it out.
    """

    def __init__(self, trainer: "PromptTrainer"):
        self.trainer = trainer
        self.progress = trainer.progress
        self.ranks = distributed.world()
        self.share = 1.0  # this rank's fraction of the current batch
        self._skipped = False  # the last update found gradients that are not finite
        self._stepped = False  # the current batch
        self._reported_repeat = False
        self._last_read = 0.0  # time.perf_counter()

    # ---------------------------------------------------------------------------------------------------------- a step

    def take(self, batch: dict[str, Any]) -> None:
        """Call `forward_backward` and record the terms it returns.

        Raises:
            RuntimeError: in a job of several ranks, it did not call `model_backward_and_update` or `model_update`.
        """
        trainer = self.trainer
        lr, self._stepped = trainer.get_current_lr(), False
        self.share = batch["counts"][distributed.rank()] / batch["size"] if self.ranks > 1 else 1.0
        terms = trainer.forward_backward(batch)
        if self.ranks > 1 and not self._stepped:
            raise RuntimeError(
                f"{type(trainer).__name__}.forward_backward took no step through model_backward_and_update(loss), which sums "
                "the gradients of several processes: call it there, or start one process."
            )
        self.progress.add(trainer.batch_idx, lr, batch["impath"], terms, self.share)

    def update(self, loss: Tensor) -> None:
        """Take an optimizer step on the loss; several ranks average it, weighted by their fractions of the batch.

        If gradients overflow because amp scales them, the backward pass is repeated with half the scale until they do not, so
        that no step is lost. Gradients that are not finite at any scale change nothing but the scale, which is halved once.
        """
        self._update_once(loss)
        if not self._skipped:
            return
        scaler = self.trainer.scaler
        halved = scale = scaler.get_scale()  # waits for the device, which a step that is not repeated never does
        while self._skipped and scale >= LEAST_LOSS_SCALE:
            self._update_once(loss)
            scale = scaler.get_scale()
        if self._skipped:
            scaler.update(halved)
        elif not self._reported_repeat:
            self._reported_repeat = True
            print(
                f"amp: scaled gradients overflowed, so the backward pass was repeated with smaller loss scales, down to "
                f"{scale:g}; no step is lost (printed once)"
            )

    def _update_once(self, loss: Tensor) -> None:
        self.trainer.model_zero_grad()
        self.trainer.model_backward(loss)
        self.trainer.model_update()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, scaled if gradients are; several ranks weight it by their fractions of the batch."""
        # A scaled loss may be asked again; its graph ends with it.
        scaler = self.trainer.scaler
        scaler.scale(loss * self.share).backward(retain_graph=scaler.is_enabled())

    def step_optimizer(self) -> None:
        """Step the optimizer along the sum of all ranks' gradients; if scaled ones are not finite, no step is taken."""
        trainer = self.trainer
        if self.ranks > 1:
            distributed.sum_gradients(trainer.student.learned.parameters())
        # All ranks have the same sums, so they agree. The scaler knows by reading a number from the device; no second is read.
        self._skipped = True
        hook = trainer.optim.register_step_post_hook(self._note_step)
        trainer.scaler.step(trainer.optim)
        hook.remove()
        trainer.scaler.update()
        self._stepped = True

    def _note_step(self, *_: Any) -> None:
        self._skipped = False

    # -------------------------------------------------------------------------------------------------------- an epoch

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of an interrupted one; print every TRAIN.PRINT_FREQ batches.

        On a GPU several lines are printed together, when their terms are read: see `is_time_to_read`.
        """
        trainer, loader = self.trainer, self.trainer.train_loader_x
        trainer.set_model_mode("train")
        loader.epoch, loader.start = trainer.epoch, trainer.first_batch
        trainer.num_batches = len(loader)
        # An epoch with fewer batches than that prints each of them.
        print_freq = trainer.cfg.TRAIN.PRINT_FREQ if trainer.num_batches >= trainer.cfg.TRAIN.PRINT_FREQ else 1
        started = end = self._last_read = time.perf_counter()
        for i, batch in enumerate(loader, trainer.first_batch):
            trainer.batch_idx = i
            data = time.perf_counter() - end
            self.take(batch)
            self.progress.time(data, time.perf_counter() - end)
            if (i + 1) % print_freq == 0:
                left = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - i - 1
                where = f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{i + 1}/{trainer.num_batches}]"
                self.progress.print_later(where, trainer.get_current_lr(), left)
            to_read = self.is_time_to_read(print_freq)
            if to_read:
                self.read()
            if trainer.checkpoints.is_due(to_read):
                trainer.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                trainer.checkpoints.save_inside_epoch()
            end = time.perf_counter()
        self.read()
        trainer.first_batch = 0
        trainer.train_seconds += time.perf_counter() - started

    def is_time_to_read(self, print_freq: int) -> bool:
        """Whether the terms of the last steps are read, so that their lines can be printed.

        A GPU works on while the host asks for nothing. So it is asked once in LEAST_STEPS or TRAIN.PRINT_FREQ steps, whichever
        are more, at the end of an epoch, and if a line has waited for MOST_SECONDS.
        """
        step, every = self.trainer.batch_idx + 1, self.trainer.cfg.TRAIN.PRINT_FREQ
        if self.trainer.device.type == "cpu":
            return step % print_freq == 0
        late = self.ranks == 1 and time.perf_counter() - self._last_read >= MOST_SECONDS  # clocks of ranks differ
        last = step == self.trainer.num_batches
        return step % max(every, LEAST_STEPS) == 0 or last or (late and self.progress.has_lines)

    def read(self) -> None:
        """Read the terms of the steps since the last call from the device, for lines, means and curves.

        Raises:
            DivergenceError: a term is not finite (the images of the batch are named), or gradients are never finite.
        """
        trainer, steps = self.trainer, self.progress.read()
        if steps and trainer.scaler.is_enabled() and (scale := trainer.scaler.get_scale()) < LEAST_LOSS_SCALE:
            raise DivergenceError(
                f"Gradients are NaN or infinite in every step, so no step is taken: amp's loss scale fell to {scale}. "
                "Set PREC fp32 or bf16, or lower OPTIM.LR."
            )
        self._last_read = time.perf_counter()
        for step in steps:
            if step.line:
                print(step.line)
            n = trainer.epoch * trainer.num_batches + step.batch
            for name, mean in step.means.items():
                trainer.write_scalar(f"train/{name}", mean, n)
            trainer.write_scalar("train/lr", step.lr, n)
