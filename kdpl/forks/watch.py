"""What a distilled trainer learns in a trial, and how exactly its loss and gradients are those of the formula."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from kdpl.common.safe_text import print
from kdpl.distill.interception import ReplacedCrossEntropy
from kdpl.distill.pseudo_labels import HARD_LABELS, LOOKUPS
from kdpl.trainers.registry import PREFIX
from kdpl.trainers.wrappable import words
from kdpl.trainers.wrapped import DistilledTrainer


def watch(result: dict[str, Any], compared: str, clip_file: Path, exact: bool) -> None:
    """Put into `result` what the trainer that the fork's main() builds learns, and how exactly its loss is the divergence.

    Args:
        compared: the name of a trainer to compare with KDPL's own first; empty: none.
        clip_file: the student's weights.
        exact: take the first step a second time, with the formula in place of each cross-entropy.
    """
    build, train, answer = DistilledTrainer.__init__, DistilledTrainer.train, ReplacedCrossEntropy._loss

    def built(self: Any, cfg: Any) -> None:
        build(self, cfg)
        if compared:
            from dassl.engine import TRAINER_REGISTRY

            try:
                result["compared"] = compare(self, TRAINER_REGISTRY.get(f"{PREFIX}{compared}"), cfg, clip_file)
            except ValueError as error:  # an option of the fork's that KDPL's own refuses
                result["incomparable"] = str(error)
            build(self, cfg)

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        learned = {k: p for m in self._models.values() if m is not None for k, p in m.named_parameters() if p.requires_grad}
        before = {k: p.detach().clone() for k, p in learned.items()}
        step, steps = self.forward_backward, []

        def counted(batch: Any) -> Any:
            expected = formula_step(self, batch, learned) if exact and not steps else None
            steps.append(step(batch))
            if expected:
                result["gradient_of_parameters_differs"] = relative_difference(expected, gradients(learned))
            return steps[-1]

        self.forward_backward = counted

        def record() -> None:
            still = [k for k, p in learned.items() if torch.equal(before[k], p)]
            result.update(learned=len(learned), still=still, moved=len(learned) - len(still), steps=len(steps))
            result["digest"] = digest(learned)

        try:
            returned = train(self, *args, **kwargs)
        except SystemExit as end:  # some leave Python in the test that ends a training
            if end.code in (None, 0):
                record()
            raise
        record()
        return returned

    def answered(self: Any, name: str, input: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        loss = answer(self, name, input, target, *args, **kwargs)
        if "loss_differs" not in result and input.requires_grad and loss.dim() == 0:
            result.update(differences(loss, input, self.teacher_logits[target.rows], self.calls))
        return loss

    DistilledTrainer.__init__, DistilledTrainer.train, ReplacedCrossEntropy._loss = built, trained, answered


def digest(learned: dict[str, Tensor]) -> str:
    """Return a digest of the values of all learned parameters."""
    found = hashlib.sha256()
    for name, parameter in sorted(learned.items()):
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# -------------------------------------------------------------------------------------------------------- the formula


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return KDPL's loss of each row in double precision, as the paper has it."""
    log_s, log_t = logits.double().log_softmax(1), teacher.detach().double().log_softmax(1)
    return 0.5 * (log_t.exp() * (log_t - log_s) + log_s.exp() * (log_s - log_t)).sum(1)  # (rows,)


def differences(loss: Tensor, input: Tensor, teacher: Tensor, calls: Any) -> dict[str, float]:
    """Compare a mean of the loss and its gradient with those of the formula."""
    if next(reversed(calls))[2] != "mean":
        return {}
    (gradient,) = torch.autograd.grad(loss, input, retain_graph=True)
    s = input.detach().double().requires_grad_()
    expected = divergence(s, teacher).mean()
    (exact,) = torch.autograd.grad(expected, s)
    return {"loss_differs": float((loss - expected).abs()), "gradient_differs": float((gradient - exact).abs().max())}


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

    with optimizers_at_rest(trainer), same_random_numbers(), buffers_restored(trainer):
        original, F.cross_entropy = F.cross_entropy, cross_entropy
        try:
            super(DistilledTrainer, trainer).forward_backward({**batch, "label": labels})
        except Exception as error:  # labels used in another way
            print(f"The first step cannot be taken by the formula: {error}")
            return {}
        finally:
            F.cross_entropy = original
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
def optimizers_at_rest(trainer: Any) -> Iterator[None]:
    """Let no optimizer of a trainer take a step."""
    found = {id(o): o for o in [*trainer._optims.values(), *vars(trainer).values()] if isinstance(o, Optimizer)}.values()
    steps = [(optimizer, vars(optimizer).get("step")) for optimizer in found]
    for optimizer in found:
        optimizer.step = _nothing
    try:
        yield
    finally:
        for optimizer, step in steps:
            del optimizer.step
            if step is not None:  # a scheduler's
                optimizer.step = step


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for the step of an optimizer."""


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Draw the same random numbers again afterwards."""
    states: list[tuple[Callable, Any]] = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]
    with torch.random.fork_rng():
        yield
    for restore, state in states:
        restore(state)


@contextmanager
def buffers_restored(trainer: Any) -> Iterator[None]:
    """Give the buffers of a trainer's models their values again, such as running averages."""
    buffers = [b for model in trainer._models.values() if model is not None for b in model.buffers()]
    before = [b.clone() for b in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def compare(trainer: Any, own: type, cfg: Any, clip_file: Path) -> dict[str, Any]:
    """Take four steps with a wrapped trainer and KDPL's own, from the same parameters; return the largest differences."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = own.__name__, str(clip_file)
    cfg.OUTPUT_DIR += "/own"
    cfg.freeze()
    ours = own(cfg)
    theirs = dict(trainer._models[next(iter(trainer._models))].named_parameters())
    pairs = [(p, theirs[name]) for name, p in ours.student.learned.named_parameters()]
    with torch.no_grad():
        for p, q in pairs:
            p.copy_(q)
    start = [p.detach().clone() for p, _ in pairs]
    for each in (ours, trainer):
        each.set_model_mode("train")
        each.num_batches = 10**6
        for group in each.optim.param_groups:
            group["lr"] = 0.002
    differences = []
    for i, batch in enumerate(list(ours.train_loader_x)[:4]):
        ours.batch_idx = trainer.batch_idx = i
        mine = ours.forward_backward(batch)
        other = trainer.forward_backward({**batch, "img": ours.images(batch)})
        loss = float(mine.get("loss_total", mine["loss"]))
        differences.append(abs(loss - other["loss"]) / max(1.0, abs(loss)))
    return {
        "loss": max(differences),
        "parameters": max(float((p - q).detach().abs().max()) for p, q in pairs),
        "moved": max(float((p.detach() - s).abs().max()) for (p, _), s in zip(pairs, start, strict=True)),
    }
