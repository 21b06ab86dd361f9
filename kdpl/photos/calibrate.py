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
ENOUGH = 20  # photos that it takes for one


def fit_temperature(logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the temperature by which the student's probabilities are closest to the teacher's, by cross-entropy.

    Args:
        logits: `(N, C)` of the student.
        teacher_logits: `(N, C)` of the teacher, at its own scale: that is the one it was trained with.
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
    """Where photos are rejected, and what that does on the photos it was found on."""

    value: float
    inside: int  # photos that the teacher takes for one of the classes
    outside: int
    kept: float  # share of the first that are kept
    rejected: float  # share of the second that are rejected


def fit_threshold(scores: Tensor, inside: Tensor) -> Threshold:
    """Return the threshold that keeps nearly all photos that the teacher takes for one of the classes.

    Args:
        scores: `(N)`, `inside_score` of the student.
        inside: `(N)` bool, what the teacher says.
    """
    base = scores[inside] if int(inside.sum()) >= ENOUGH else scores
    value = float(torch.quantile(base.double(), 1 - KEPT))
    kept = float((scores[inside] >= value).float().mean()) if inside.any() else 1.0
    rejected = float((scores[~inside] < value).float().mean()) if (~inside).any() else 0.0
    return Threshold(value, int(inside.sum()), int((~inside).sum()), kept, rejected)
