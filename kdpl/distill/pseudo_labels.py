"""Labels without truth: a teacher's argmax that knows which image each entry is of, and refuses to be read as a hard label.

Plain PyTorch. `pseudo_labels` makes them, `kdpl.distill.interception` matches their rows with a teacher's distribution.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HARD_LABELS, LOOKUPS = "hard_labels", "lookups"  # in TRAINER.KDPL.ALLOW


class UnsupportedStepError(ValueError):
    """A training step does something with labels that has no meaning without them."""


class Record:
    """What a step's pseudo-labels were used for.

    Args:
        classes: how many names they are over.
        allowed: of TRAINER.KDPL.ALLOW.

    Attributes:
        cross_entropy: answers F.cross_entropy and F.nll_loss with pseudo-labels while the step runs, called with the function's
            name and its arguments; None outside of a step.
    """

    def __init__(self, classes: int, allowed: frozenset[str] = frozenset()):
        self.classes, self.allowed = classes, allowed
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
            if any(isinstance(x, PseudoLabels) for x in found):
                return _of_labels(func, args, kwargs, found)
            return _of_agreement(func, args, kwargs, found[0].record)


class PseudoLabels(Tracked):
    """The teacher's argmax; `rows`, of the same shape, says which image of the batch each entry is of.

    Operations that move entries about (indexing, cat, repeat, split, view, to, ...) move `rows` alike. Cross-entropy is
    answered by the record. Comparisons with predictions give an `Agreement`. Everything else is refused, or with "hard_labels"
    or "lookups" allowed gives plain tensors.
    """

    rows: Tensor


class Agreement(Tracked):
    """What comparisons of predictions with pseudo-labels gave, and what was computed from that: for reports, as an accuracy.

    It may not meet a tensor that requires a gradient, nor choose entries or branches, unless "hard_labels" is allowed.
    """


def pseudo_labels(values: Tensor, rows: Tensor, record: Record) -> PseudoLabels:
    """Return labels that know their images.

    Args:
        values: class indices, of an integer type and any shape.
        rows: which image of the batch each is of, of the same shape.
        record: of the step.
    """
    labels = values.as_subclass(PseudoLabels)
    labels.rows, labels.record = rows, record
    return labels


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
_COMPARISONS = _functions("eq ne") | {_T.__eq__, _T.__ne__}
_LOOKUPS = _functions("__getitem__ index_select gather take take_along_dim") | {F.embedding}
_LOSSES = {F.cross_entropy, F.nll_loss}
_READS = {_T.__reduce_ex__} | _functions(
    "item tolist numpy __bool__ __int__ __float__ __index__ __contains__ __array__ __deepcopy__ is_nonzero equal allclose "
    "__setitem__ __dlpack__"
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
    result = func(*_plain(args), **_plain(kwargs))
    if func in _CONVERSIONS and isinstance(source, PseudoLabels):
        return _converted(result, source, name)
    if func in _COMPARISONS:
        return _agreement(result, record)
    if _tensors(result) and func not in _BY_SHAPE and func not in _LOOKUPS:
        record.use_hard(name)
    return result


def _with_predictions(args: tuple, kwargs: dict, found: list[Tracked]) -> bool:
    """Whether labels are compared with a tensor that has an entry, or several, for each of them.

    A comparison with a number, with each class, or among labels asks what the labels are.
    """
    others = [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor) and not isinstance(x, Tracked)]
    if len(found) != 1 or len(others) != 1 or others[0].dim() == 0:
        return False
    return torch.broadcast_shapes(found[0].shape, others[0].shape) == others[0].shape


def _is_target(args: tuple, kwargs: dict) -> bool:
    return isinstance(args[1] if len(args) > 1 else kwargs.get("target"), PseudoLabels)


def _move(func: Callable, args: tuple, kwargs: dict, record: Record) -> Any:
    """Do with the rows what is done with the values."""
    values = func(*_plain(args), **_plain(kwargs))
    rows = func(_rows(args[0]), *_plain(args[1:]), **_plain(kwargs))
    if isinstance(values, list | tuple):
        return type(values)(pseudo_labels(v, r, record) for v, r in zip(values, rows, strict=True))
    return pseudo_labels(values, rows, record)


def _converted(plain: Any, source: PseudoLabels, name: str) -> Any:
    """Return labels of another device or integer type."""
    if not isinstance(plain, Tensor):  # `type()` without arguments
        return plain
    if plain.is_floating_point() or plain.is_complex() or plain.dtype == torch.bool:
        source.record.use_hard(f"{name} to {plain.dtype}")
        return plain
    if plain.dtype != source.dtype and source.record.classes - 1 > torch.iinfo(plain.dtype).max:
        raise UnsupportedStepError(f"{source.record.classes} classes are too many for labels of type {plain.dtype}.")
    return pseudo_labels(plain, source.rows.to(plain.device), source.record)


def _of_agreement(func: Callable, args: tuple, kwargs: dict, record: Record) -> Any:
    """Call a function some of whose arguments come from comparisons with pseudo-labels."""
    use = ""
    if func in _CHOICES or (func is _T.__getitem__ and tracked(args[1])):
        use = f"{name_of(func)} of a comparison"
    elif torch.is_grad_enabled() and any(x.requires_grad for x in _tensors((args, kwargs))):
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


# ---------------------------------------------------------------------------------------------------- nested arguments


def name_of(func: Callable) -> str:
    """Return a function's name as a reader knows it: 'one_hot', 'Tensor.eq'."""
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name == "__get__" else name


def _leaves(nested: Any) -> list[Any]:
    if isinstance(nested, list | tuple):
        return [leaf for x in nested for leaf in _leaves(x)]
    if isinstance(nested, dict):
        return _leaves(list(nested.values()))
    if isinstance(nested, slice):
        return _leaves([nested.start, nested.stop, nested.step])
    return [nested]


def _tensors(nested: Any) -> list[Tensor]:
    return [x for x in _leaves(nested) if isinstance(x, Tensor)]


def tracked(nested: Any) -> list[Tracked]:
    return [x for x in _leaves(nested) if isinstance(x, Tracked)]


def _all_labels(nested: Any) -> bool:
    leaves = _leaves(nested)
    return bool(leaves) and all(isinstance(x, PseudoLabels) for x in leaves)


def _map(f: Callable, nested: Any) -> Any:
    if isinstance(nested, list | tuple):
        mapped = [_map(f, x) for x in nested]
        return type(nested)(*mapped) if hasattr(nested, "_fields") else type(nested)(mapped)
    if isinstance(nested, dict):
        return {key: _map(f, x) for key, x in nested.items()}
    return f(nested)


def _plain(nested: Any) -> Any:
    return _map(lambda x: x.as_subclass(Tensor) if isinstance(x, Tracked) else x, nested)


def _rows(nested: Any) -> Any:
    return _map(lambda x: x.rows, nested)
