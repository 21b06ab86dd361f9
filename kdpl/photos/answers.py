"""What a pile of photos teaches about class names: a head in closed form, how it compares with sentences, and doubtful photos.

`refit` reads no photo and no file, and draws nothing at random but the held-out photos, by a seed.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip, effective_precision
from kdpl.clip.names import EMBEDDED
from kdpl.photos.labels import CHOSEN_BY, REPORTED, TRAIN
from kdpl.photos.models import device_type
from kdpl.photos.pile import Pile
from kdpl.photos.reject import SAME
from kdpl.photos.verdict import Comparison, Row, compare, measured
from kdpl.students.kernel_head import Solved, agree, fit_factor, solve
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import BY_DATASET, DEFAULT, fill

SHARE_REPORTED = (0.2, 20, 400)  # photos that the comparison is reported on: share, at least (or a third of all), at most
SHARE_CHOSEN_BY = (0.1, 10, 200)  # others, by which is chosen
LEAST_DIFFERENT = 4  # photos: two to learn from, one to choose by and one to report on
SENTENCE_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)  # of a sentence's logits, added to the scores of the head
WITHOUT_PHOTO = 0.5  # a name whose answers over all photos sum to less has no photo
TEMPLATES = (  # those of the data sets, and the seven that the authors of CLIP found to do as well as their eighty for ImageNet
    *dict.fromkeys([DEFAULT, *BY_DATASET.values()]), "itap of a {}.", "a bad photo of the {}.", "a origami {}.",
    "a photo of the large {}.", "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
DOUBTFUL = 4  # photos that a person is asked to look at


class Words:
    """The text towers of a fit's CLIPs, and what they make of names: each is encoded once.

    Args:
        student_name, teacher_name: the CLIPs, which are loaded when something new is to be encoded.
        template: the teacher's sentence.
    """

    def __init__(self, student_name: str, teacher_name: str, template: str):
        self.student_name, self.teacher_name, self.template = student_name, teacher_name, template
        self._known: dict[tuple[str, str, str], Tensor] = {}

    @property
    def precision(self) -> str:
        return "fp32" if self.student_name in EMBEDDED else "fp16"

    @cached_property
    def student(self) -> Clip:
        learned, frozen = (effective_precision(self.precision, device_type(), each) for each in (False, True))
        return load_clip(self.student_name, learned, device_type(), frozen)

    @cached_property
    def teacher(self) -> Clip:
        return load_clip(self.teacher_name, effective_precision(self.precision, device_type(), True), device_type())

    def of_student(self, names: Sequence[str], sentence: str) -> Tensor:
        """Return the student's unit text features `(C, d)` of names in a sentence, on the CPU."""
        return self._features("student", names, sentence)

    def of_teacher(self, names: Sequence[str]) -> Tensor:
        """Return the teacher's `(C, e)`, in its sentence."""
        return self._features("teacher", names, self.template)

    @torch.no_grad()
    def _features(self, which: str, names: Sequence[str], sentence: str) -> Tensor:
        if new := [name for name in names if (which, sentence, name) not in self._known]:
            clip = getattr(self, which)
            with clip.autocast(frozen=True):
                features = sentence_features(clip, fill(sentence, new)).cpu()
            self._known.update({(which, sentence, name): f for name, f in zip(new, features, strict=True)})
        return torch.stack([self._known[which, sentence, name] for name in names])


def split(photos: Sequence[str], labelled: Mapping[str, str], seed: int) -> dict[str, list[int]]:
    """Return the rows of the parts of photos; those with a label are learned from and never held out."""
    free = [i for i, photo in enumerate(photos) if photo not in labelled]
    random.Random(seed).shuffle(free)
    reported = _share(len(free), *SHARE_REPORTED, 3)
    held = reported + _share(len(free), *SHARE_CHOSEN_BY, 6)
    train = [i for i, photo in enumerate(photos) if photo in labelled] + free[held:]
    return {TRAIN: sorted(train), CHOSEN_BY: free[reported:held], REPORTED: free[:reported]}


def _share(count: int, share: float, least: int, most: int, divisor: int) -> int:
    return min(most, max(round(share * count), min(least, count // divisor), 1))


@dataclass(frozen=True)
class Fitted:
    """What a pile has taught about names."""

    names: list[str]
    solved: Solved
    factor: float  # probabilities are softmax(factor scores)
    probabilities: Tensor  # (N, C) of the pile's photos, by the head
    teacher: Tensor  # (N, C), its own probabilities
    comparison: Comparison
    parts: dict[str, list[int]]  # rows of the pile
    without_photo: list[str]  # names: the sentence alone speaks for them
    doubtful: list[tuple[str, str, str]]  # paths of photos, each with the two likeliest names

    def scores(self, features: Tensor) -> Tensor:
        return self.factor * self.solved.scores(features)


def refit(
    pile: Pile,
    words: Words,
    names: Sequence[str],
    labels: Mapping[str, str] | None = None,
    sentences: Sequence[str] = (),
    seed: int = 1,
    others: Sequence[Row] = (),
) -> Fitted:
    """Return the head that the photos of a pile give for names, from their features alone.

    Args:
        pile: of different photos.
        labels: the classes that are known, by path.
        sentences: to compare with, beside the teacher's and those of data sets.
        others: rows of learners that were trained on the same parts, to compare with.

    Raises:
        ValueError: the teacher cannot tell two names apart, or there are too few photos.
    """
    names, labels = list(names), {path: name for path, name in (labels or {}).items() if path in set(pile.paths)}
    if len(pile) - len(labels) < LEAST_DIFFERENT - 1 or len(pile) < LEAST_DIFFERENT:
        raise ValueError(
            f"There are {len(pile)} different photos, {len(labels)} of them with labels: expected at least {LEAST_DIFFERENT}, "
            f"and {LEAST_DIFFERENT - 1} without a label, on which the comparison is made."
        )
    student, seen = (F.normalize(features.float(), dim=-1) for features in (pile.student, pile.teacher))
    scales = pile.facts["student_scale"], pile.facts["teacher_scale"]
    log_p = (scales[1] * seen @ words.of_teacher(names).T).log_softmax(1)  # (N, C)
    theirs, fixed = log_p.exp(), torch.tensor([path in labels for path in pile.paths])
    known = [names.index(labels[path]) for path in pile.paths if path in labels]
    log_p[fixed] = F.one_hot(torch.tensor(known, dtype=torch.long), len(names)).float().log()
    parts = split(pile.paths, labels, seed)

    def answers(rows: Sequence[int] | slice) -> Tensor:
        return agree(seen[rows], log_p[rows], fixed=fixed[rows])

    every = answers(slice(None))
    without = [name for name, mass in zip(names, every.sum(0).tolist(), strict=True) if mass < WITHOUT_PHOTO]
    train = parts[TRAIN]
    first = solve(student[train], answers(train))
    text = scales[0] * words.of_student(names, words.template)  # (C, d)
    chosen = parts[CHOSEN_BY]
    share = _sentence_share(first.scores(student[chosen]), student[chosen] @ text.T, theirs[chosen].argmax(1), bool(without))
    linear = share * text if share else None
    first = replace(first, linear=linear)
    held = chosen + parts[REPORTED]
    factor = fit_factor(first.scores(student[held]), theirs[held])

    on = {part: (student[parts[part]], theirs[parts[part]]) for part in (CHOSEN_BY, REPORTED)}
    rows = _sentence_rows(words, names, sentences, scales[0], on, student[train], theirs[train])
    head = {part: measured(factor * first.scores(features), p) for part, (features, p) in on.items()}
    rows.append(Row("head on the photos", [], "head", head))
    comparison = compare([*rows, *others], theirs, _inside(pile, scales[1], seen, words.of_teacher(names)), len(names))

    solved = replace(solve(student, every, first.gamma, first.ridge), linear=linear)
    probabilities = (factor * solved.fitted(student, every)).softmax(1)
    doubtful = _doubtful(pile.paths, names, probabilities, theirs, fixed)
    return Fitted(names, solved, factor, probabilities, theirs, comparison, parts, without, doubtful)


def _sentence_share(head: Tensor, sentence: Tensor, likeliest: Tensor, needed: bool) -> float:
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


def _sentence_rows(
    words: Words,
    names: list[str],
    own: Sequence[str],
    scale: float,
    on: Mapping[str, tuple[Tensor, Tensor]],
    train: Tensor,
    teacher: Tensor,
) -> list[Row]:
    """Return what needs no photo: the default sentence, the user's own, the best one, the mean of all, the most frequent name.

    The best sentence is chosen by the photos of the training, of which `train` are features and `teacher` probabilities.
    """
    templates = list(dict.fromkeys([words.template, *TEMPLATES]))
    texts = {sentence: words.of_student(names, sentence) for sentence in dict.fromkeys([*templates, *own])}
    likeliest = teacher.argmax(1)

    def row(label: str, sentences: list[str], text: Tensor) -> Row:
        return Row(label, sentences, "", {part: measured(scale * f @ text.T, p) for part, (f, p) in on.items()})

    on_train = {s: int(((train @ text.T).argmax(1) == likeliest).sum()) for s, text in texts.items()}
    best = max(on_train, key=on_train.get)
    rows = [row(f'"{words.template}"', [words.template], texts[words.template])]
    rows += [row(f'"{s}" (yours)', [s], texts[s]) for s in own if s != words.template]
    if best not in (words.template, *own):
        rows.append(row(f'"{best}" (best of {len(texts)} sentences on the training photos)', [best], texts[best]))
    mean = F.normalize(torch.stack([texts[t] for t in templates]).mean(0), dim=-1)
    rows.append(row(f"mean of {len(templates)} sentences", templates, mean))
    often = teacher.mean(0).clamp_min(1e-6).log()
    name = names[int(torch.bincount(likeliest, minlength=len(names)).argmax())]
    always = torch.where(torch.arange(len(names)) == names.index(name), often.max() + 1e-3, often)
    constant = {part: measured(always.expand(len(p), -1), p) for part, (_, p) in on.items()}
    return [*rows, Row(f"always '{name}', the most frequent name", [], "", constant)]


def _inside(pile: Pile, scale: float, seen: Tensor, own: Tensor) -> float:
    """Return the share of photos that the teacher takes for one of the names rather than for others of the vocabulary."""
    texts = F.normalize(pile.teacher_background.float(), dim=-1)
    others = texts[(texts @ own.T).max(1).values < SAME]
    if not len(others):
        return 1.0
    return float(((scale * seen @ own.T).logsumexp(1) > (scale * seen @ others.T).logsumexp(1)).float().mean())


def _doubtful(
    paths: Sequence[str], names: Sequence[str], head: Tensor, teacher: Tensor, fixed: Tensor
) -> list[tuple[str, str, str]]:
    """Return photos on which head and teacher together are least sure, of different names, with the two likeliest ones."""
    top = ((head + teacher) / 2).topk(min(2, len(names)), dim=1)
    doubt = (top.values[:, 0] - top.values[:, -1] + 2.0 * fixed).tolist()
    found: dict[int, tuple[str, str, str]] = {}
    for i in sorted(range(len(paths)), key=lambda i: (doubt[i], i)):
        first, second = top.indices[i, 0].item(), top.indices[i, -1].item()
        if not fixed[i] and first not in found and len(found) < DOUBTFUL:
            found[first] = (paths[i], names[first], names[second])
    return list(found.values())
