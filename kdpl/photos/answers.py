"""What a pile of photos teaches about class names: a head in closed form, whether it helps, and photos that are none of them.

`refit` reads no photo and no file, and draws nothing at random but the held-out photos, by a seed. No label is needed to
compare: the measure is how often the likeliest name is the teacher's, and the divergence of the probabilities. What is used is
chosen by some held-out photos and reported on others, so that the choice does not flatter it.
"""

import random
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from kdpl.bundle import Bundle, Decision, inside_score
from kdpl.common.messages import signed
from kdpl.photos.pile import Pile, Words
from kdpl.students.kernel_head import KernelHead, Solved, agree, fit_factor, solve
from kdpl.text.templates import BY_DATASET, DEFAULT

SHARE_REPORTED = (0.2, 20, 400)  # photos that the comparison is reported on: share, at least (or a third of all), at most
SHARE_CHOSEN_BY = (0.1, 10, 200)  # others, by which is chosen
SENTENCE_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)  # of a sentence's logits, added to the scores of the head
WITHOUT_PHOTO = 0.5  # a name whose answers over all photos sum to less has no photo
TEMPLATES = (  # those of the data sets, and the seven that the authors of CLIP found to do as well as their eighty for ImageNet
    *dict.fromkeys([DEFAULT, *BY_DATASET.values()]), "itap of a {}.", "a bad photo of the {}.", "a origami {}.",
    "a photo of the large {}.", "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
HEAD = "head on the photos"
DOUBTFUL = 4  # photos that a person is asked to look at

ONE_NAME = 0.9  # of the photos: the teacher gives nearly all the same name
LEAST_INFORMATION = 0.25  # nats that a photo tells about the name, of the teacher's answers
LEAST_INSIDE = 0.15  # of the photos, that the teacher takes for one of the names
WIDTH = 120  # of printed text

KEPT = 0.95  # of the photos that the teacher takes for one of the classes, by the threshold
ENOUGH_INSIDE = 5  # photos that it takes for one, to fit by
ENOUGH = 20  # others, to measure by
GAIN = 0.25  # share of the others that are rejected, beyond that of the ones inside: with less it does not separate
MOST = 1000  # photos to fit by
SAME = 0.999  # cosine of a class name and a name of the background that is the same

Logits = Callable[[Tensor], Tensor]  # (n, C) of the student's unit features (n, d)


class Parts(NamedTuple):
    """Rows of a pile: what is learned from, what chooses, and what the comparison is reported on."""

    train: list[int]
    chosen_by: list[int]
    reported: list[int]


def split(photos: Sequence[str], labelled: Collection[str], seed: int = 1) -> Parts:
    """Return the parts of photos; those with a label are learned from and never held out."""
    free = [i for i, photo in enumerate(photos) if photo not in labelled]
    random.Random(seed).shuffle(free)

    def count(share: float, least: int, most: int, divisor: int) -> int:
        return min(most, max(round(share * len(free)), min(least, len(free) // divisor), 1))

    reported = count(*SHARE_REPORTED, 3)
    held = reported + count(*SHARE_CHOSEN_BY, 6)
    train = [i for i, photo in enumerate(photos) if photo in labelled] + free[held:]
    return Parts(sorted(train), free[reported:held], free[:reported])


# -------------------------------------------------------------------------------------------------------------- comparison


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
    learned: bool  # from the photos
    chosen_by: Measured
    reported: Measured


@dataclass(frozen=True)
class Fitted:
    """What a pile has taught about names."""

    names: list[str]
    solved: Solved
    factor: float  # probabilities are softmax(factor scores)
    teacher: Tensor  # (N, C), its own probabilities
    inside: Tensor  # (N) bool, photos that it takes for one of the names
    others: Tensor  # (B) bool, names of the background that are none of the names
    rows: list[Row]  # what is compared, the default sentence first
    used: Row  # the best by the photos for that
    verdict: str
    parts: Parts
    without_photo: list[str]  # names: the sentence alone speaks for them
    doubtful: list[tuple[str, str, str]]  # paths of photos, each with the two likeliest names

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits `(n, C)` of unit features `(n, d)` of the student."""
        return self.factor * self.solved.scores(features)

    def comparison(self) -> dict[str, Any]:
        """Return the comparison as the bundle and its card have it."""
        rows = []
        for row in self.rows:
            figures = {"agreement": row.reported.agreement, "error": row.reported.error, "divergence": row.reported.divergence}
            figures["to choose"] = row.chosen_by.agreement
            rounded = {name: round(value, 6) for name, value in figures.items()}
            rows.append({"prompts": row.label, **rounded, "used": row is self.used})
        about = {"photos": len(self.parts.reported), "rows": rows, "verdict": self.verdict}
        return {**about, "without photo": self.without_photo}

    def words(self) -> str:
        """Return all that a person should know, as it is printed."""
        cells = [
            [
                "used" if row["used"] else "", row["prompts"], f"{row['agreement']:.1f} ± {row['error']:.1f}",
                f"{row['divergence']:.3f}", f"{row['to choose']:.1f}",
            ]
            for row in self.comparison()["rows"]
        ]  # fmt: skip
        reported, chosen = len(self.parts.reported), len(self.parts.chosen_by)
        about = f"Did it help? Agreement with the teacher on {reported:,} held-out photos; {chosen:,} others choose the best"
        table = tabulate(cells, ["", "", "same name (%)", "divergence", "to choose (%)"], disable_numparse=True)
        lines = ["", about, "", table, "", paragraph(self.verdict)]
        if self.used.label == HEAD:
            lines += ["", paragraph(f"The head was fitted once more, to all {len(self.teacher):,} photos.")]
        if names := self.without_photo:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            about = f"No photo seems to show {len(names)} of the names, for which the sentence speaks: {shown}."
            lines.append(paragraph(about))
        return "\n".join(lines)


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
    if share >= ONE_NAME:
        return f"the teacher gives one name to {share:.0%} of them"

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp_min(1e-12).log()).sum(-1)

    nats = float(entropy(teacher.mean(0))) - float(entropy(teacher).mean())
    if nats < LEAST_INFORMATION * min(1.0, log(names)):
        return f"the teacher's answers tell {nats:.2f} nats about a photo, of {log(names):.2f} for sure answers of all names"
    if inside < LEAST_INSIDE:
        return f"the teacher takes {inside:.0%} of them for one of the names rather than for other names of the vocabulary"
    return ""


def choose(rows: Sequence[Row]) -> Row:
    """Return the best row by the photos for that; to give every photo one name is no choice."""
    usable = [row for row in rows if row.learned or row.sentences]
    return max(usable, key=lambda row: (row.chosen_by.agreement, -row.chosen_by.divergence))


def verdict(rows: Sequence[Row], used: Row, reason: str) -> str:
    """Return in words what is used, what that gains over the best of what needs no photo, and whether it means anything."""
    best = max((row for row in rows if not row.learned), key=lambda row: row.reported.agreement)
    shown = used if used.learned else max((row for row in rows if row.learned), key=lambda row: row.chosen_by.agreement)
    before, after = best.reported, shown.reported
    gap, n = after.agrees - before.agrees, len(after.agrees)
    mean, error = 100 * float(gap.mean()), 200 * float(gap.std(unbiased=False)) / n**0.5
    if reason:
        what = f"The names do not fit these photos: {reason}. How often the head agrees with it says nothing then"
        return f"{what}: use other names (kdpl names PHOTOS proposes some), or other photos."
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


# -------------------------------------------------------------------------------------------------------------------- head


def refit(
    pile: Pile,
    words: Words,
    names: Sequence[str],
    labels: Mapping[str, str] | None = None,
    seed: int = 1,
    others: Mapping[str, Logits] | None = None,
) -> Fitted:
    """Return the head that the photos of a pile give for names, from their features alone.

    Args:
        pile: of different photos, at least four, three of them without a label.
        labels: the classes that are known, by path.
        others: what was trained on the same parts, by how it is called, to compare with.
    """
    names, labels = list(names), {path: name for path, name in (labels or {}).items() if path in set(pile.paths)}
    student, seen = pile.unit()
    scales = pile.facts["student_scale"], pile.facts["teacher_scale"]
    taught = words.of_teacher(names)  # (C, e)
    log_p = (scales[1] * seen @ taught.T).log_softmax(1)  # (N, C)
    theirs, fixed = log_p.exp(), torch.tensor([path in labels for path in pile.paths])
    known = [names.index(labels[path]) for path in pile.paths if path in labels]
    log_p[fixed] = F.one_hot(torch.tensor(known, dtype=torch.long), len(names)).float().log()
    parts = split(pile.paths, labels, seed)

    def answers(rows: Sequence[int] | slice) -> Tensor:
        return agree(seen[rows], log_p[rows], fixed=fixed[rows])

    every = answers(slice(None))
    without = [name for name, mass in zip(names, every.sum(0).tolist(), strict=True) if mass < WITHOUT_PHOTO]
    train, chosen = parts.train, parts.chosen_by
    first = solve(student[train], answers(train))
    text = scales[0] * words.of_student(names, words.template)  # (C, d)
    share = sentence_share(first.scores(student[chosen]), student[chosen] @ text.T, theirs[chosen].argmax(1), bool(without))
    linear = share * text if share else None
    first = replace(first, linear=linear)
    held = chosen + parts.reported
    factor = fit_factor(first.scores(student[held]), theirs[held])

    def row(label: str, sentences: list[str], learned: bool, logits: Logits) -> Row:
        on = [measured(logits(student[some]), theirs[some]) for some in (chosen, parts.reported)]
        return Row(label, sentences, learned, *on)

    plain = _plain(words, names, scales[0], student[train], theirs[train])
    rows = [row(label, sentences, False, logits) for label, sentences, logits in plain]
    rows.append(row(HEAD, [], True, lambda features: factor * first.scores(features)))
    rows += [row(label, [], True, logits) for label, logits in (others or {}).items()]
    used = choose(rows)
    other, inside = inside_names(pile, scales[1], seen, taught)
    words_of_it = verdict(rows, used, misfit(theirs, float(inside.float().mean()), len(names)))

    solved = replace(solve(student, every, first.gamma, first.ridge), linear=linear)
    sure = (torch.cat([used.chosen_by.logits, used.reported.logits]).softmax(1) + theirs[held]) / 2
    doubtful = _doubtful([pile.paths[i] for i in held], names, sure)
    return Fitted(names, solved, factor, theirs, inside, other, rows, used, words_of_it, parts, without, doubtful)


def sentence_share(head: Tensor, sentence: Tensor, likeliest: Tensor, needed: bool) -> float:
    """Return how much of the sentence's logits `(n, C)` is added to the scores of the head `(n, C)`, by held-out agreement.

    More is added if more than the standard error of the difference is gained by it; some is if it is `needed`, for names
    without a photo.
    """
    shares = SENTENCE_SHARES[1:] if needed else SENTENCE_SHARES
    agrees = [((head + share * sentence).argmax(1) == likeliest).float() for share in shares]
    best = 0
    for i in range(1, len(shares)):
        gap = agrees[i] - agrees[best]
        if float(gap.mean()) > float(gap.std(unbiased=False)) / len(gap) ** 0.5:
            best = i
    return shares[best]


def _plain(words: Words, names: list[str], scale: float, train: Tensor, teacher: Tensor) -> list[tuple[str, list[str], Logits]]:
    """Return what needs no photo: the default sentence, the best one, the mean of all, the most frequent name.

    Each has a label, the sentences it consists of, and logits. The best sentence is chosen by the photos of the training, of
    which `train` are features and `teacher` probabilities.
    """
    templates = list(dict.fromkeys([words.template, *TEMPLATES]))
    texts = {sentence: words.of_student(names, sentence) for sentence in templates}
    likeliest = teacher.argmax(1)

    def by(text: Tensor) -> Logits:
        return lambda features: scale * features @ text.T

    on_train = {s: int(((train @ text.T).argmax(1) == likeliest).sum()) for s, text in texts.items()}
    best = max(on_train, key=on_train.get)
    rows = [(f'"{words.template}"', [words.template], by(texts[words.template]))]
    if best != words.template:
        rows.append((f'"{best}" (best of {len(texts)} sentences on the training photos)', [best], by(texts[best])))
    mean = F.normalize(torch.stack([texts[t] for t in templates]).mean(0), dim=-1)
    rows.append((f"mean of {len(templates)} sentences", templates, by(mean)))
    often = teacher.mean(0).clamp_min(1e-6).log()
    name = names[int(torch.bincount(likeliest, minlength=len(names)).argmax())]
    always = torch.where(torch.arange(len(names)) == names.index(name), often.max() + 1e-3, often)
    constant = f"always '{name}', the most frequent name"
    return [*rows, (constant, [], lambda features: always.expand(len(features), -1))]


def inside_names(pile: Pile, scale: float, seen: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Return which names of the background are none of the names `(B)`, and which photos the teacher takes for a name `(N)`.

    Args:
        scale: of the teacher's logits.
        seen, taught: its unit features of the photos `(N, e)` and of the names `(C, e)`.
    """
    background = F.normalize(pile.teacher_background.float(), dim=-1)
    other = (background @ taught.T).max(1).values < SAME
    return other, inside_score(scale * seen @ taught.T, scale * seen @ background[other].T) > 0


def _doubtful(paths: Sequence[str], names: Sequence[str], p: Tensor) -> list[tuple[str, str, str]]:
    """Return photos whose probabilities `(n, C)` are least sure, of different names, with the two likeliest ones."""
    top, found = p.topk(2, dim=1), {}
    for i in (top.values[:, 0] - top.values[:, 1]).argsort(stable=True).tolist():
        first, second = top.indices[i].tolist()
        if first not in found and len(found) < DOUBTFUL:
            found[first] = (paths[i], names[first], names[second])
    return list(found.values())


def head_bundle(words: Words, names: Sequence[str], solved: Solved, factor: float, photos: int, decision: Decision) -> Bundle:
    """Return the bundle of a head, whose logits are its scores of the names times the factor."""
    clip = words.student
    return Bundle(
        parameters=KernelHead.parameters_of(solved, factor),
        variant=KernelHead.__name__,
        trainer=f"KDPL_{KernelHead.__name__}",
        backbone=words.student_name,
        backbone_sha256=clip.weights_digest,
        options={**KernelHead.defaults, "PREC": words.precision},
        preprocessing=clip.preprocessing,
        dataset=f"{photos:,} photos",
        template=words.template,
        classnames=list(names),
        teacher=words.teacher_name,
        class_agnostic=False,
        epoch=1,
        results=[],
        config="",
        decision=decision,
        backbone_design=clip.design,
    )


# ----------------------------------------------------------------------------------------------------------- none of these


def fit_threshold(scores: Tensor, inside: Tensor, new_scores: Tensor, new_inside: Tensor) -> tuple[float | None, str]:
    """Return the threshold that keeps nearly all photos that the teacher takes for one of the classes, and a line about it.

    None: it does not separate them from others.

    Args:
        scores: `(N)`, `inside_score` of the student.
        inside: `(N)` bool, what the teacher says.
        new_scores, new_inside: the same of other photos, on which it is measured.
    """
    base = scores[inside] if inside.any() else scores
    value = float(torch.quantile(base.double(), 1 - KEPT))
    kept = float((new_scores[new_inside] >= value).float().mean()) if new_inside.any() else 1.0
    rejected = float((new_scores[~new_inside] < value).float().mean()) if (~new_inside).any() else 0.0
    inner, outer = int(new_inside.sum()), int((~new_inside).sum())
    line = (
        f"{kept:.0%} of {inner:,} held-out photos that the teacher takes for one of the names, and rejects {rejected:.0%} of "
        f"the {outer:,} others"
    )
    if int(inside.sum()) >= ENOUGH_INSIDE and (outer < ENOUGH or kept + rejected - 1 >= GAIN):
        return value, f"None of these: with --reject, predict keeps {line}."
    return None, f"None of these: --reject is refused, since the student does not separate them: it keeps {line}."


def decide(pile: Pile, fitted: Fitted, logits: Logits) -> tuple[Decision, str]:
    """Return the decision with threshold and background, without them if nothing separates, and a line about it."""
    student, scale = pile.unit()[0], pile.facts["student_scale"]
    others = F.normalize(pile.student_background.float(), dim=-1)[fitted.others]
    some = [rows[:MOST] for rows in fitted.parts]
    scores = [inside_score(logits(student[rows]), scale * student[rows] @ others.T) for rows in some]
    inside = [fitted.inside[rows] for rows in some]
    threshold, line = fit_threshold(torch.cat(scores[:2]), torch.cat(inside[:2]), scores[2], inside[2])
    background = [name for name, other in zip(pile.background, fitted.others.tolist(), strict=True) if other]
    return Decision() if threshold is None else Decision(background=background, threshold=threshold), line
