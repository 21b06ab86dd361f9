"""Probabilities and rejection fitted to the teacher, without labels: a temperature, and a threshold against other names."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdpl.text.prompts import encode
from kdpl.text.vocabulary import load_vocabulary

BACKGROUND = 500  # names that are none of the classes, drawn evenly from the vocabulary
KEPT = 0.95  # of the photos that the teacher takes for one of the classes
ENOUGH_INSIDE = 10  # photos that it takes for one, to fit by
ENOUGH = 20  # others, to measure by
GAIN = 0.25  # share of the others that are rejected, beyond that of the ones inside: with less it does not separate


def fit_temperature(logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the temperature by which the student's probabilities are closest to the teacher's, by cross-entropy.

    Both logits are `(N, C)`; the teacher's at its own scale, which it was trained with.
    """
    target = teacher_logits.softmax(1)

    def loss(log_t: float) -> float:
        return float(-(target * (logits / math.exp(log_t)).log_softmax(1)).sum(1).mean())

    low, high = math.log(0.02), math.log(50.0)
    for _ in range(60):  # the cross-entropy is convex in the inverse temperature, so that it has one minimum
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)


def background_names(vocabulary: str, classnames: Sequence[str]) -> list[str]:
    """Return names that are none of the classes, spread over a vocabulary."""
    own = {tuple(encode(name.replace("_", " "))) for name in classnames}
    names = [name for name in load_vocabulary(vocabulary) if tuple(encode(name)) not in own]
    step = max(1, len(names) / BACKGROUND)
    return [names[int(i * step)] for i in range(min(BACKGROUND, len(names)))]


class Threshold(NamedTuple):
    """Where photos are rejected, and what that does on other photos than those it was fitted on."""

    value: float
    fitted: int  # photos that it was fitted on and that the teacher takes for one of the classes
    inside: int  # others that it takes for one
    outside: int  # others that it takes for none
    kept: float  # share of the second that are kept
    rejected: float  # share of the third that are rejected

    @property
    def reason(self) -> str:
        """Why photos cannot be rejected by it; empty if they can."""
        if self.fitted < ENOUGH_INSIDE:
            return f"the teacher takes {self.fitted:,} photos alone for one of the names, and {ENOUGH_INSIDE} are needed"
        if self.outside >= ENOUGH and self.kept + self.rejected - 1 < GAIN:
            return (
                f"it would keep {self.kept:.0%} of the {self.inside:,} held-out photos that the teacher takes for one of the "
                f"names, and {1 - self.rejected:.0%} of the {self.outside:,} others: the student does not separate them"
            )
        return ""

    @property
    def separates(self) -> bool:
        return not self.reason

    def words(self) -> str:
        """Return what --reject does."""
        if self.reason:
            return f"None of these: --reject is refused, because {self.reason}."
        others = f"and rejects {self.rejected:.0%} of the {self.outside:,} others"
        if self.outside < ENOUGH:
            others = f"what it rejects is not known: to the teacher {self.outside:,} of these photos are none of the names"
        return (
            f"None of these: with --reject, predict keeps {self.kept:.0%} of {self.inside:,} held-out photos that the teacher "
            f"takes for one of the names; {others}."
        )


def fit_threshold(scores: Tensor, inside: Tensor, new_scores: Tensor, new_inside: Tensor) -> Threshold:
    """Return the threshold that keeps nearly all photos that the teacher takes for one of the classes.

    Args:
        scores: `(N)`, `inside_score` of the student.
        inside: `(N)` bool, what the teacher says.
        new_scores, new_inside: the same of other photos, on which it is measured.
    """
    base = scores[inside] if inside.any() else scores
    value = float(torch.quantile(base.double(), 1 - KEPT))
    kept = float((new_scores[new_inside] >= value).float().mean()) if new_inside.any() else 1.0
    rejected = float((new_scores[~new_inside] < value).float().mean()) if (~new_inside).any() else 0.0
    return Threshold(value, int(inside.sum()), int(new_inside.sum()), int((~new_inside).sum()), kept, rejected)
