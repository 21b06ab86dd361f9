"""KernelHead: the solve, the neighbours' agreement and the factor by independent computations, and the learner in use."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpl.students import kernel_head
from kdpl.students.kernel_head import RIDGES, agree, choose_ridge, fit_factor, solve


def pile(n=300, names=12, width=32, seed=0):
    """Return unit features (n, d), the teacher's log-probabilities (n, C), and other unit features."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(names, width, generator=draw)
    label = torch.randint(names, (n,), generator=draw)
    x, new = (F.normalize(centres[label] + torch.randn(n, width, generator=draw), dim=-1) for _ in range(2))
    logits = 4 * F.one_hot(label, names) + torch.randn(n, names, generator=draw)
    return x, logits.log_softmax(-1), new


def in_numpy(x, q, new, gamma, ridge):
    """The scores of `new` by the formula, in float64 and without PyTorch."""
    x, q, new = (np.asarray(v, dtype=np.float64) for v in (x, q, new))
    w = (q / np.maximum(q.sum(0), 1)).sum(1)
    w = np.clip(w / w.mean(), 0.05, 20)
    system = np.exp(gamma * (x @ x.T - 1)) + np.diag(ridge * len(x) / w)
    return np.exp(gamma * (new @ x.T - 1)) @ np.linalg.solve(system, q - q.mean(0)) + q.mean(0)


def closest(found, expected, tolerance=1e-5):
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < tolerance


@pytest.mark.parametrize("n, names", [(300, 12), (5, 12), (1, 3)])
def test_scores_are_those_of_the_formula(n, names):
    x, log_p, new = pile(n, names)
    solved = solve(x, log_p.exp())
    closest(solved.scores(new), in_numpy(x, log_p.exp(), new, solved.gamma, solved.ridge))


def test_names_without_a_photo_and_repeated_photos_have_scores():
    x, log_p, new = pile(60)
    labels = F.one_hot(log_p.argmax(-1) % 5, 12).float()  # of twelve names, seven have no photo
    x, labels = x.repeat(4, 1), labels.repeat(4, 1)
    solved = solve(x, labels)
    closest(solved.scores(new), in_numpy(x, labels, new, solved.gamma, solved.ridge))
    closest(solve(x, labels, landmarks=len(x)).scores(new), solved.scores(new))


def test_landmarks_in_chunks_are_exact_where_each_photo_is_one(monkeypatch):
    x, log_p, new = pile()
    exact = solve(x, log_p.exp(), ridge=1e-3)
    monkeypatch.setattr(kernel_head, "ROWS", 70)
    closest(solve(x, log_p.exp(), ridge=1e-3, landmarks=len(x)).scores(new), exact.scores(new))
    few = solve(x, log_p.exp(), ridge=1e-3, landmarks=100)
    assert few.centres.shape == (100, 32) and 1e-5 < (few.scores(new) - exact.scores(new)).abs().max() < 0.3
    monkeypatch.setattr(kernel_head, "EXACT", 200)
    monkeypatch.setattr(kernel_head, "LANDMARKS", 100)
    assert torch.equal(solve(x, log_p.exp(), ridge=1e-3).coefficients, few.coefficients)


def test_the_same_photos_have_the_same_bits():
    x, log_p, _ = pile()
    for landmarks in (None, 100):
        first, second = (solve(x, agree(x, log_p), landmarks=landmarks) for _ in range(2))
        assert torch.equal(first.coefficients, second.coefficients) and first.ridge == second.ridge


def test_ridge_has_the_smallest_error_of_leaving_each_photo_out():
    x, log_p, _ = pile(40, 4)
    q, gamma = log_p.exp(), 0.5  # a wide kernel needs more than the least ridge
    w = np.asarray(kernel_head.photo_weights(q.double()))
    k = np.asarray(kernel_head.kernel(x, x, gamma))
    y = np.asarray(q.double() - q.double().mean(0))

    def left_out(ridge):
        total = 0.0
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            system = k[np.ix_(rest, rest)] + np.diag(ridge * len(x) / w[rest])
            total += w[i] * ((k[i, rest] @ np.linalg.solve(system, y[rest]) - y[i]) ** 2).sum()
        return total

    errors = [left_out(ridge) for ridge in RIDGES]
    assert 0 < errors.index(min(errors)) < len(RIDGES) - 1  # else the case shows nothing
    assert choose_ridge(x, q, gamma) == RIDGES[errors.index(min(errors))]


def test_neighbours_agree_by_the_formula_and_fixed_photos_keep_their_answer(monkeypatch):
    x, log_p, _ = pile(50)
    cos = np.asarray(x @ x.T, dtype=np.float64)
    np.fill_diagonal(cos, -2)
    near = np.argsort(-cos)[:, :5]
    w = np.exp(20 * np.take_along_axis(cos, near, 1))
    w /= w.sum(1, keepdims=True)
    q = given = np.exp(np.asarray(log_p, dtype=np.float64))
    fixed = np.arange(50) < 10
    for _ in range(10):
        q = np.exp(np.asarray(log_p) + 4 * (w[:, :, None] * q[near]).sum(1))
        q = np.where(fixed[:, None], given, q / q.sum(1, keepdims=True))
    monkeypatch.setattr(kernel_head, "ROWS", 20)
    found = agree(x, log_p, fixed=torch.from_numpy(fixed))
    closest(found, q)
    assert torch.equal(found[:10], log_p.exp()[:10])


def test_labels_are_answers_without_nan():
    x, log_p, _ = pile(20)
    log_p[:4] = F.one_hot(torch.arange(4), 12).float().log()
    q = agree(x, log_p, fixed=torch.arange(20) < 4)
    assert torch.isfinite(q).all() and torch.equal(q[:4], F.one_hot(torch.arange(4), 12).float())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_photos_have_fewer_neighbours(n):
    x, log_p, _ = pile(n)
    closest(agree(x, log_p).sum(-1), np.ones(n))


def test_many_photos_agree_in_blocks_that_spread_over_the_pile(monkeypatch):
    x, log_p, _ = pile(100)
    monkeypatch.setattr(kernel_head, "BLOCK", 50)
    found = agree(x, log_p)
    for block in (slice(0, None, 2), slice(1, None, 2)):
        closest(found[block], agree(x[block], log_p[block]))


@pytest.mark.parametrize("factor", [0.3, 7.5, 900.0])
def test_factor_is_that_of_the_teacher(factor):
    scores = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    assert fit_factor(scores, (factor * scores).softmax(-1)) == pytest.approx(factor, rel=1e-4)
