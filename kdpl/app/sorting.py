"""How a pile of photos is sorted by names and labels: the head in closed form, fitted again after each change.

What does not depend on the names is computed once for a pile: neighbours, and the photos' coordinates among some landmarks, in
which a fit is one small system. Ten thousand photos and a hundred names take about a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.app.journal import Name
from kdpl.photos.answers import WITHOUT_PHOTO, inside_names, misfit, sentence_share
from kdpl.photos.pile import Pile, Words, vocabulary_for
from kdpl.students.kernel_head import (
    Solved,
    agree,
    choose_gamma,
    fit_factor,
    kernel,
    left_out,
    neighbours,
    photo_weights,
    spread_rows,
)
from kdpl.text.feature_cache import cached_text_features
from kdpl.text.vocabulary import load_vocabulary

NONE, UNLABELLED = -1, -2  # in place of the place of a name
LANDMARKS = 1_000
JITTER = 1e-5  # of the landmarks' kernel: with less, coefficients are so large that their rounding shows
GROUPS = 100  # more are too many to look through
SMALLEST = 2  # photos of a group
STEPS = 20
EXAMPLES = 20_000  # photos by which the centres of groups are found


@dataclass(frozen=True)
class Sorted:
    """How a pile is sorted; lists by photo."""

    best: list[int]  # place of the likeliest name; UNLABELLED: there are no names
    p: list[float]  # its probability
    margin: list[float]  # to the second
    verdict: str = ""
    fits: bool = True  # the names do, as far as can be said
    without: list[str] = field(default_factory=list)  # names without a photo to learn from
    solved: Solved | None = None
    factor: float = 1.0


class Basis:
    """What of a pile does not depend on the names."""

    def __init__(self, pile: Pile):
        self.student, self.teacher = pile.unit()  # (N, d), (N, e)
        self.near = neighbours(self.teacher)
        self.gamma = choose_gamma(self.student)
        self.centres = self.student[spread_rows(len(pile), LANDMARKS)]  # (M, d)
        own = kernel(self.centres, self.centres, self.gamma)
        own.diagonal().add_(JITTER)
        self.factor = torch.linalg.cholesky(own)  # L of K = L L^T, fp64
        parts = [kernel(self.centres, rows, self.gamma) for rows in self.student.split(2000)]
        solved = [torch.linalg.solve_triangular(self.factor, part, upper=False).float() for part in parts]
        self.coordinates = torch.cat(solved, dim=1).T.contiguous()  # (N, M), whose products are the kernel's
        self.ridge: float | None = None

    def solve(self, answers: Tensor) -> tuple[Solved, Tensor]:
        """Return the kernel ridge regression to answers `(N, C)`, and its scores `(N, C)`."""
        mean, weights = answers.mean(0), photo_weights(answers.double()).float()
        weighted = self.coordinates * weights[:, None]
        system = weighted.T @ self.coordinates  # (M, M)
        system.diagonal().add_(self.ridge * len(answers))
        b = torch.cholesky_solve((weighted.T @ (answers - mean)).double(), torch.linalg.cholesky(system.double()))  # (M, C)
        a = torch.linalg.solve_triangular(self.factor.T, b, upper=True).float()
        return Solved(self.centres, a, mean, self.gamma, self.ridge), self.coordinates @ b.float() + mean


class Sorter:
    """The pile and the text towers, and what they make of names.

    Args:
        words: the text towers.
        pile: of different photos; it may grow.
    """

    def __init__(self, words: Words, pile: Pile):
        self.words, self.pile = words, pile
        self._basis: tuple[list[str], Basis] = [], None

    @property
    def basis(self) -> Basis:
        if self._basis[0] != self.pile.contents:
            self._basis = self.pile.contents, Basis(self.pile)
        return self._basis[1]

    @torch.no_grad()
    def sort(self, names: Sequence[Name], labels: Mapping[int, int]) -> Sorted:
        """Return how the pile is sorted.

        Args:
            names: each with the words that were merged into it, whose probabilities add up.
            labels: by photo, the place of a name, or NONE.
        """
        n, count, facts = len(self.pile), len(names), self.pile.facts
        if not n or count < 2:
            alone = "One name alone: every photo is it. Add another." if count else ""
            return Sorted([0 if count else UNLABELLED] * n, [float(count)] * n, [float(count)] * n, alone)
        basis, first = self.basis, [each.name for each in names]
        texts = self.words.of_teacher([word for each in names for word in each.words])
        place = torch.tensor([i for i, each in enumerate(names) for _ in each.words])
        by_word = (facts["teacher_scale"] * basis.teacher @ texts.T).softmax(1)
        theirs = torch.zeros(n, count).index_add_(1, place, by_word)  # (N, C)
        given = theirs.clone()
        for photo, label in labels.items():
            given[photo] = F.one_hot(torch.tensor(label), count) if label >= 0 else 1 / count
        fixed = torch.zeros(n, dtype=torch.bool).index_fill_(0, torch.tensor(list(labels), dtype=torch.long), True)
        answers = agree(basis.teacher, given.clamp_min(1e-30).log(), fixed=fixed, near=basis.near)
        basis.ridge, left, alone = left_out(basis.student, answers, basis.gamma, basis.ridge)  # chosen once
        solved, scores = basis.solve(answers)
        text = facts["student_scale"] * self.words.of_student(first, self.words.template)  # (C, d)
        without = [name for name, mass in zip(first, answers.sum(0).tolist(), strict=True) if mass < WITHOUT_PHOTO]
        sure, logits = theirs[left], basis.student[left] @ text.T
        share = sentence_share(alone, logits, sure.argmax(1), bool(without))
        alone = alone + share * logits
        factor = fit_factor(alone, sure)
        if share:
            solved = replace(solved, linear=share * text)
            scores = scores + basis.student @ solved.linear.T
        top = (factor * scores).softmax(1).topk(2, dim=1)
        shown = top.values.mul(1e4).round().double()  # to four places
        agreed = float((alone.argmax(1) == sure.argmax(1)).float().mean())
        _, inside = inside_names(self.pile, facts["teacher_scale"], basis.teacher, texts)
        reason = misfit(theirs, float(inside.float().mean()), count)
        verdict = f"Named as by the teacher: {agreed:.0%} of photos that were left out of the fit. The teacher errs, too."
        if reason:
            verdict = f"These names do not fit these photos: {reason}."
        p, margin = (shown[:, 0] / 1e4).tolist(), ((shown[:, 0] - shown[:, 1]) / 1e4).tolist()
        return Sorted(top.indices[:, 0].tolist(), p, margin, verdict, not reason, without, solved, factor)

    @torch.no_grad()
    def groups(self) -> list[tuple[str, list[int]]]:
        """Return groups of similar photos in the teacher's space, largest first: `(name, photos)`, typical photos first.

        A group's name is the likeliest one of a vocabulary for its mean; groups with the same name become one.
        """
        if not len(self.pile):
            return []
        words = load_vocabulary(vocabulary_for(self.words.student_name))
        texts = cached_text_features(self.words.teacher, words, [self.words.template]).float().cpu()  # (V, e)
        features, named = self.basis.teacher, {}
        of = cluster(features)
        for number in of.unique():
            members = (of == number).nonzero().flatten()
            centre = F.normalize(features[members].mean(0), dim=0)
            rows = zip((features[members] @ centre).tolist(), members.tolist(), strict=True)
            named.setdefault(words[int((texts @ centre).argmax())], []).extend(rows)
        found = [(name, [photo for _, photo in sorted(rows, reverse=True)]) for name, rows in named.items()]
        return sorted((row for row in found if len(row[1]) >= SMALLEST), key=lambda row: -len(row[1]))


def cluster(features: Tensor) -> Tensor:
    """Return the group of each photo, `(N,)`, of unit features `(N, d)`: k-means by cosine, from centres far from each other.

    Nothing is random: the same photos have the same groups, about three times the square root of their number.
    """
    some = features[:: max(1, len(features) // EXAMPLES)]
    chosen = [int((some @ some.mean(0)).argmax())]
    nearest = some @ some[chosen[0]]  # (n), similarity to the nearest centre
    for _ in range(min(GROUPS, round(3 * len(some) ** 0.5)) - 1):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, some @ some[chosen[-1]])
    centres = some[chosen]  # (K, d)
    for _ in range(STEPS):
        of = (some @ centres.T).argmax(1)
        centres = F.normalize((1e-3 * centres).index_add_(0, of, some), dim=-1)  # an empty group stays where it is
    return torch.cat([(part @ centres.T).argmax(1) for part in features.split(EXAMPLES)])
