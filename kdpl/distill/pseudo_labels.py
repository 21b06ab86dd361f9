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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions whose result has the entries of their first argument in other places, or several times: the rows follow.
_MOVES = _words("""
    __getitem__ clone detach contiguous view view_as reshape reshape_as flatten ravel squeeze unsqueeze repeat tile
    repeat_interleave expand expand_as broadcast_to index_select narrow select chunk split tensor_split unbind flip roll t
    T mT data transpose permute swapaxes movedim masked_select take gather take_along_dim
    cat concat concatenate stack hstack vstack
""")
_CONVERSIONS = _words("to cpu cuda long int type type_as pin_memory")
_QUIET = _words("""
    size dim ndimension __len__ numel nelement stride is_floating_point is_complex is_contiguous get_device __repr__ __str__
    __format__ __hash__ element_size is_pinned storage_offset zeros_like ones_like empty_like full_like rand_like randn_like
    new_zeros new_ones new_empty new_full new_tensor data_ptr requires_grad_
""")  # tell nothing of the labels
_NAMES = {"__getitem__": "index", "__setitem__": "setitem", "__eq__": "eq", "__ne__": "ne", "__iter__": "iteration"}


class UnsupportedStepError(ValueError):
    """KDPL cannot stand in for the labels of a trainer."""


class DistilledStep:
    """A training step on images with a teacher's distribution, and what its labels were used for.

    Args:
        teacher_logits: of the batch's images over the class names, `(B, C)`.
        kind, temperature: of `kdpl.distill.loss.distillation_loss`.

    Attributes:
        losses: calls of cross-entropy that gave the divergence, by function.
        uses: other uses, which saw the teacher's most probable class, by function.
        ignored: what of these calls has no meaning beside a distribution.
    """

    def __init__(self, teacher_logits: Tensor, kind: str = "symmetric", temperature: float = 1.0):
        self.teacher_logits, self.kind, self.temperature = teacher_logits, kind, temperature
        self.losses: Counter[str] = Counter()
        self.uses: Counter[str] = Counter()
        self.ignored: set[str] = set()

    def labels(self, classes: Tensor, first: int = 0) -> "BatchLabels":
        """Return labels `(n,)` of the images whose rows of `teacher_logits` begin with `first`."""
        return _labels(classes, torch.arange(first, first + len(classes), device=classes.device), self)

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
            UnsupportedStepError: the call has class weights, or nll_loss has no log-probabilities.
        """
        rows, C = target.rows if isinstance(target, BatchLabels) else None, self.teacher_logits.shape[1]
        if rows is None or rows.dim() != 1 or input.shape != (len(rows), C):
            return None
        if weight is not None:
            raise UnsupportedStepError(f"F.{name} got class weights, which have no meaning without labels: drop weight=.")
        if name == "nll_loss" and not _are_log_probabilities(input):
            raise UnsupportedStepError(
                "F.nll_loss got rows that are not log-probabilities (their exponentials do not sum to 1): expected the result "
                "of F.log_softmax."
            )
        if reduce is not None or size_average is not None:  # PyTorch's older arguments
            reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        if label_smoothing:
            self.ignored.add("label smoothing")
        if ignore_index in range(C):
            self.ignored.add(f"ignore_index {ignore_index}")
        self._count(self.losses, name)
        each = divergences(input, self.teacher_logits[rows], self.kind, self.temperature)  # (rows,)
        return {"none": lambda: each, "mean": each.mean, "sum": each.sum}[reduction]()

    def use(self, name: str) -> None:
        """Take note that labels were used as plain ones."""
        self._count(self.uses, name)

    def _count(self, calls: Counter[str], name: str) -> None:
        if torch._C._current_graph_task_id() == -1:  # else a checkpoint computes a function again
            calls[name] += 1

    def kinds(self) -> set[str]:
        """Return what `str` lists, without the counts."""
        return {"step", *self.losses, *self.uses, *self.ignored}

    def __str__(self) -> str:
        parts = [
            f"{_listed(calls)}: {what}"
            for calls, what in ((self.losses, "the divergence"), (self.uses, "the teacher's most probable class"))
            if calls
        ]
        return "; ".join([*parts, *(f"{what} ignored" for what in sorted(self.ignored))]) or "nothing"


class BatchLabels(Tensor):
    """The teacher's most probable classes, as integers, each with the row of the batch that it belongs to.

    Attributes:
        rows: of the same shape; None for labels that were changed in place.
    """

    step: DistilledStep
    rows: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            return _called(func, args, kwargs)

    def __deepcopy__(self, memo: dict) -> "BatchLabels":
        return self.clone()

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def _called(func: Callable, args: tuple, kwargs: dict) -> Any:
    found = [x for x in _leaves([*args, *kwargs.values()]) if isinstance(x, BatchLabels)]
    step, name = found[0].step, _name_of(func)
    if func in (F.cross_entropy, F.nll_loss):
        if (loss := step.loss(name, *args, **kwargs)) is not None:
            return loss
        name = f"{name} over other classes or images"
    source = args[0] if args else next(iter(kwargs.values()))
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name not in _QUIET)
    if in_place and isinstance(source, BatchLabels):
        source.rows = None  # which image they are of is no longer known
        return func(*args, **kwargs)
    result = func(*args, **kwargs)
    if (rows := _moved(func, name, args, kwargs, found, result)) is not None:
        return _paired(result, rows, step)
    if name not in _QUIET and getattr(func, "__name__", "") != "__get__":
        step.use(_NAMES.get(name, name.strip("_")))
    return result


def _moved(func: Callable, name: str, args: tuple, kwargs: dict, found: list[BatchLabels], result: Any) -> Any:
    """Return the rows of a function's result, if it is made of labels alone; else None."""
    first = args[0] if args else next(iter(kwargs.values()))
    sources = list(args[1:]) if name == "where" else _leaves([first])
    if len(sources) != len(found) or any(not isinstance(x, BatchLabels) or x.rows is None for x in sources):
        return None
    if name in _CONVERSIONS:
        is_index = isinstance(result, Tensor) and result.dtype in (torch.int64, torch.int32)
        return found[0].rows.to(result.device) if is_index else None
    if name in _MOVES or (name == "where" and len(args) == 3):
        return func(*_mapped(args), **_mapped(kwargs))
    return None


def _paired(values: Any, rows: Any, step: DistilledStep) -> Any:
    if isinstance(values, Tensor):
        return _labels(values, rows, step)
    return type(values)(_labels(v, r, step) for v, r in zip(values, rows, strict=True))


def _labels(values: Tensor, rows: Tensor, step: DistilledStep) -> BatchLabels:
    labels = values.as_subclass(BatchLabels)
    labels.rows, labels.step = rows, step
    return labels


def _name_of(func: Callable) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _leaves(nested: list | tuple) -> list[Any]:
    return [leaf for x in nested for leaf in (_leaves(x) if isinstance(x, list | tuple) else [x])]


def _mapped(nested: Any) -> Any:
    """Return the same arguments with rows in place of labels."""
    if isinstance(nested, list | tuple):
        return type(nested)(map(_mapped, nested))
    if isinstance(nested, dict):
        return {key: _mapped(value) for key, value in nested.items()}
    return nested.rows if isinstance(nested, BatchLabels) else nested


def _listed(calls: Counter[str]) -> str:
    return ", ".join(f"{count} x {name.replace('cross_entropy', 'cross-entropy')}" for name, count in calls.items())


@torch.no_grad()
def _are_log_probabilities(rows: Tensor) -> bool:
    return bool((rows.float().logsumexp(1).abs() < 1e-2).all())
