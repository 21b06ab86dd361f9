"""What `kdpl fit` found out about using prompts: sentences that are better, a temperature, and a threshold for "none of these".

All of it is optional. It is recorded in the bundle under `decision`, which bundles of earlier versions do not have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdpl.common.class_names import REJECTED  # noqa: F401
from kdpl.common.messages import shorten


@dataclass(frozen=True)
class Decision:
    """How logits become an answer.

    Attributes:
        sentences: hand-written sentences with `{}` for the name, whose mean takes the place of the learned prompts; empty: the
            learned prompts are used.
        temperature: probabilities are the softmax of the logits divided by it; None: none was fitted.
        background: names that are none of the classes; an image that is more like them is rejected.
        threshold: of `inside_score`; images below it are rejected. None: none was calibrated.
        classnames: the names that temperature and threshold were fitted for.
    """

    sentences: list[str] = field(default_factory=list)
    temperature: float | None = None
    background: list[str] = field(default_factory=list)
    threshold: float | None = None
    classnames: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for what in ("sentences", "background", "classnames"):
            value = getattr(self, what)
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise ValueError(f"'{what}' is {shorten(value)}, expected a list of text")
        if wrong := [sentence for sentence in self.sentences if sentence.count("{}") != 1]:
            raise ValueError(f"the sentence {shorten(wrong[0])} does not hold one '{{}}'")
        for what, fits in (("temperature", lambda v: 1e-4 <= v <= 1e4), ("threshold", lambda v: abs(v) <= 1e6)):
            value = getattr(self, what)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (number and fits(value)):
                raise ValueError(f"'{what}' is {shorten(value)}, expected a finite number of a usual size")
        if self.threshold is not None and not self.background:
            raise ValueError("there is a threshold and no background to compare with")

    @classmethod
    def of(cls, content: Mapping[str, Any] | None) -> "Decision":
        """Return the decision that a bundle's metadata holds; None: the default one.

        Raises:
            ValueError: it holds something else.
        """
        if content is None:
            return cls()
        if not isinstance(content, Mapping):
            raise ValueError(f"it is {shorten(content)}")
        if unknown := [key for key in content if key not in cls.__dataclass_fields__]:
            raise ValueError(f"it has {', '.join(map(shorten, unknown[:3]))}")
        return cls(**content)

    def check_reject(self, classnames: Sequence[str]) -> None:
        """Refuse to reject images if there is no threshold for the class names.

        Raises:
            ValueError: there is none, or it was calibrated for other names.
        """
        if self.threshold is None:
            raise ValueError(
                "The prompts have no threshold to reject images by: `kdpl fit` calibrates one for variants whose text does not "
                "depend on the image, train.py does not. Leave `reject` (--reject) out, or fit again."
            )
        if sorted(self.classnames) != sorted(classnames):
            raise ValueError(
                "The threshold to reject images by was calibrated for other class names: use those of the fit, or fit again "
                "with these names (`kdpl fit`)."
            )


def inside_score(logits: Tensor, background: Tensor) -> Tensor:
    """Return how much more an image is like the class names than like other names: the difference of their energies `(B)`.

    It is the log of the odds that a softmax over both gives the class names.

    Args:
        logits: `(B, C)` over the class names.
        background: `(B, K)` over names that are none of the classes.
    """
    return torch.logsumexp(logits, -1) - torch.logsumexp(background, -1)
