"""Tables of classes and functions by name, and errors that suggest the closest name."""

from collections.abc import Callable, Iterable
from typing import Any

from yacs.config import CfgNode

from kdpl.common.messages import did_you_mean
from kdpl.config.keys import check_choice


class Registry:
    """A table from names to the classes or functions that were registered under them; its own name is for messages."""

    def __init__(self, name: str):
        self.name = name
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
                f"{self.name} '{name}' is registered already, by module {self._objects[name].__module__}. "
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
            closest = did_you_mean(name, self._objects)
            raise KeyError(f"{self.name} '{name}' is not registered.{closest} Import the module that registers it first.")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return list(self._objects)


def build_registered(registry: Registry, key: str, cfg: CfgNode, **kwargs: Any) -> Any:
    """Return what `registry` has under the name that a key such as "TRAINER.NAME" of `cfg` holds, called with `cfg`.

    Raises:
        ValueError: nothing of that name is registered.
    """
    node, leaf = key.split(".")
    name = cfg[node][leaf]
    check_choice(key, name, registry.registered_names())
    if cfg.VERBOSE:
        print(f"Loading {registry.name.lower()}: {name}")
    return registry.get(name)(cfg, **kwargs)


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise a ValueError that suggests the closest name unless `requested` is one of `available`."""
    check_choice("The requested name", requested, list(available))
