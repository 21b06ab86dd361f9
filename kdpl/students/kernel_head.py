"""KernelHead: kernel ridge regression from frozen image features to class probabilities, solved in closed form.

The mathematics are three functions: `agree` (answers of the teacher, agreed with those of each photo's neighbours), `solve` and
`fit_factor`. Kernel ridge regression is classical; the neighbours' term is that of TransCLIP (arXiv:2406.01837), and ZLaP
(arXiv:2404.04072) propagates answers likewise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.common import distributed
from kdpl.students.base import ALWAYS, Student

SPREAD = 3.7  # gamma times the median of 1 - cos between photos
RIDGES = tuple(10 ** (-exponent / 2) for exponent in (8, 7, 6, 5))  # tried by leave-one-out error; more never helped
EXACT = 6_000  # photos up to which each is a centre
LANDMARKS = 5_000  # centres for more photos
SAMPLE = 1_000  # photos by which gamma and ridge are chosen
BLOCK = 10_000  # photos among which neighbours are searched
ROWS = 2_000  # photos of a sum that are in memory at once
PANEL = 500  # rows of a symmetric matrix of which the other half is not computed
SHARPNESS = 20.0  # of the neighbours' weights, softmax(SHARPNESS cos)
PULL, STEPS = 4.0, 10  # of the neighbours' answers, and how often they are asked


@dataclass(frozen=True)
class Solved:
    """A function from unit features to scores of C names: K(features, centres) coefficients + mean + features linear^T."""

    centres: Tensor  # (M, d)
    coefficients: Tensor  # (M, C)
    mean: Tensor  # (C)
    gamma: float
    ridge: float
    linear: Tensor | None = None  # (C, d), such as weighted text features of the names

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores `(B, C)` of unit features `(B, d)` in fp32; without `linear` they are near probabilities."""
        return kernel_scores(features, self.centres, self.coefficients, self.mean, self.gamma, self.linear)


def kernel(x: Tensor, centres: Tensor, gamma: float | Tensor) -> Tensor:
    """Return exp(gamma (cos - 1)) of features `(B, d)` and `(M, d)`, `(B, M)`; in fp64, as gamma multiplies rounding."""
    x, centres = F.normalize(x.double(), dim=-1), F.normalize(centres.double(), dim=-1)
    return (x @ centres.T).sub_(1).mul_(gamma).exp_()


def lower_kernel(x: Tensor, gamma: float) -> Tensor:
    """Return the lower triangle of the kernel `(N, N)` of features with themselves, in the layout of Cholesky; above is 0."""
    x = F.normalize(x.double(), dim=-1)
    k = x.new_zeros(len(x), len(x))
    for start in range(0, len(x), PANEL):
        end = start + PANEL
        torch.mm(x[start:end], x[start:].T, out=k[start:end, start:]).sub_(1).mul_(gamma).exp_()
    return k.T


def solve_by(factor: Tensor, y: Tensor) -> Tensor:
    """Return (L L^T)^-1 y."""
    half = torch.linalg.solve_triangular(factor, y, upper=False)
    return torch.linalg.solve_triangular(factor.T, half, upper=True)


def kernel_scores(
    features: Tensor,
    centres: Tensor,
    coefficients: Tensor,
    mean: Tensor,
    gamma: float | Tensor,
    linear: Tensor | None = None,
) -> Tensor:
    """Return K(features, centres) coefficients + mean + features linear^T, `(B, C)` in fp32, of `ROWS` photos at once."""
    x, a, mean = features.double(), coefficients.double(), mean.double()
    parts = x.split(ROWS) if len(x) > ROWS else [x]  # a traced model takes any number
    scores = torch.cat([kernel(rows, centres, gamma) @ a + mean for rows in parts])
    return (scores if linear is None else scores.addmm_(x, linear.double().T)).float()


def spread_rows(n: int, most: int) -> Tensor:
    """Return at most `most` of n rows, evenly spread, in ascending order; no random number is drawn."""
    return torch.arange(n) if n <= most else torch.arange(most) * n // most


def choose_gamma(features: Tensor) -> float:
    """Return the gamma for which exp(gamma (cos - 1)) is exp(-SPREAD) at the median of 1 - cos between photos."""
    x = features[spread_rows(len(features), SAMPLE).to(features.device)].double()
    if len(x) < 2:
        return SPREAD
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    distance = (1 - (x @ x.T)[i, j]).median().clamp_min(1e-6)  # photos that are all the same have none
    return float((SPREAD / distance).float())  # as it is saved


def photo_weights(answers: Tensor) -> Tensor:
    """Return a weight `(N)` for each photo with which every name counts the same, however many photos have it."""
    w = (answers / answers.sum(0).clamp_min(1)).sum(1)
    return (w / w.mean()).clamp(0.05, 20)


def left_out(features: Tensor, answers: Tensor, gamma: float, ridge: float | None = None) -> tuple[float, Tensor, Tensor]:
    """Return a ridge, at most SAMPLE rows, and the scores `(rows, C)` of these photos with the photo itself left out.

    Without photo i the regression misses its answer by [G y]_i / G_ii, where G is the inverse of K + ridge N / w.

    Args:
        ridge: None: the largest of RIDGES whose weighted squared error is within one standard error of the smallest.
    """
    rows = spread_rows(len(features), SAMPLE).to(features.device)
    x, q = features[rows], answers[rows].double()
    w, k = photo_weights(q), kernel(x, x, gamma)
    y, ridges, missed, errors = q - q.mean(0), RIDGES if ridge is None else (ridge,), [], []
    for each in ridges:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(k + torch.diag(each * len(x) / w)))
        missed.append(inverse @ y / inverse.diagonal()[:, None])
        errors.append(w * (missed[-1] ** 2).sum(1))  # (rows)
    best = min(errors, key=lambda error: float(error.mean()))
    most = float(best.mean()) + float(best.std(correction=0)) / math.sqrt(len(x))
    chosen = max(i for i, error in enumerate(errors) if float(error.mean()) <= most)
    return ridges[chosen], rows, (q - missed[chosen]).float()


def solve(
    features: Tensor,
    answers: Tensor,
    gamma: float | None = None,
    ridge: float | None = None,
) -> Solved:
    """Return the kernel ridge regression from unit features `(N, d)` to answers `(N, C)`, probabilities or one-hot labels.

    It minimises sum_i w_i |f(x_i) - answers_i|^2 + ridge N |f|^2, where |f| is the norm of the kernel's space and w makes every
    name count the same. The result depends on the arguments alone, to the last bit for a number of threads.

    Args:
        gamma: of the kernel exp(gamma (cos - 1)); None: from the features.
        ridge: None: by the closed-form error of leaving each photo out, see `left_out`.

    Raises:
        ValueError: there are no photos, or not as many answers.
    """
    n = len(features)
    if not n or n != len(answers):
        raise ValueError(f"There are {n} photos and {len(answers)} answers; expected as many, and at least one.")
    features, answers = features.detach().float(), answers.detach().to(features.device)
    gamma = choose_gamma(features) if gamma is None else gamma
    ridge = left_out(features, answers, gamma)[0] if ridge is None else ridge
    q = answers.double()
    w, mean = photo_weights(q), q.mean(0)
    if n <= EXACT:
        centres, k = features, lower_kernel(features, gamma)
        k.diagonal().add_(ridge * n / w)
        a = solve_by(torch.linalg.cholesky(k, out=k), q - mean)
    else:
        centres = features[spread_rows(n, LANDMARKS).to(features.device)]  # Nystroem
        a = _solve_for_landmarks(features, centres, q - mean, w, gamma, ridge)
    return Solved(centres.clone(), a.float(), mean.float(), float(gamma), float(ridge))


def _solve_for_landmarks(x: Tensor, centres: Tensor, y: Tensor, w: Tensor, gamma: float, ridge: float) -> Tensor:
    """Return coefficients `(M, C)` with (K_mn W K_nm + ridge N K_mm) a = K_mn W y.

    With K_mm = L L^T it is solved for b = L^T a, whose matrix L^-1 K_mn W K_nm L^-T + ridge N is well-conditioned.
    """
    m, n = len(centres), len(x)
    gram, target = y.new_zeros(m, m), y.new_zeros(m, y.shape[1])
    panels = [slice(start, start + PANEL) for start in range(0, m, PANEL)]
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        k = kernel(x[rows], centres, gamma).mul_(w[rows].sqrt()[:, None])  # (ROWS, M)
        for panel in panels:  # the upper half; the product is symmetric
            gram[panel, panel.start :].addmm_(k[:, panel].T, k[:, panel.start :])
        target.addmm_(k.T, y[rows] * w[rows].sqrt()[:, None])
    gram = gram.triu_().add_(gram.triu(1).T)
    own = lower_kernel(centres, gamma)
    own.diagonal().add_(1e-8)  # photos that are the same make it singular
    factor = torch.linalg.cholesky(own, out=own)  # L
    half = torch.linalg.solve_triangular(factor, gram, upper=False)  # L^-1 gram
    system = torch.linalg.solve_triangular(factor, half.T, upper=False)  # L^-1 gram L^-T, as gram is symmetric
    system.diagonal().add_(ridge * n)
    b = solve_by(torch.linalg.cholesky(system, out=system), torch.linalg.solve_triangular(factor, target, upper=False))
    return torch.linalg.solve_triangular(factor.T, b, upper=True)


def agree(
    features: Tensor,
    log_p: Tensor,
    k: int = 5,
    fixed: Tensor | None = None,
    near: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return answers `(N, C)` that photos have agreed on with their neighbours: q_i = softmax(log p_i + PULL sum_j w_ij q_j).

    Neighbours are the k nearest photos, weighted by softmax(SHARPNESS cos). Past BLOCK photos they are searched among every
    second, third, ... photo, so that time grows with the number of photos.

    Args:
        features: the teacher's, of unit length `(N, e)`.
        log_p: log-probabilities `(N, C)`, of the teacher or of labels (0 and minus infinity).
        fixed: `(N)` bool, photos that keep their probabilities, such as labelled ones.
        near: of `neighbours`, if already searched.
    """
    given = q = log_p.exp()
    near, cos = neighbours(features, k) if near is None else near  # (N, k)
    k = near.shape[1]
    if not k:
        return given
    w = (SHARPNESS * cos).softmax(-1).to(q.dtype)
    for _ in range(STEPS):
        pulled = log_p.clone()
        for column in range(k):
            pulled.add_(q[near[:, column]].mul_(w[:, column, None]), alpha=PULL)
        q = pulled.softmax(-1)
        if fixed is not None:
            q = torch.where(fixed[:, None], given, q)
    return q


def neighbours(features: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Return each photo's k nearest others of its block, or all there are, and their cosines, both `(N, k)`."""
    n, device = len(features), features.device
    k = min(k, n - 1)
    blocks = max(1, math.ceil(n / BLOCK))
    near = torch.empty(n, k, dtype=torch.long, device=device)
    cosines = torch.empty(n, k, device=device)
    for offset in range(blocks):
        members = torch.arange(offset, n, blocks, device=device)
        x = features[members].float()
        for rows in torch.arange(len(x), device=device).split(ROWS):
            cos = x[rows] @ x.T  # (ROWS, BLOCK)
            cos[torch.arange(len(rows), device=device), rows] = -2  # not itself
            value, index = cos.topk(k)
            cosines[members[rows]], near[members[rows]] = value, members[index]
    return near, cosines


def fit_factor(scores: Tensor, probabilities: Tensor) -> float:
    """Return the factor for which softmax(factor scores) is closest to the teacher's probabilities, by cross-entropy.

    Both are `(N, C)`, of photos that the scores were not fitted to. The cross-entropy is convex in the factor: its minimum is
    where its slope is 0, searched between 0.01 and 10,000.
    """
    scores, target = scores.double(), probabilities.double()
    aim = (target * scores).sum()
    low, high = math.log(0.01), math.log(10_000.0)
    for _ in range(50):
        middle = (low + high) / 2
        found = ((math.exp(middle) * scores).softmax(1) * scores).sum()
        low, high = (middle, high) if found < aim else (low, middle)
    return math.exp((low + high) / 2)


class Learned(nn.Module):
    """What a `KernelHead` learns; photos, and so the shapes, are known after the solve, or from a file."""

    def __init__(self, names: int, width: int):
        super().__init__()
        shapes = {"centres": (0, width), "coefficients": (0, names), "mean": (names,), "linear": (names, width)}
        for name, shape in {**shapes, "gamma": (), "factor": ()}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    def fit_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Make room for as many centres as a state has, if its centres and coefficients are as many."""
        centres, coefficients = (state.get(name) for name in ("centres", "coefficients"))
        if isinstance(centres, Tensor) and isinstance(coefficients, Tensor) and centres.shape[:1] == coefficients.shape[:1]:
            for parameter in (self.centres, self.coefficients):
                parameter.data = parameter.new_zeros(len(centres), parameter.shape[1])

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Take over values by name."""
        for name, parameter in self.named_parameters():
            parameter.data = values[name].to(parameter)


class KernelHead(Student):
    """Learns scores of the class names from the frozen image features of photos, in closed form: one pass, no step.

    After the pass `agree` lets the teacher's answers agree with those of NEIGHBOURS photos, `solve` fits scores to them, and
    `fit_factor` finds the factor of the logits by the scores of photos that were left out. Learned are `centres (M, d)`, all
    photos or, of more than 6,000, 5,000 of them, and `coefficients (M, C)`. Other lists of names than that of the training may
    hold learned names alone.

    Raises:
        ValueError: there are no class names.
    """

    node = "KERNELHEAD"
    defaults = {"NEIGHBOURS": 5, "PREC": "fp16"}
    texts = {"NEIGHBOURS": "Photos whose answers each photo's answer agrees with, nearest in the teacher's features; 0: none."}
    closed_form = True
    image_features_are_frozen = True
    learns_class_specific = ALWAYS
    learned_for_each = "scores"
    uses_template = True

    def build(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("KernelHead learns scores of each class and needs their names: give `names`.")
        self.learned = Learned(len(names), self.clip.embed_dim)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # of this epoch's photos: features, log-answers, teacher's features

    @staticmethod
    def parameters_of(solved: Solved, factor: float) -> dict[str, Tensor]:
        """Return the learned parameters by name, as a bundle has them."""
        x, mean = solved.centres, solved.mean
        linear = x.new_zeros(len(mean), x.shape[1]) if solved.linear is None else solved.linear
        numbers = {"gamma": x.new_tensor(solved.gamma), "factor": x.new_tensor(factor)}
        return {"centres": x, "coefficients": solved.coefficients, "mean": mean, "linear": linear, **numbers}

    def prepare(self, names: Sequence[str]) -> Tensor | None:
        """Return the learned rows of the names; None: all, in their order."""
        return None if list(names) == self.names else torch.tensor(self.learned_rows(names))

    def text_features(self, prepared: Tensor | None, image_features: Tensor | None = None) -> Tensor:
        """Return the frozen features `(C, d)` of the names in the sentence, from which no score is computed."""
        names = self.names if prepared is None else [self.names[i] for i in prepared.tolist()]
        return self.frozen_text_features(names)

    def logits(self, image_features: Tensor, text_features: Tensor, prepared: Tensor | None) -> Tensor:
        head = self.learned
        scores = kernel_scores(image_features, head.centres, head.coefficients, head.mean, head.gamma, head.linear)
        logits = head.factor * scores  # (B, C)
        return logits if prepared is None else logits[:, prepared.to(logits.device)]

    def head_of(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return what was learned of some names by name, in fp64 and with centres of unit length, on the CPU."""
        rows = self.prepare(names)
        found = {name: value.detach().cpu().double() for name, value in self.learned.named_parameters()}
        if rows is not None:
            found |= {
                "coefficients": found["coefficients"][:, rows],
                "mean": found["mean"][rows],
                "linear": found["linear"][rows],
            }
        return {**found, "centres": F.normalize(found["centres"], dim=-1)}

    def collect(self, features: Tensor, log_answers: Tensor, neighbours_in: Tensor | None = None) -> None:
        """Take a batch of photos for the solve at the end of the epoch.

        Args:
            features: the frozen CLIP's `(B, d)`.
            log_answers: log-probabilities `(B, C)` of the teacher, or of labels.
            neighbours_in: the teacher's unit features `(B, e)`, in which neighbours are searched; None: there is none.
        """
        empty = features.new_zeros(len(features), 0)
        self.rows.append((features.float(), log_answers.float(), empty if neighbours_in is None else neighbours_in.float()))

    def _gathered(self) -> list[Tensor]:
        """Return what all ranks have collected: features, log-answers, the teacher's features."""
        rows = [torch.cat(parts) for parts in zip(*self.rows, strict=True)]
        mine = torch.tensor([len(rows[0]) if r == distributed.rank() else 0 for r in range(distributed.world())])
        counts = distributed.total(mine.to(rows[0].device)).tolist()
        return [distributed.gather_rows(part, counts) for part in rows]

    def end_epoch(self, epoch: int, max_epoch: int) -> None:
        """Solve on the main rank, from the photos that all ranks have collected."""
        super().end_epoch(epoch, max_epoch)
        rows, self.rows = self._gathered(), []
        self.learned.set(distributed.from_main(self._solved(*rows) if distributed.is_main() else None))

    def _solved(self, x: Tensor, log_p: Tensor, near: Tensor) -> dict[str, Tensor]:
        k = self.options.NEIGHBOURS
        answers = agree(near, log_p, k) if k and near.shape[1] else log_p.exp()
        solved = solve(x, answers)
        _, rows, scores = left_out(x, answers, solved.gamma, solved.ridge)
        factor = fit_factor(scores, log_p[rows].exp())
        return {name: value.cpu() for name, value in self.parameters_of(solved, factor).items()}

    def extra_state_dict(self) -> dict[str, Any]:
        """Return the photos of an epoch that has not ended."""
        return {"rows": [part.cpu() for part in self._gathered()]} if self.rows else {}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        most = None if distributed.is_main() else 0  # the main rank has all of them
        rows = [part[:most].to(self.clip.device) for part in state.get("rows", [])]
        self.rows = [(rows[0], rows[1], rows[2])] if rows else []
