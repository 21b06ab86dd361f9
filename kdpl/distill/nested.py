"""Functions of PyTorch and their arguments, which may be nested in tuples, lists, dictionaries and slices."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def name_of(func: Callable) -> str:
    """Return a function's name as a reader knows it: 'one_hot', 'Tensor.eq'."""
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name == "__get__" else name


def leaves(nested: Any) -> list[Any]:
    """Return what is no container, in order."""
    if isinstance(nested, list | tuple):
        return [leaf for x in nested for leaf in leaves(x)]
    if isinstance(nested, dict):
        return leaves(list(nested.values()))
    if isinstance(nested, slice):
        return leaves([nested.start, nested.stop, nested.step])
    return [nested]


def tensors(nested: Any) -> list[Tensor]:
    return [x for x in leaves(nested) if isinstance(x, Tensor)]


def mapped(f: Callable, nested: Any) -> Any:
    """Return the same containers with f of each leaf."""
    if isinstance(nested, list | tuple):
        found = [mapped(f, x) for x in nested]
        return type(nested)(*found) if hasattr(nested, "_fields") else type(nested)(found)
    if isinstance(nested, dict):
        return {key: mapped(f, x) for key, x in nested.items()}
    if isinstance(nested, slice):
        return slice(mapped(f, nested.start), mapped(f, nested.stop), mapped(f, nested.step))
    return f(nested)
