"""Did it help? What was learned beside what needs no photo, by agreement with the teacher on held-out photos, in words.

No label is needed: the measure is how often the likeliest name is the teacher's, and the divergence of the probabilities. What
is used is chosen by some held-out photos and reported on others, so that the choice does not flatter it.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from kdpl.common.messages import signed
from kdpl.photos.labels import CHOSEN_BY, REPORTED

WIDTH = 120  # of printed text
ONE_NAME = 0.9  # of the photos: the teacher gives nearly all the same name
LEAST_INFORMATION = 0.25  # nats that a photo tells about the name, of the teacher's answers
LEAST_INSIDE = 0.15  # of the photos, that the teacher takes for one of the names


@dataclass(frozen=True)
class Measured:
    """How something agrees with the teacher on some photos."""

    logits: Tensor  # (N, C)
    agrees: Tensor  # (N), 1.0 if the likeliest name is the teacher's
    divergence: float

    @property
    def agreement(self) -> float:
        return 100 * float(self.agrees.mean())

    @property
    def error(self) -> float:
        """Twice the standard error of the agreement, in percentage points."""
        p = float(self.agrees.mean())
        return 200 * (p * (1 - p) / len(self.agrees)) ** 0.5


def measured(logits: Tensor, teacher: Tensor) -> Measured:
    """Compare logits `(N, C)` with the teacher's probabilities."""
    p, q = teacher.clamp_min(1e-30).log(), logits.log_softmax(1)
    both = [F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in ((q, p), (p, q))]
    return Measured(logits, (logits.argmax(1) == teacher.argmax(1)).float(), float(sum(both)) / 2)


@dataclass(frozen=True)
class Row:
    """Something that is compared."""

    label: str
    sentences: list[str]  # that it consists of
    learned: str  # "head", or the name of a learner; empty: it needs no photo
    on: dict[str, Measured]  # by CHOSEN_BY and REPORTED


@dataclass(frozen=True)
class Comparison:
    """All rows, the default sentence first, and the one that is used."""

    rows: list[Row]
    used: Row
    misfit: str  # why the names do not fit the photos; empty if they do
    verdict: str

    def table(self) -> list[dict[str, Any]]:
        """Return the rows as the bundle and its card have them."""
        found = []
        for row in self.rows:
            on = row.on[REPORTED]
            figures = {"agreement": on.agreement, "error": on.error, "divergence": on.divergence}
            figures["to choose"] = row.on[CHOSEN_BY].agreement
            rounded = {name: round(value, 6) for name, value in figures.items()}
            found.append({"prompts": row.label, **rounded, "used": row is self.used})
        return found

    def show(self) -> str:
        """Return table and verdict as they are printed."""
        rows = []
        for row in self.rows:
            on, used = row.on[REPORTED], "used" if row is self.used else ""
            agreement = f"{on.agreement:.1f} ± {on.error:.1f}"
            rows.append([used, row.label, agreement, f"{on.divergence:.3f}", f"{row.on[CHOSEN_BY].agreement:.1f}"])
        reported, chosen = (len(self.used.on[part].agrees) for part in (REPORTED, CHOSEN_BY))
        about = f"Did it help? Agreement with the teacher on {reported:,} held-out photos; {chosen:,} others choose the best"
        table = tabulate(rows, ["", "", "same name (%)", "divergence", "to choose (%)"], disable_numparse=True)
        return "\n".join(["", about, "", table, "", paragraph(self.verdict)])


def paragraph(text: str) -> str:
    """Return a text in lines of `WIDTH`."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def misfit(teacher: Tensor, inside: float, names: int) -> str:
    """Return why names do not fit photos, by the teacher's probabilities `(N, C)`; empty if they may.

    Its answers carry information about the photos if they differ from photo to photo and are sure: H(mean p) - mean H(p).

    Args:
        inside: the share of photos that the teacher takes for one of the names rather than for others of a vocabulary.
    """
    share = float(F.one_hot(teacher.argmax(1), names).float().mean(0).max())
    if share >= ONE_NAME and names > 1:
        return f"the teacher gives one name to {share:.0%} of them"
    told = _entropy(teacher.mean(0)) - float(-(teacher * teacher.clamp_min(1e-12).log()).sum(1).mean())
    if told < LEAST_INFORMATION * min(1.0, log(names)):
        return f"the teacher's answers tell {told:.2f} nats about a photo, of {log(names):.2f} for sure answers of all names"
    if inside < LEAST_INSIDE:
        return f"the teacher takes {inside:.0%} of them for one of the names rather than for other names of the vocabulary"
    return ""


def _entropy(p: Tensor) -> float:
    return float(-(p * p.clamp_min(1e-12).log()).sum())


def compare(rows: Sequence[Row], teacher: Tensor, inside: float, names: int) -> Comparison:
    """Choose the best row by the photos for that, and say in words what it gains on the others over all that needs no photo."""
    usable = [row for row in rows if row.learned or row.sentences]
    used = max(usable, key=lambda row: (row.on[CHOSEN_BY].agreement, -row.on[CHOSEN_BY].divergence))
    reason = misfit(teacher, inside, names)
    return Comparison(list(rows), used, reason, verdict(rows, used, reason))


def verdict(rows: Sequence[Row], used: Row, reason: str) -> str:
    """Return in words what is used, what that gains over the best of what needs no photo, and whether it means anything."""
    plain, learned = [[row for row in rows if bool(row.learned) == kind] for kind in (False, True)]
    best = max(plain, key=lambda row: row.on[REPORTED].agreement)
    shown = used if used.learned else max(learned, key=lambda row: row.on[CHOSEN_BY].agreement)
    before, after = best.on[REPORTED], shown.on[REPORTED]
    gap, n = after.agrees - before.agrees, len(after.agrees)
    mean, error = 100 * float(gap.mean()), 200 * float(gap.std(unbiased=False)) / n**0.5
    if reason:
        return (
            f"The names do not fit these photos: {reason}. That the {shown.label} agrees with it on {after.agreement:.1f} % of "
            f"{n:,} held-out photos, and {best.label} on {before.agreement:.1f} %, says nothing then. Use other names (kdpl "
            "names PHOTOS proposes some), or other photos."
        )
    change = f"agreement {before.agreement:.1f} -> {after.agreement:.1f} % ({signed(mean, 1)} ± {error:.1f} points)"
    against = f"on {n:,} held-out photos, against the best of what needs no photo, {best.label}."
    what = "sentence" if len(used.sentences) == 1 else "mean of sentences"
    if used.learned:
        words = f"Used: {used.label}, {change} {against}"
    else:
        words = f"Used: the {what}, {used.label}; nothing learned agrees better with the teacher. With the {shown.label}: "
        words += f"{change} {against}"
    if abs(mean) <= error:
        words += " That is within the sampling error: on these photos the two are as good as each other."
    return f"{words} Agreement is not accuracy: the teacher errs, too."
