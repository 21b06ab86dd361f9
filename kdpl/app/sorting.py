"""How a pile of photos is sorted by names and labels: the head in closed form, fitted again after each change.

What does not depend on the names is computed once for a pile: neighbours, and the photos' coordinates among some landmarks, in
which a fit is one small system. Ten thousand photos and a hundred names take about a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.photos.answers import SENTENCE_SHARES, WITHOUT_PHOTO, misfit
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

LANDMARKS = 1_000
JITTER = 1e-5  # of the landmarks' kernel: with less, coefficients are so large that their rounding shows


@dataclass(frozen=True)
class Sorted:
    """How a pile is sorted; lists by photo."""

    best: list[int] = field(default_factory=list)  # place of the likeliest name; -1: there are no names
    p: list[float] = field(default_factory=list)  # its probability
    margin: list[float] = field(default_factory=list)  # to the second
    notes: dict[str, str] = field(default_factory=dict)  # what is to be said of a name
    verdict: list[str] = field(default_factory=list)
    fits: bool = True  # the names do, as far as can be said
    solved: Solved | None = None
    factor: float = 1.0
    names: list[str] = field(default_factory=list)


class Basis:
    """What of a pile does not depend on the names."""

    def __init__(self, pile: Pile):
        self.student, self.teacher = (F.normalize(f.float(), dim=-1) for f in (pile.student, pile.teacher))  # (N, d), (N, e)
        self.scales = pile.facts["student_scale"], pile.facts["teacher_scale"]
        self.gamma = choose_gamma(self.student)
        self.centres = self.student[spread_rows(len(pile), LANDMARKS)]  # (M, d)
        own = kernel(self.centres, self.centres, self.gamma)
        own.diagonal().add_(JITTER)
        self.factor = torch.linalg.cholesky(own)  # L of K = L L^T, fp64
        parts = [kernel(self.centres, rows, self.gamma) for rows in self.student.split(2000)]
        solved = [torch.linalg.solve_triangular(self.factor, part, upper=False).float() for part in parts]
        self.coordinates = torch.cat(solved, dim=1).T.contiguous()  # (N, M), whose products are the kernel's
        self.ridge: float | None = None
        self.background = F.normalize(pile.teacher_background.float(), dim=-1)

    @cached_property
    def near(self) -> tuple[Tensor, Tensor]:
        return neighbours(self.teacher)

    def solve(self, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return coefficients `(M, C)`, mean `(C)` and scores `(N, C)` of the kernel ridge regression to answers `(N, C)`."""
        mean, weights = answers.mean(0), photo_weights(answers.double()).float()
        weighted = self.coordinates * weights[:, None]
        system = weighted.T @ self.coordinates  # (M, M)
        system.diagonal().add_(self.ridge * len(answers))
        b = torch.cholesky_solve((weighted.T @ (answers - mean)).double(), torch.linalg.cholesky(system.double()))  # (M, C)
        a = torch.linalg.solve_triangular(self.factor.T, b, upper=True)
        return a.float(), mean, self.coordinates @ b.float() + mean


class Sorter:
    """The pile and the text towers, and what they make of names.

    Args:
        words: the text towers.
        pile: of different photos; it may grow.
    """

    def __init__(self, words: Words, pile: Pile):
        self.words, self.pile = words, pile
        self._basis: Basis | None = None

    def grow(self, pile: Pile) -> None:
        self._basis = self._basis if pile.contents == self.pile.contents else None
        self.pile = pile

    @property
    def basis(self) -> Basis:
        if self._basis is None:
            self._basis = Basis(self.pile)
        return self._basis

    @torch.no_grad()
    def sort(self, names: Sequence[Sequence[str]], labels: Mapping[int, int]) -> Sorted:
        """Return how the pile is sorted.

        Args:
            names: each with the words that were merged into it, whose probabilities add up.
            labels: by photo, the place of a name; -1: none of them.
        """
        n, first = len(self.pile), [words[0] for words in names]
        if not n or not names:
            return Sorted([-1] * n, [0.0] * n, [0.0] * n)
        if len(names) == 1:
            return Sorted(
                [0] * n, [1.0] * n, [1.0] * n, verdict=["One name alone: every photo is it. Add another."], names=first
            )
        basis, flat = self.basis, [word for words in names for word in words]
        place = torch.tensor([i for i, words in enumerate(names) for _ in words])
        texts = self.words.of_teacher(flat)
        theirs = (basis.scales[1] * basis.teacher @ texts.T).softmax(1)  # (N, words)
        theirs = torch.zeros(n, len(names)).index_add_(1, place, theirs)  # (N, C)
        log_p, fixed = theirs.clamp_min(1e-30).log(), torch.zeros(n, dtype=torch.bool)
        for photo, label in labels.items():
            fixed[photo] = True
            log_p[photo] = (
                torch.full((len(names),), -float("inf")) if label >= 0 else -torch.log(torch.tensor(float(len(names))))
            )
            if label >= 0:
                log_p[photo, label] = 0.0
        answers = agree(basis.teacher, log_p, fixed=fixed, near=basis.near)
        basis.ridge, left, alone = left_out(basis.student, answers, basis.gamma, basis.ridge)  # chosen once
        a, mean, scores = basis.solve(answers)
        sentence = basis.scales[0] * self.words.of_student(first, self.words.template)  # (C, d)
        without = [name for name, mass in zip(first, answers.sum(0).tolist(), strict=True) if mass < WITHOUT_PHOTO]
        sure, logits = theirs[left], basis.student[left] @ sentence.T
        agreeing = [int(((alone + s * logits).argmax(1) == sure.argmax(1)).sum()) for s in SENTENCE_SHARES]
        best = max(range(1 if without else 0, len(SENTENCE_SHARES)), key=lambda i: (agreeing[i], -i))
        share = SENTENCE_SHARES[best]
        linear = share * sentence if share else None
        factor = fit_factor(alone + share * logits, sure)
        if linear is not None:
            scores = scores + basis.student @ linear.T
        top = (factor * scores).softmax(1).topk(2, dim=1)
        reason = misfit(theirs, self._inside(texts), len(names))
        agreed = f"Named as by the teacher: {agreeing[best] / len(left):.0%} of photos that were left out of the fit"
        return Sorted(
            top.indices[:, 0].tolist(),
            [round(p, 4) for p in top.values[:, 0].tolist()],
            [round(p, 4) for p in (top.values[:, 0] - top.values[:, 1]).tolist()],
            dict.fromkeys(without, "no photo to learn from"),
            [f"These names do not fit these photos: {reason}." if reason else f"{agreed}. The teacher errs, too."],
            not reason,
            Solved(basis.centres, a, mean, basis.gamma, basis.ridge, linear),
            factor,
            first,
        )

    def _inside(self, texts: Tensor) -> float:
        """Return the share of photos that the teacher takes for one of the names rather than for others of the vocabulary."""
        basis = self.basis
        other = (basis.background @ texts.T).amax(1) < 0.999 if len(basis.background) else torch.zeros(0, dtype=torch.bool)
        if not other.any():
            return 1.0
        mine, others = (basis.scales[1] * basis.teacher @ t.T for t in (texts, basis.background[other]))
        return float((mine.logsumexp(1) > others.logsumexp(1)).float().mean())

    def vocabulary(self) -> tuple[list[str], Tensor]:
        """Return the vocabulary's names and their unit features by the teacher; the first call encodes them."""
        names = load_vocabulary(vocabulary_for(self.words.student_name))
        return names, cached_text_features(self.words.teacher, names, [self.words.template]).float().cpu()
