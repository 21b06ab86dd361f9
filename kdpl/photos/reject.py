"""Photos that are none of the names: how much more a photo is like the names than like others, and from where on it is none."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.bundle import Decision, inside_score
from kdpl.photos.labels import CHOSEN_BY, REPORTED, TRAIN
from kdpl.photos.pile import Pile

KEPT = 0.95  # of the photos that the teacher takes for one of the classes
ENOUGH_INSIDE = 5  # photos that it takes for one, to fit by
ENOUGH = 20  # others, to measure by
GAIN = 0.25  # share of the others that are rejected, beyond that of the ones inside: with less it does not separate
MOST = 1000  # photos to fit by
SAME = 0.999  # cosine of a class name and a name of the background that is the same


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

    def words(self) -> str:
        """Return what --reject of the other commands does."""
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


def decide(
    pile: Pile, teacher_texts: Tensor, parts: Mapping[str, Sequence[int]], own: Callable[[list[int]], Tensor]
) -> tuple[Decision, str]:
    """Return the decision with threshold and background, without them if nothing separates, and a line about it.

    Args:
        teacher_texts: `(C, e)` of the class names.
        own: returns the student's logits `(n, C)` of rows of the pile.
    """
    student, teacher, mine, theirs = (
        F.normalize(getattr(pile, name).float(), dim=-1)
        for name in ("student", "teacher", "student_background", "teacher_background")
    )
    other = (theirs @ teacher_texts.T).max(1).values < SAME
    scores, inside = {}, {}
    for part in (TRAIN, CHOSEN_BY, REPORTED):
        rows = list(parts[part])[:MOST]
        scores[part] = inside_score(own(rows), pile.facts["student_scale"] * student[rows] @ mine[other].T)
        logits = (pile.facts["teacher_scale"] * teacher[rows] @ texts.T for texts in (teacher_texts, theirs[other]))
        inside[part] = inside_score(*logits) > 0
    fitted = [torch.cat([values[TRAIN], values[CHOSEN_BY]]) for values in (scores, inside)]
    found = fit_threshold(*fitted, scores[REPORTED], inside[REPORTED])
    background = [name for name, kept in zip(pile.background, other.tolist(), strict=True) if kept]
    decision = Decision() if found.reason else Decision(background=background, threshold=found.value)
    return decision, found.words()
