"""Names of trainers and data sets in a fork that has its own beside KDPL's: the fork's win, in whatever order they register."""

from typing import Any


def let_forks_win(registry: Any, ours: str, order: str) -> None:
    """Make a registry of Dassl's take a class whose name a class of KDPL's holds, in its place, with a line about the order.

    Without this, a fork whose module is imported after KDPL's stops with a KeyError.

    Args:
        registry: TRAINER_REGISTRY or DATASET_REGISTRY, of an installed Dassl or of the bundled engine.
        ours: the package of KDPL's classes: "kdpl.trainers".
        order: the line's advice: "import kdpl.trainers.baselines after the fork's own trainers".
    """
    kind = type(registry)
    if getattr(kind, "lets_forks_win", False):
        return

    class LetsForksWin(kind):
        lets_forks_win = True

        def register(self, obj: Any = None, force: bool = False) -> Any:
            if obj is None:
                return lambda decorated: self.register(decorated, force)
            name = obj.__name__
            if not force and name in self.present_names():
                present = self.get(name)
                if present is obj:
                    return obj
                if _is_of(present, ours) and not _is_of(obj, "kdpl"):
                    print(f"{name} is the fork's from now on ({obj.__module__}), in place of {present.__module__}'s: {order}.")
                    force = True
            super().register(obj, force=force)
            return obj

        def present_names(self) -> list[str]:
            """Return the registered names."""
            return list(super().registered_names())

    LetsForksWin.__name__ = LetsForksWin.__qualname__ = kind.__name__
    registry.__class__ = LetsForksWin


def _is_of(obj: Any, package: str) -> bool:
    return f"{obj.__module__}.".startswith(f"{package}.")
