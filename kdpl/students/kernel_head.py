"""KernelHead: kernel ridge regression from frozen image features to class probabilities, solved in closed form.

The mathematics are three functions: `agree` (answers of the teacher, agreed with those of each photo's neighbours), `solve` and
`fit_factor`. Kernel ridge regression is classical; the neighbours' term is that of TransCLIP (arXiv:2406.01837), and ZLaP
(arXiv:2404.04072) propagates answers likewise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SPREAD = 3.7  # gamma times the median of 1 - cos between photos
RIDGES = tuple(10 ** (-exponent / 2) for exponent in range(8, 1, -1))  # 1e-4 to 1e-1, tried by leave-one-out error
EXACT = 6_000  # photos up to which each is a centre
LANDMARKS = 5_000  # centres for more photos
SAMPLE = 1_000  # photos by which gamma and ridge are chosen
BLOCK = 10_000  # photos among which neighbours are searched
ROWS = 2_000  # photos of a sum that are in memory at once
SHARPNESS = 20.0  # of the neighbours' weights, softmax(SHARPNESS cos)


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
    """Return exp(gamma (cos - 1)) of unit features `(B, d)` and `(M, d)`, `(B, M)`; in fp64, as gamma multiplies rounding."""
    return (x.double() @ centres.double().T).sub_(1).mul_(gamma).exp_()


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
    scores = torch.cat([kernel(rows, centres, gamma) @ a + mean for rows in x.split(ROWS)])
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
    distance = (1 - (x @ x.T)[i, j]).median().clamp(1e-6, 1)  # photos that are all the same have none
    return SPREAD / float(distance)


def photo_weights(answers: Tensor) -> Tensor:
    """Return a weight `(N)` for each photo with which every name counts the same, however many photos have it."""
    w = (answers / answers.sum(0).clamp_min(1)).sum(1)
    return (w / w.mean()).clamp(0.05, 20)


def choose_ridge(features: Tensor, answers: Tensor, gamma: float) -> float:
    """Return the one of RIDGES with the smallest weighted leave-one-out error, on at most SAMPLE photos.

    Without photo i, the regression misses its answer by [G y]_i / G_ii, where G is the inverse of K + ridge N / w.
    """
    rows = spread_rows(len(features), SAMPLE).to(features.device)
    x, q = features[rows], answers[rows].double()
    w, k = photo_weights(q), kernel(x, x, gamma)
    y = q - q.mean(0)

    def error(ridge: float) -> float:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(k + torch.diag(ridge * len(x) / w)))
        return float((w[:, None] * (inverse @ y / inverse.diagonal()[:, None]) ** 2).sum())

    return min(RIDGES, key=error)


def solve(
    features: Tensor,
    answers: Tensor,
    gamma: float | None = None,
    ridge: float | None = None,
    landmarks: int | None = None,
) -> Solved:
    """Return the kernel ridge regression from unit features `(N, d)` to answers `(N, C)`, probabilities or one-hot labels.

    It minimises sum_i w_i |f(x_i) - answers_i|^2 + ridge N |f|^2, where |f| is the norm of the kernel's space and w makes every
    name count the same. The result depends on the arguments alone, to the last bit for a number of threads.

    Args:
        gamma: of the kernel exp(gamma (cos - 1)); None: from the features.
        ridge: None: by closed-form leave-one-out error.
        landmarks: the number of centres, spread over the photos (Nystroem); None: all photos up to EXACT, else LANDMARKS.

    Raises:
        ValueError: there are no photos, or not as many answers.
    """
    n = len(features)
    if not n or n != len(answers):
        raise ValueError(f"There are {n} photos and {len(answers)} answers; expected as many, and at least one.")
    features, answers = features.detach().float(), answers.detach().to(features.device)
    gamma = choose_gamma(features) if gamma is None else gamma
    ridge = choose_ridge(features, answers, gamma) if ridge is None else ridge
    q = answers.double()
    w, mean = photo_weights(q), q.mean(0)
    if landmarks is None and n <= EXACT:
        centres, k = features, kernel(features, features, gamma)
        k.diagonal().add_(ridge * n / w)
        a = torch.cholesky_solve(q - mean, torch.linalg.cholesky(k))
    else:
        chosen = spread_rows(n, LANDMARKS if landmarks is None else landmarks).to(features.device)
        centres = features[chosen]
        a = _solve_for_landmarks(features, centres, q - mean, w, gamma, ridge)
    return Solved(centres.clone(), a.float(), mean.float(), float(gamma), float(ridge))


def _solve_for_landmarks(x: Tensor, centres: Tensor, y: Tensor, w: Tensor, gamma: float, ridge: float) -> Tensor:
    """Return coefficients `(M, C)` with (K_mn W K_nm + ridge N K_mm) a = K_mn W y.

    With K_mm = L L^T it is solved for b = L^T a, whose matrix L^-1 K_mn W K_nm L^-T + ridge N is well-conditioned.
    """
    m, n = len(centres), len(x)
    gram, target = y.new_zeros(m, m), y.new_zeros(m, y.shape[1])
    panels = [slice(start, min(start + 1000, m)) for start in range(0, m, 1000)]
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        k = kernel(x[rows], centres, gamma).mul_(w[rows].sqrt()[:, None])  # (ROWS, M)
        for panel in panels:  # the upper half; the product is symmetric
            gram[panel, panel.start :].addmm_(k[:, panel].T, k[:, panel.start :])
        target.addmm_(k.T, y[rows] * w[rows].sqrt()[:, None])
    gram = gram.triu_().add_(gram.triu(1).T)
    own = kernel(centres, centres, gamma)
    own.diagonal().add_(1e-8)  # photos that are the same make it singular
    factor = torch.linalg.cholesky(own)  # L
    half = torch.linalg.solve_triangular(factor, gram, upper=False)  # L^-1 gram
    system = torch.linalg.solve_triangular(factor, half.T, upper=False)  # L^-1 gram L^-T, as gram is symmetric
    system.diagonal().add_(ridge * n)
    b = torch.cholesky_solve(torch.linalg.solve_triangular(factor, target, upper=False), torch.linalg.cholesky(system))
    return torch.linalg.solve_triangular(factor.T, b, upper=True)


def agree(
    features: Tensor,
    log_p: Tensor,
    k: int = 5,
    pull: float = 4.0,
    steps: int = 10,
    fixed: Tensor | None = None,
    near: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return answers `(N, C)` that photos have agreed on with their neighbours: q_i = softmax(log p_i + pull sum_j w_ij q_j).

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
    for _ in range(steps):
        pulled = log_p.clone()
        for column in range(k):
            pulled.add_(q[near[:, column]].mul_(w[:, column, None]), alpha=pull)
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
