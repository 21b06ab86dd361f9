"""Labels without truth: they say which image each entry is of, and only where that is allowed, a teacher's argmax.

Plain PyTorch. `pseudo_labels` makes them, `kdpl.distill.interception` matches their rows with a teacher's distribution. The
entries of the tensor are no classes, so that code which comes by them past PyTorch's functions has an index out of bounds.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.distill.nested import leaves, mapped, name_of, tensors

OFFSET = 1 << 24  # the entry of image i of a batch is OFFSET + i, an index of no table
HARD_LABELS, LOOKUPS = "hard_labels", "lookups"  # in TRAINER.KDPL.ALLOW


class UnsupportedStepError(ValueError):
    """A training step does something with labels that has no meaning without them."""


class Record:
    """What a step's pseudo-labels are, and what they were used for.

    Args:
        values: the class that each image of the batch would have as a hard label, `(B,)`.
        allowed: of TRAINER.KDPL.ALLOW.

    Attributes:
        cross_entropy: answers F.cross_entropy and F.nll_loss with pseudo-labels while the step runs, called with the function's
            name and its arguments; None outside of a step.
    """

    def __init__(self, values: Tensor, allowed: frozenset[str] = frozenset()):
        self.values, self.allowed = values, allowed
        self.hard: Counter[str] = Counter()  # uses as hard labels, by the function's name
        self.lookups: Counter[str] = Counter()  # uses as an index, by the function's name
        self.cross_entropy: Callable | None = None

    def use_hard(self, what: str) -> None:
        """Take note that pseudo-labels are read as hard labels.

        Raises:
            UnsupportedStepError: TRAINER.KDPL.ALLOW has no "hard_labels".
        """
        if HARD_LABELS not in self.allowed:
            raise UnsupportedStepError(
                f"The trainer reads labels by {what}. They are pseudo-labels, the teacher's argmax, whose distribution "
                f"enters the loss through cross-entropy alone. To let them be read as hard labels too, set TRAINER.KDPL.ALLOW "
                f"{HARD_LABELS}."
            )
        self.hard[what] += 1

    def use_index(self, what: str) -> None:
        """Take note that pseudo-labels choose entries of another tensor.

        Raises:
            UnsupportedStepError: TRAINER.KDPL.ALLOW has neither "lookups" nor "hard_labels".
        """
        if LOOKUPS in self.allowed:
            self.lookups[what] += 1
        elif HARD_LABELS in self.allowed:
            self.hard[what] += 1
        else:
            raise UnsupportedStepError(
                f"The trainer reads labels by {what}, as an index. They are pseudo-labels: the entry of the teacher's most "
                "probable class would be taken, whatever the distribution says of others. If it needs that (the text feature "
                f"of an image's class), set TRAINER.KDPL.ALLOW {LOOKUPS}; to let labels be read in every way, "
                f"TRAINER.KDPL.ALLOW {HARD_LABELS}."
            )


class Tracked(Tensor):
    """A tensor that knows its step's `Record`. Subclasses: `PseudoLabels`, and `Agreement` of comparisons with them."""

    record: Record

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        found = tracked((args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            if func in _SHOWN and isinstance(args[0], PseudoLabels):
                return f"tensor of pseudo-labels of the images {args[0].rows.tolist()}"
            if any(isinstance(x, PseudoLabels) for x in found):
                return _of_labels(func, args, kwargs, found)
            return _of_agreement(func, args, kwargs, found[0].record)


class PseudoLabels(Tracked):
    """Labels of a batch's images, by their numbers.

    Operations that move entries about (indexing, cat, repeat, split, view, to, ...) give labels again. Cross-entropy is
    answered by the record. Comparisons with `Predictions` give an `Agreement`. Everything else is refused, or with
    "hard_labels" or "lookups" allowed gives plain tensors, computed from the teacher's argmax.
    """

    @property
    def rows(self) -> Tensor:
        """Which image of the batch each entry is of, of the same shape."""
        return _entries(self).long() - OFFSET

    @property
    def values(self) -> Tensor:
        """The teacher's argmax for each entry, of the labels' type."""
        return self.record.values.to(_entries(self).device)[self.rows].to(_entries(self).dtype)


class Agreement(Tracked):
    """What comparisons of predictions with pseudo-labels gave, and what was computed from that: for reports, as an accuracy.

    It may not meet a tensor that requires a gradient, nor choose entries or branches, unless "hard_labels" is allowed.
    """


class Predictions(Tensor):
    """Where the largest of some scores were: the classes that a model predicts, the one thing that labels are compared with.

    Anything else may be a list of the classes, and what equals what then tells each label.
    """

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if tracked((args, kwargs)):  # compared with labels
            return Tracked.__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        moved = func in _MOVES or func in _CONVERSIONS or func in _MOVES_LIKE
        return predictions(result) if moved and args and all(isinstance(x, Predictions) for x in leaves(args[0])) else result


def predictions(nested: Any) -> Any:
    """Return the integer tensors of a function's result as `Predictions`."""
    return mapped(lambda x: x.as_subclass(Predictions) if _is_index(x) else x, nested)


def pseudo_labels(count: int, record: Record) -> PseudoLabels:
    """Return the labels of a batch of so many images."""
    return _labels(torch.arange(OFFSET, OFFSET + count, device=record.values.device), record)


def _labels(entries: Tensor, record: Record) -> PseudoLabels:
    labels = entries.as_subclass(PseudoLabels)
    labels.record = record
    return labels


def _entries(labels: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return labels.as_subclass(Tensor)


def _is_index(x: Any) -> bool:
    return (
        type(x) is Tensor and x.dtype in (torch.int64, torch.int32) and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _functions(names: str) -> set[Callable]:
    """Return the methods of a tensor and the functions of torch with one of these names."""
    return {getattr(place, name) for name in names.split() for place in (Tensor, torch) if hasattr(place, name)}


_T = Tensor
_JOINS = _functions("cat concat stack hstack vstack")
_MOVES = _JOINS | {_T.T.__get__, _T.mT.__get__, _T.data.__get__} | _functions(
    "__getitem__ clone detach contiguous view reshape flatten squeeze unsqueeze repeat repeat_interleave expand index_select "
    "narrow select chunk split tensor_split unbind flip roll t transpose permute masked_select unfold tile ravel swapaxes "
    "movedim take_along_dim gather broadcast_to"
)  # fmt: skip
_MOVES_LIKE = {_T.expand_as: _T.expand, _T.view_as: _T.view, _T.reshape_as: _T.reshape}  # another's shape
_CONVERSIONS = {
    _T.to, _T.cpu, _T.cuda, _T.long, _T.int, _T.short, _T.type, _T.type_as, _T.pin_memory,
}  # fmt: skip
_BY_SHAPE = _functions(
    "new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like"
)
_SHOWN = {_T.__repr__, _T.__str__, _T.__format__}
LARGEST = _functions("argmax topk max sort argsort")  # give predictions of scores
_COMPARISONS = _functions("eq ne") | {_T.__eq__, _T.__ne__}
_LOOKUPS = _functions("__getitem__ index_select gather take take_along_dim") | {F.embedding}
_LOSSES = {F.cross_entropy, F.nll_loss}
_READS = {_T.__reduce_ex__} | _functions(
    "item tolist numpy __bool__ __int__ __float__ __index__ __contains__ __array__ __deepcopy__ is_nonzero equal allclose "
    "__setitem__ __dlpack__ storage untyped_storage"
)
_CHOICES = _functions(
    "__bool__ is_nonzero where nonzero argwhere masked_select masked_fill masked_fill_ __setitem__ index_select"
)


def _of_labels(func: Callable, args: tuple, kwargs: dict, found: list[Tracked]) -> Any:
    """Call a function some of whose arguments are pseudo-labels."""
    record = next(x for x in found if isinstance(x, PseudoLabels)).record
    source, name = args[0] if args else None, name_of(func)
    if func in _LOSSES and record.cross_entropy is not None and _is_target(args, kwargs):
        return record.cross_entropy(name, *args, **kwargs)
    if func in _MOVES_LIKE and isinstance(source, PseudoLabels):
        func, args = _MOVES_LIKE[func], (source, args[1].shape)
    others = tracked((args[1:], kwargs))
    in_place = (name.endswith("_") and not name.endswith("__")) or func is _T.__setitem__
    if "out" in kwargs or (in_place and isinstance(source, PseudoLabels)):
        raise UnsupportedStepError(
            f"The trainer changes labels in place by {name}: pseudo-labels would no longer be those of their images."
        )
    if func in _MOVES and _all_labels(source) and not any(isinstance(x, PseudoLabels) for x in others):
        if others:
            record.use_hard("indexing with a comparison")
        return _move(func, args, kwargs, record)
    if func in _JOINS:
        raise UnsupportedStepError(
            f"The trainer joins pseudo-labels with other tensors by {name}: which image would these labels be of?"
        )
    if func in _LOOKUPS:
        record.use_index(name)
    elif func in _READS or (func in _COMPARISONS and not _with_predictions(args, kwargs, found)):
        record.use_hard(name)
        return func(*_plain(args), **_plain(kwargs))
    if func in _CONVERSIONS and isinstance(source, PseudoLabels):
        return _converted(func, args, kwargs, source)
    result = func(*_plain(args), **_plain(kwargs))
    if func in _COMPARISONS:
        return _agreement(result, record)
    if tensors(result) and func not in _BY_SHAPE and func not in _LOOKUPS:
        record.use_hard(name)
    return result


def _with_predictions(args: tuple, kwargs: dict, found: list[Tracked]) -> bool:
    """Whether labels are compared with predictions, an entry or several for each of them.

    A comparison with anything else, or among labels, asks what the labels are.
    """
    others = [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor) and not isinstance(x, Tracked)]
    if len(found) != 1 or len(others) != 1 or not isinstance(others[0], Predictions):
        return False
    return torch.broadcast_shapes(found[0].shape, others[0].shape) == others[0].shape


def _is_target(args: tuple, kwargs: dict) -> bool:
    return isinstance(args[1] if len(args) > 1 else kwargs.get("target"), PseudoLabels)


def _move(func: Callable, args: tuple, kwargs: dict, record: Record) -> Any:
    """Move the entries, by which each label stays that of its image."""
    source = mapped(_entries, args[0])
    moved = func(source, *_plain(args[1:]), **_plain(kwargs))
    return mapped(lambda entries: _labels(entries, record), moved)


def _converted(func: Callable, args: tuple, kwargs: dict, source: PseudoLabels) -> Any:
    """Return labels of another device or integer type."""
    entries = func(_entries(source), *_plain(args[1:]), **_plain(kwargs))
    if not isinstance(entries, Tensor):  # `type()` without arguments
        return entries
    if entries.is_floating_point() or entries.is_complex() or entries.dtype == torch.bool:
        source.record.use_hard(f"{name_of(func)} to {entries.dtype}")
        return func(*_plain(args), **_plain(kwargs))
    if torch.iinfo(entries.dtype).bits < 32:
        raise UnsupportedStepError(
            f"The trainer converts labels to {entries.dtype}, which has no room for the numbers of their images: expected "
            "torch.int64 or torch.int32."
        )
    return _labels(entries, source.record)


def _of_agreement(func: Callable, args: tuple, kwargs: dict, record: Record) -> Any:
    """Call a function some of whose arguments come from comparisons with pseudo-labels."""
    use = ""
    if func in _CHOICES or (func is _T.__getitem__ and tracked(args[1])):
        use = f"{name_of(func)} of a comparison"
    elif torch.is_grad_enabled() and any(x.requires_grad for x in tensors((args, kwargs))):
        use = f"{name_of(func)} of a comparison, in what is learned"
    if use:
        record.use_hard(use)
    result = func(*_plain(args), **_plain(kwargs))
    return result if use else _agreement(result, record)


def _agreement(result: Any, record: Record) -> Any:
    if type(result) in (list, tuple):
        return type(result)(_agreement(x, record) for x in result)
    if not isinstance(result, Tensor):
        return result
    result = result.as_subclass(Agreement)
    result.record = record
    return result


def tracked(nested: Any) -> list[Tracked]:
    return [x for x in leaves(nested) if isinstance(x, Tracked)]


def _all_labels(nested: Any) -> bool:
    found = leaves(nested)
    return bool(found) and all(isinstance(x, PseudoLabels) for x in found)


def _plain(nested: Any) -> Any:
    """Return plain tensors: of labels the teacher's argmax."""

    def plain(x: Any) -> Any:
        if isinstance(x, PseudoLabels):
            return x.values
        return x.as_subclass(Tensor) if isinstance(x, Tracked | Predictions) else x

    return mapped(plain, nested)
