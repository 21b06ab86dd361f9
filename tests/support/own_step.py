"""Trainers whose training step is a subclass's own, as forks write them, and a command line that trains one of them.

python tests/support/own_step.py --trainer OwnStep ...
"""

import random
import sys

import numpy as np
import torch

import kdpl.datasets  # noqa: F401  first: it makes `dassl` importable

# isort: split
from dassl.engine import TRAINER_REGISTRY

from kdpl.common import distributed
from kdpl.trainers import KDPL_CoOp


@TRAINER_REGISTRY.register()
class OwnStep(KDPL_CoOp):
    """The step of Dassl's own trainers: its own loss, `model_backward_and_update`, the schedule, and what to report."""

    def __init__(self, cfg):
        self.pixels, self.known = [], []  # of each step: images that arrived, and features that were known before
        super().__init__(cfg)

    def forward_backward(self, batch):
        if self.train_loader_x.views:
            unknown = [features.missing(batch["index"], batch["view"]) for features in self.view_features]
            self.known.append(not any(bool(missing.any()) for missing in unknown))
        images = self.parse_batch_train(batch)
        self.pixels.append(len(images))
        loss, terms = self.compute_loss(batch)
        self.update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": terms["loss"].item(), "own_images": float(batch.get("size", len(images)))}

    def update(self, loss):
        self.model_backward_and_update(loss)


@TRAINER_REGISTRY.register()
class OwnStepInParts(OwnStep):
    """The same through the parts of `model_backward_and_update`."""

    def update(self, loss):
        self.model_zero_grad()
        self.model_backward(loss)
        self.model_update()


@TRAINER_REGISTRY.register()
class OwnStepDoubled(OwnStep):
    """Minimises twice the loss."""

    def update(self, loss):
        self.model_backward_and_update(2 * loss)


@TRAINER_REGISTRY.register()
class OwnStepWithNoise(OwnStep):
    """Draws from the generators of Python, NumPy and torch in every step."""

    def update(self, loss):
        self.model_backward_and_update(loss * (random.random() + np.random.random() + torch.rand(())))


@TRAINER_REGISTRY.register()
class OwnStepScaled(OwnStep):
    """Scales its loss as amp does, from a scale at which every gradient overflows, and doubles the scale after each step.

    On rank 1 gradients overflow at a scale at which those of rank 0 do not.
    """

    def build_model(self):
        super().build_model()
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**127, growth_interval=1)
        self.passes, self.steps = [], 0  # whether the gradients of each backward pass were finite, and optimizer steps
        self.optim.register_step_post_hook(self.count)
        self.student.learned.ctx.register_hook(self.gradient)

    def count(self, *_):
        self.steps += 1

    def gradient(self, gradient):
        if distributed.rank() == 1 and self.scaler.get_scale() > 2.0**90:
            gradient = gradient * float("inf")
        self.passes.append(bool(torch.isfinite(gradient).all()))
        return gradient


@TRAINER_REGISTRY.register()
class OwnStepScaledWithNoise(OwnStepScaled, OwnStepWithNoise):
    """Both."""


if __name__ == "__main__":
    from kdpl.train import main

    sys.exit(main())
