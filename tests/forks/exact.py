"""A file of `--prepare`: the first step of a trial is taken by the formula, too, and its gradients are compared.

The trial's result gets `gradient_of_parameters_differs`, and `digest`, of what is learned in the end.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from kdpl.distill.pseudo_labels import HARD_LABELS, LOOKUPS
from kdpl.forks.trial import divergence
from kdpl.trainers.wrappable import words
from kdpl.trainers.wrapped import DistilledTrainer


def watch(result: dict[str, Any]) -> None:
    """Put into `result` what the training of a distilled trainer gives."""
    train = DistilledTrainer.train

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        learned = {k: p for m in self._models.values() if m is not None for k, p in m.named_parameters() if p.requires_grad}
        step = self.forward_backward

        def first(batch: Any) -> Any:
            self.forward_backward = step
            expected = formula_step(self, batch, learned)
            returned = step(batch)
            if expected:
                result["gradient_of_parameters_differs"] = relative_difference(expected, gradients(learned))
            return returned

        self.forward_backward = first
        try:
            return train(self, *args, **kwargs)
        finally:
            result["digest"] = digest(learned)

    DistilledTrainer.train = trained


def digest(learned: dict[str, Tensor]) -> str:
    """Return a digest of the values of all learned parameters."""
    found = hashlib.sha256()
    for name, parameter in sorted(learned.items()):
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def formula_step(trainer: Any, batch: dict[str, Any], learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a trainer's own step with the formula in place of each F.cross_entropy, and return the gradients.

    Nothing of KDPL's interception is used: the function in PyTorch's module is another one for this step, and labels are the
    numbers of the images, or the teacher's most probable classes if they may be read as such. Optimizers take no step, and what
    is random is drawn again afterwards. Empty, if the trainer does not call cross-entropy by that name with a mean.
    """
    teacher, calls = trainer._teacher_logits(batch), []
    images = torch.arange(len(teacher), device=teacher.device)
    read = {LOOKUPS, HARD_LABELS} & set(words(trainer.cfg.TRAINER.KDPL.ALLOW))
    labels = teacher.argmax(1) if read else images

    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((*args, *kwargs.values()))
        if read:  # of which images they are is known in the order of the batch alone
            times = len(target) // len(labels)
            if not torch.equal(target, labels.repeat(times)):
                raise ValueError("cross-entropy with labels in another order than the batch's")
            target = images.repeat(times)
        return divergence(input, teacher[target]).mean().to(input.dtype)

    with undone(trainer), patch.object(F, "cross_entropy", cross_entropy):
        try:
            super(DistilledTrainer, trainer).forward_backward({**batch, "label": labels})
        except Exception as error:  # labels used in another way
            print(f"The first step cannot be taken by the formula: {error}")
            calls.clear()
    return gradients(learned) if calls and not any(x is not None and x != "mean" for c in calls for x in c) else {}


def gradients(learned: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.grad.detach().clone() for name, p in learned.items() if p.grad is not None}


def relative_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return the largest difference of gradients, as a share of the largest gradient (if that is above 1)."""
    if expected.keys() != found.keys():
        return float("inf")
    largest = max(float(g.abs().max()) for g in expected.values())
    return max(float((g - found[name]).abs().max()) for name, g in expected.items()) / max(1.0, largest)


@contextmanager
def undone(trainer: Any) -> Iterator[None]:
    """Let no optimizer of a trainer step; afterwards draw the same random numbers again and restore its models' buffers."""
    optimizers = [o for o in [*trainer._optims.values(), *vars(trainer).values()] if isinstance(o, Optimizer)]
    buffers = [(b, b.clone()) for model in trainer._models.values() if model is not None for b in model.buffers()]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), ExitStack() as stack:
        for optimizer in optimizers:  # a scheduler may have put a step of its own there
            stack.enter_context(patch.object(optimizer, "step", lambda *args, **kwargs: None))
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    with torch.no_grad():
        for buffer, value in buffers:  # such as running averages
            buffer.copy_(value)


if "result" in globals():  # in a trial
    watch(globals()["result"])
