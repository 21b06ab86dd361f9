"""A training step written for labels, run without them: its cross-entropy becomes the divergence from a teacher.

    labels, replaced = replace_cross_entropy(teacher_logits)
    with replaced:
        step(images, labels)  # anybody's: F.cross_entropy(logits, labels), inside a model too, several times, ...
    replaced.check()

Plain PyTorch; `kdpl.trainers.distilled` does this for a Dassl trainer.
"""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdpl.distill.loss import distillation_loss, divergences
from kdpl.distill.pseudo_labels import (
    LARGEST,
    OFFSET,
    PseudoLabels,
    Record,
    Tracked,
    UnsupportedStepError,
    predictions,
    pseudo_labels,
    tracked,
)

LABEL_SMOOTHING, OWN_TARGETS = "label_smoothing", "own_targets"  # in TRAINER.KDPL.ALLOW, beside hard_labels


class ReplacedCrossEntropy(TorchFunctionMode):
    """While it is entered, `F.cross_entropy` and `F.nll_loss` with pseudo-labels give the divergence from a teacher.

    The labels themselves answer these calls (`Record.cross_entropy`), so that it makes no difference where they are made: in a
    model, in a function that a checkpoint computes again in the backward pass, in another thread. As a mode of PyTorch's this
    class sees only what has nothing of the labels': a cross-entropy with targets of the trainer's own, and what is predicted.

    Args:
        teacher_logits: of the batch's images over the class names, `(B, C)`.
        kind, temperature: of `distillation_loss`.
        allowed: of `kdpl.config.keys.ALLOWED` (docs/forks.md).

    Attributes:
        calls: how often each kind of call was replaced in the forward pass: (function, rows, reduction).
        own_calls: calls with the trainer's own targets, which are left as they are.
    """

    def __init__(
        self, teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0, allowed: Collection[str] = ()
    ):
        super().__init__()
        self.teacher_logits, self.kind, self.temperature = teacher_logits, kind, temperature
        self.record = Record(teacher_logits.argmax(1), frozenset(allowed))
        self.calls: Counter[tuple[str, int, str]] = Counter()
        self.own_calls = self.smoothed_calls = 0

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.cross_entropy, F.nll_loss):
            target = args[1] if len(args) > 1 else kwargs["target"]
            if not isinstance(target, PseudoLabels):
                self._leave(func.__name__, args[0] if args else kwargs["input"], target)
        elif func is torch.tensor and tracked((args, kwargs)):
            self.record.use_hard("torch.tensor")
        result = func(*args, **kwargs)
        scores = args[0] if args else kwargs.get("input")
        return predictions(result) if func in LARGEST and torch.is_floating_point(scores) else result

    def __enter__(self) -> "ReplacedCrossEntropy":
        self.record.cross_entropy = self._loss
        self._eager = _without_compilation()
        self._eager.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._eager.__exit__(*error)
        self.record.cross_entropy = None

    def _loss(
        self,
        name: str,
        input: Tensor,
        target: PseudoLabels,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        C = self.teacher_logits.shape[1]
        if input.dim() != 2 or input.shape[1] != C:
            raise UnsupportedStepError(
                f"F.{name} got logits {tuple(input.shape)}, expected (rows, {C}): over the {C} class names that the teacher's "
                "distribution is over."
            )
        if target.dim() != 1 or len(target) != len(input):
            raise UnsupportedStepError(f"F.{name} got {tuple(target.shape)} labels for {len(input)} rows of logits.")
        if weight is not None:
            raise UnsupportedStepError(f"F.{name} got class weights, which have no meaning without labels: drop weight=.")
        if ignore_index in range(C):
            raise UnsupportedStepError(f"F.{name} ignores class {ignore_index}, which has no meaning without labels.")
        if label_smoothing:
            self._smoothed(label_smoothing)
        if name == "nll_loss" and not _are_log_probabilities(input):
            raise UnsupportedStepError(
                "F.nll_loss got rows that are not log-probabilities (their exponentials do not sum to 1): expected the result "
                "of F.log_softmax."
            )
        reduction = _reduction(size_average, reduce, reduction)
        if not _in_backward():
            self.calls[name, len(input), reduction] += 1
        teacher = self.teacher_logits[target.rows]  # (rows, C)
        if reduction == "mean":
            return distillation_loss(input, teacher, self.kind, self.temperature)["loss"]
        rows = divergences(input, teacher, self.kind, self.temperature)  # (rows,)
        return rows if reduction == "none" else rows.sum()

    def _leave(self, name: str, logits: Tensor, target: Tensor) -> None:
        """Count a call whose targets are not labels, and which is left alone, or refuse it.

        Its targets are read, for which the host waits on a GPU, only in torch.func, where labels become plain tensors, and
        before an error. Elsewhere the entries of pseudo-labels would be out of PyTorch's bounds.
        """
        own = OWN_TARGETS in self.record.allowed and not isinstance(target, Tracked)
        if (not own or torch._C._functorch.is_functorch_wrapped_tensor(target)) and _are_entries(target):
            raise UnsupportedStepError(
                f"F.{name} got labels that torch.func or torch.vmap made a plain tensor: let the function refer to the labels "
                "from outside, not take them as an argument."
            )
        if not own:
            raise UnsupportedStepError(
                f"F.{name} got logits {tuple(logits.shape)} and targets {tuple(target.shape)} that are not the batch's labels: "
                f"which image is each row of? If the targets have nothing to do with labels (a term between texts, or between "
                f"views), set TRAINER.KDPL.ALLOW {OWN_TARGETS}, which leaves such calls as they are."
            )
        self.own_calls += 1

    def _smoothed(self, amount: float) -> None:
        if LABEL_SMOOTHING not in self.record.allowed:
            raise UnsupportedStepError(
                f"F.cross_entropy got label_smoothing {amount}. The teacher's distribution is smooth itself: drop it, or set "
                f"TRAINER.KDPL.ALLOW {LABEL_SMOOTHING}, which ignores it."
            )
        self.smoothed_calls += 1

    def check(self, trainer: str = "The trainer") -> None:
        """Refuse a step without any call that was replaced.

        Raises:
            UnsupportedStepError: there was none.
        """
        if not self.calls:
            read = f" (it reads them as hard labels by {', '.join(self.record.hard)})" if self.record.hard else ""
            raise UnsupportedStepError(
                f"{trainer} called neither F.cross_entropy nor F.nll_loss with the batch's labels in its step, so there is no "
                f"loss on labels that a teacher could replace: it learns without labels already, or by its own loss{read}."
            )

    def summary(self) -> list[str]:
        """Return lines that say what was replaced, for the log."""
        lines = [
            f"{count} x F.{name} of {rows} rows, reduction '{reduction}'"
            for (name, rows, reduction), count in self.calls.items()
        ]
        lines = [f"replaced by the divergence from the teacher: {', '.join(lines)}"]
        if any(reduction == "none" for _, _, reduction in self.calls):
            lines.append(
                "the trainer got the loss of each row (reduction 'none'): their mean is KDPL's loss; what else it makes of "
                "them, such as a focal term, is a function of divergences and no longer what its paper says"
            )
        if self.smoothed_calls:
            lines.append(f"label smoothing was ignored in {self.smoothed_calls} calls")
        if self.own_calls:
            lines.append(f"left as they are: {self.own_calls} calls with targets of the trainer's own")
        if self.record.lookups:
            uses = ", ".join(f"{count} x {name}" for name, count in self.record.lookups.items())
            lines.append(f"the teacher's most probable class chose entries of other tensors: {uses}")
        if self.record.hard:
            uses = ", ".join(f"{count} x {name}" for name, count in self.record.hard.items())
            lines.append(f"pseudo-labels were read as hard labels: {uses}")
        return lines


def replace_cross_entropy(
    teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0, allowed: Collection[str] = ()
) -> tuple[PseudoLabels, ReplacedCrossEntropy]:
    """Return a batch's pseudo-labels `(B,)` and the context in which a step with them learns from the teacher.

    Args:
        teacher_logits, kind, temperature, allowed: as of `ReplacedCrossEntropy`.
    """
    replaced = ReplacedCrossEntropy(teacher_logits, kind, temperature, allowed)
    return pseudo_labels(len(teacher_logits), replaced.record), replaced


def _in_backward() -> bool:
    """Whether a function of a checkpoint is computed again."""
    return torch._C._current_graph_task_id() != -1


def _without_compilation() -> AbstractContextManager:
    """Let functions of torch.compile run as they are written: labels that know their images cannot be traced."""
    return torch.compiler.set_stance("force_eager")


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that PyTorch's old arguments and its new one mean together."""
    if size_average is None and reduce is None:
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction '{reduction}' is not one of none, mean, sum.")
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def _are_entries(target: Tensor) -> bool:
    """Whether a plain tensor holds the entries of pseudo-labels."""
    if target.is_floating_point() or isinstance(target, Tracked) or not target.numel():
        return False
    try:
        return bool((target >= OFFSET).any())
    except RuntimeError:  # of torch.vmap, which shows no values: let them be out of bounds
        return False


@torch.no_grad()
def _are_log_probabilities(rows: Tensor) -> bool:
    return bool((rows.float().logsumexp(1).abs() < 1e-2).all())
