"""Names of trainers and data sets in a fork that has its own beside KDPL's: the fork's are registered first, and stay."""

from typing import Any


def refuse_wrong_order(registry: Any, ours: str, order: str) -> None:
    """Make a registry of Dassl's refuse, and say what to do, a fork's class whose name a class of KDPL's holds already.

    The other way round KDPL leaves the name to the fork. To replace KDPL's class here would leave whatever asked for it before
    with another one than what asks later.

    Args:
        registry: TRAINER_REGISTRY or DATASET_REGISTRY, of an installed Dassl or of the bundled engine.
        ours: the package of KDPL's classes: "kdpl.trainers".
        order: what to do: "Import kdpl.trainers.baselines after the fork's own trainers".
    """
    plain = registry.register
    if hasattr(plain, "refuses_wrong_order"):
        return

    def register(obj: Any = None, force: bool = False) -> Any:
        if obj is None:
            return lambda decorated: register(decorated, force)
        present = registry.get(obj.__name__) if obj.__name__ in registry.registered_names() and not force else None
        if present is obj:
            return obj
        if present is not None and _is_of(present, ours) and not _is_of(obj, "kdpl"):
            raise ImportError(
                f"{obj.__name__} of {obj.__module__} comes after KDPL's ({present.__module__}): the two would be mixed. "
                f"{order}, or give the class another name."
            )
        plain(obj, force=force)
        return obj

    register.refuses_wrong_order = True
    registry.register = register


def _is_of(obj: Any, package: str) -> bool:
    return f"{obj.__module__}.".startswith(f"{package}.")
