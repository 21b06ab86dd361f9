"""`--trainer KDPL_<Name>` for every trainer in the registry, a fork's too, without a line in its code."""

from typing import Any

from dassl.engine import TRAINER_REGISTRY

from kdpl.config.registries import let_forks_win
from kdpl.trainers.registry import PREFIX
from kdpl.trainers.wrapped import can_be_distilled, distilled


def offer_distilled() -> None:
    """Let `KDPL_<Name>` be in the registry for every trainer `<Name>` that can be distilled, now or later registered.

    The class is made when it is asked for. A name that KDPL or a fork has registered itself stays that one.
    """
    let_forks_win(TRAINER_REGISTRY, "kdpl.trainers", "import kdpl.trainers.baselines after the fork's own trainers")
    kind = type(TRAINER_REGISTRY)
    if getattr(kind, "offers_distilled", False):
        return

    class OffersDistilled(kind):
        offers_distilled = True

        def registered_names(self) -> list[str]:
            present = self.present_names()
            made = [f"{PREFIX}{name}" for name in present if can_be_distilled(super(OffersDistilled, self).get(name))]
            return [*present, *(name for name in made if name not in present)]

        def get(self, name: str) -> Any:
            wrapped = name.removeprefix(PREFIX)
            if name not in self.present_names() and name in self.registered_names():
                return distilled(super().get(wrapped))
            return super().get(name)

    OffersDistilled.__name__ = OffersDistilled.__qualname__ = kind.__name__
    TRAINER_REGISTRY.__class__ = OffersDistilled
