"""Labels that know which image of a batch each is of: cross-entropy with them is KDPL's loss, all else sees plain labels.

    step = DistilledStep(teacher_logits)  # (B, C)
    labels = step.labels(batch["label"])  # (B,)
    loss = F.cross_entropy(model(images), labels)  # the divergence from the teacher, wherever it is called

Plain PyTorch; `kdpl.trainers.distilled` does this for a Dassl trainer.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.distill.loss import divergences

# Functions whose result has the entries of their first argument in other places, or several times: the rows follow.
_MOVES = """
    __getitem__ clone detach contiguous view view_as reshape reshape_as flatten ravel squeeze unsqueeze repeat tile
    repeat_interleave expand expand_as broadcast_to index_select narrow select chunk split tensor_split unbind flip roll t
    T mT data transpose permute swapaxes movedim masked_select take gather take_along_dim
    cat concat concatenate stack hstack vstack
""".split()  # noqa: SIM905
_CONVERSIONS = ("to", "cpu", "cuda", "long", "int", "type", "type_as", "pin_memory")
_TELL_NOTHING = """
    __get__ size dim ndimension __len__ numel nelement stride is_floating_point is_complex is_contiguous get_device __repr__
    __format__ __hash__ element_size is_pinned storage_offset zeros_like ones_like empty_like full_like rand_like randn_like
    new_zeros new_ones new_empty new_full new_tensor data_ptr requires_grad_
""".split()  # noqa: SIM905
at_work: list[Any] = []  # the labels (kdpl.trainers.teacher_labels) of trainers of forks that learn now, the innermost last
LOSS, CLASS = "the divergence", "the teacher's most probable class"


class UnsupportedStepError(ValueError):
    """KDPL cannot stand in for the labels of a trainer."""


class DistilledStep:
    """A training step on images with a teacher's distribution, and what its labels were used for.

    Args:
        teacher_logits: of the batch's images over the class names, `(B, C)`.
        kind, temperature: of `kdpl.distill.loss.distillation_loss`.

    Attributes:
        uses: how often each function got what: `LOSS`, `CLASS`, or "ignored".
    """

    def __init__(self, teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0):
        self.teacher_logits, self.kind, self.temperature = teacher_logits, kind, temperature
        self.uses: Counter[tuple[str, str]] = Counter()

    def labels(self, classes: Tensor, first: int = 0) -> "BatchLabels":
        """Return labels `(n,)` of the images whose rows of `teacher_logits` begin with `first`."""
        return _labels(classes, torch.arange(first, first + len(classes), device=classes.device), self)

    @property
    def distilled(self) -> bool:
        """Whether a cross-entropy was the divergence."""
        return any(what == LOSS for _, what in self.uses)

    def loss(
        self,
        name: str,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor | None:
        """Return the divergence in place of `F.<name>`; None if it is not over the images and names of the batch.

        Raises:
            UnsupportedStepError: the call has class weights.
        """
        rows, C = getattr(target, "rows", None), self.teacher_logits.shape[1]
        if rows is None or rows.dim() != 1 or input.shape != (len(rows), C):
            return None
        if weight is not None:
            raise UnsupportedStepError(f"F.{name} got class weights, which have no meaning without labels: drop weight=.")
        if reduce is not None or size_average is not None:  # PyTorch's older arguments
            reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        if label_smoothing:
            self.note("label smoothing", "ignored")
        self.note(name.replace("_e", "-e"), LOSS)
        each = divergences(input, self.teacher_logits[rows], self.kind, self.temperature)  # (rows,)
        return {"none": lambda: each, "mean": each.mean, "sum": each.sum}[reduction]()

    def note(self, name: str, what: str) -> None:
        """Count a use, if no checkpoint computes it a second time."""
        if torch._C._current_graph_task_id() == -1:
            self.uses[name, what] += 1

    def __str__(self) -> str:
        kinds = dict.fromkeys(what for what in (LOSS, CLASS, "ignored") if any(what == w for _, w in self.uses))
        listed = {what: [f"{count} x {name}" for (name, w), count in self.uses.items() if w == what] for what in kinds}
        return "; ".join(f"{', '.join(calls)}: {what}" for what, calls in listed.items()) or "nothing"


class BatchLabels(Tensor):
    """The teacher's most probable classes, as integers, each with the row of the batch that it belongs to.

    Attributes:
        rows: of the same shape; None for labels that were changed in place.
    """

    step: DistilledStep
    rows: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _called(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def _called(func: Callable, args: tuple, kwargs: dict) -> Any:
    found = [x for x in _leaves([*args, *kwargs.values()]) if isinstance(x, BatchLabels)]
    step, name = found[0].step, getattr(func, "__name__", "")
    if func in (F.cross_entropy, F.nll_loss):
        if (loss := step.loss(name, *args, **kwargs)) is not None:
            return loss
        name = "cross-entropy over other classes or images"
    result = func(*args, **kwargs)
    source = args[0] if args else next(iter(kwargs.values()))
    if isinstance(source, BatchLabels) and (name == "__setitem__" or name[-1:] == "_" != name[-2:-1]):
        source.rows = None if name != "requires_grad_" else source.rows  # in place: which image is no longer known
    elif (rows := _moved(func, args, kwargs, found, result)) is not None:
        if isinstance(result, Tensor):
            return _labels(result, rows, step)
        return type(result)(_labels(v, r, step) for v, r in zip(result, rows, strict=True))
    elif name not in _TELL_NOTHING:
        step.note({"__getitem__": "index"}.get(name, name.strip("_")), CLASS)
    return result


def _moved(func: Callable, args: tuple, kwargs: dict, found: list[BatchLabels], result: Any) -> Any:
    """Return the rows of a function's result, if it is made of labels alone; else None."""
    name = getattr(func, "__name__", "")
    name = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
    sources = list(args[1:]) if name == "where" else _leaves([*args, *kwargs.values()][:1])
    if len(sources) != len(found) or any(getattr(x, "rows", None) is None for x in sources):
        return None
    if name in _CONVERSIONS:
        is_index = isinstance(result, Tensor) and result.dtype in (torch.int64, torch.int32)
        return found[0].rows.to(result.device) if is_index else None
    if name in _MOVES or (name == "where" and len(args) == 3):
        return func(*map(_rows, args), **{key: _rows(value) for key, value in kwargs.items()})
    return None


def _labels(values: Tensor, rows: Tensor, step: DistilledStep) -> BatchLabels:
    labels = values.as_subclass(BatchLabels)
    labels.rows, labels.step = rows, step
    return labels


def _leaves(nested: list | tuple) -> list[Any]:
    return [leaf for x in nested for leaf in (_leaves(x) if isinstance(x, list | tuple) else [x])]


def _rows(x: Any) -> Any:
    """Return an argument with rows in place of labels."""
    return type(x)(map(_rows, x)) if type(x) in (list, tuple) else x.rows if isinstance(x, BatchLabels) else x
