"""Tables of classes and functions by name, and errors that suggest the name that was meant."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any


class Registry:
    """A table from names to the classes or functions that were registered under them.

    Args:
        name: what the registry holds ("TRAINER", "DATASET", ...), for error messages.
    """

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register `obj` under its `__name__`; without `obj`, return a decorator that does so.

        Args:
            force: replace an object that has the name already.

        Raises:
            KeyError: the name is taken and `force` is False.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(
                f"{self._name} '{name}' is registered already, by module {self._objects[name].__module__}. "
                "Choose another name, or pass force=True to replace it."
            )
        self._objects[name] = obj
        return obj

    def get(self, name: str) -> Callable:
        """Return what is registered under `name`.

        Raises:
            KeyError: nothing is; the message suggests the closest name.
        """
        if name not in self._objects:
            raise KeyError(_unknown(f"{self._name} '{name}' is not registered", name, self._objects))
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return list(self._objects)


def check_choice(key: str, value: str, available: Iterable[str]) -> None:
    """Raise a ValueError that names the configuration key and the closest name unless `value` is one of `available`."""
    names = list(available)
    if value not in names:
        raise ValueError(_unknown(f"{key} '{value}' is not available", value, names))


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise a ValueError that suggests the closest name unless `requested` is one of `available`."""
    check_choice("The requested name", requested, available)


def tolist_if_not(x: Any) -> list:
    """Return `x` if it is a list, else a list of that one element."""
    return x if isinstance(x, list) else [x]


def _unknown(problem: str, requested: str, available: Iterable[str]) -> str:
    names = list(available)
    if not names:
        return f"{problem}, and nothing else is either. Import the module that registers it first."
    by_folded_name = {name.casefold(): name for name in names}
    closest = get_close_matches(str(requested).casefold(), by_folded_name, n=1, cutoff=0.0)[0]
    return f"{problem}. Did you mean '{by_folded_name[closest]}'? Available: {', '.join(names)}."
