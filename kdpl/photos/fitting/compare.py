"""Did learning help? What was learned and hand-written sentences, compared by agreement with the teacher on held-out photos.

No label is needed: the measure is how often the likeliest name is the teacher's, and the divergence of the probabilities. The
best of all is chosen by some held-out photos and reported on others, so that the choice does not flatter it; the best single
sentence is chosen by photos of the training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import Clip, similarity_logits
from kdpl.common.messages import signed
from kdpl.photos.labels import CHOSEN_BY, REPORTED
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import BY_DATASET, DEFAULT, fill, imagenet_templates

MOST_TEXTS = 4_000  # sentences times names that are encoded; of more the first templates are taken
LEAST_TEMPLATES = 10


@dataclass
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


@dataclass
class Row:
    """Something that is compared: sentences, or what was learned."""

    label: str
    sentences: list[str]
    learned: str  # the key of the candidate; empty: sentences
    on: dict[str, Measured]  # by CHOSEN_BY and REPORTED


@dataclass
class Comparison:
    """All rows, the default sentence first, and the one that is used."""

    rows: list[Row]
    kept: Row
    verdict: str

    def table(self) -> list[dict[str, Any]]:
        found = []
        for row in self.rows:
            on = row.on[REPORTED]
            figures = {"agreement": on.agreement, "error": on.error, "divergence": on.divergence}
            figures["to choose"] = row.on[CHOSEN_BY].agreement
            rounded = {name: round(value, 6) for name, value in figures.items()}
            found.append({"prompts": row.label, **rounded, "used": row is self.kept})
        return found


def measured(logits: Tensor, teacher: Tensor) -> Measured:
    """Compare logits `(N, C)` with the teacher's."""
    p, q = teacher.log_softmax(1), logits.log_softmax(1)
    both = [F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in ((q, p), (p, q))]
    return Measured(logits, (logits.argmax(1) == teacher.argmax(1)).float(), float(sum(both)) / 2)


def sentence_rows(
    clip: Clip,
    names: Sequence[str],
    default: str,
    own: Sequence[str],
    photos: Mapping[str, tuple[Tensor, Tensor]],
    train: tuple[Tensor, Tensor],
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Return the rows of the default sentence, the user's own, the best one and the mean of all.

    Args:
        photos: by part the frozen student's features `(N, d)` and the teacher's logits `(N, C)`.
        train: the same of photos of the training, by which the best sentence is chosen.
        progress: called with how many sentences are encoded, of how many.
    """
    known = list(dict.fromkeys([default, DEFAULT, *BY_DATASET.values(), *imagenet_templates()]))
    templates = known[: max(LEAST_TEMPLATES, MOST_TEXTS // len(names))]
    wanted, texts = list(dict.fromkeys([*templates, *own])), {}
    for sentence in wanted:
        with torch.no_grad(), clip.autocast(frozen=True):
            texts[sentence] = sentence_features(clip, fill(sentence, list(names)))
        progress(len(texts), len(wanted))
    features, teacher = train
    likeliest = teacher.argmax(1)

    def logits(text: Tensor, frozen: Tensor) -> Tensor:
        return similarity_logits(clip.logit_scale, frozen.to(clip.device), text).cpu()

    def row(label: str, sentences: list[str], text: Tensor) -> Row:
        return Row(label, sentences, "", {part: measured(logits(text, f), t) for part, (f, t) in photos.items()})

    on_train = {s: float((logits(text, features).argmax(1) == likeliest).float().mean()) for s, text in texts.items()}
    best = max(on_train, key=on_train.get)
    rows = [row(f'"{default}"', [default], texts[default])]
    rows += [row(f'"{s}" (yours)', [s], texts[s]) for s in own if s != default]
    if best not in (default, *own):
        rows.append(row(f'"{best}" (best of {len(texts)} sentences on the training photos)', [best], texts[best]))
    mean = F.normalize(torch.stack([texts[t] for t in templates]).mean(0), dim=-1)
    rows.append(row(f"mean of {len(templates)} sentences", templates, mean))
    return rows


def compare(rows: Sequence[Row]) -> Comparison:
    """Choose the best row by the photos for that, and say in words what it gains over the first on the others."""
    kept = max(rows, key=lambda row: (row.on[CHOSEN_BY].agreement, -row.on[CHOSEN_BY].divergence))
    return Comparison(list(rows), kept, verdict(rows, kept))


def verdict(rows: Sequence[Row], kept: Row) -> str:
    """Return in words what is used, what that gains over the default sentence, and whether it means anything."""
    default, learned = rows[0], [row for row in rows if row.learned]
    shown = kept
    if kept is default:
        shown = max(learned, key=lambda row: row.on[CHOSEN_BY].agreement) if learned else default
    before, after = default.on[REPORTED], shown.on[REPORTED]
    gap, n = after.agrees - before.agrees, len(after.agrees)
    mean, error = 100 * float(gap.mean()), 200 * float(gap.std(unbiased=False)) / n**0.5
    change = f"agreement {before.agreement:.1f} -> {after.agreement:.1f} % ({signed(mean, 1)} ± {error:.1f} points)"
    where = f"on {n:,} held-out photos"
    if kept is default:
        words = f"The sentence {kept.label} is used: nothing else agrees better with the teacher."
        if learned:
            words += f" With {shown.label}: {change} {where}."
    elif kept.learned:
        words = f"{kept.label[0].upper()}{kept.label[1:]} are used: {change} {where}, against {default.label}."
    else:
        what = "mean of sentences" if len(kept.sentences) > 1 else f"sentence {kept.label}"
        words = f"The {what} is used, nothing that was learned: {change} {where}, against {default.label}."
    if shown is not default and abs(mean) <= error:
        words += " That is within the sampling error: on these photos the two are as good as each other."
    return f"{words} Agreement is not accuracy: the teacher errs, too."
