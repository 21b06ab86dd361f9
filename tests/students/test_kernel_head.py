"""KernelHead: the solve, the neighbours' agreement and the factor by independent computations, and the learner in use."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import ROOT, emoji_args
from support.ranks import run_ranks
from support.trainings import SMALL, Killed, assert_same, build, die_at, parameters, trained

import kdpl
from kdpl.bundle import read_bundle
from kdpl.students import kernel_head
from kdpl.students.kernel_head import RIDGES, agree, choose_gamma, fit_factor, kernel_scores, left_out, solve
from kdpl.training.batches import read_image


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


def test_names_without_a_photo_and_repeated_photos_have_scores(monkeypatch):
    x, log_p, new = pile(60)
    labels = F.one_hot(log_p.argmax(-1) % 5, 12).float()  # of twelve names, seven have no photo
    x, labels = x.repeat(4, 1), labels.repeat(4, 1)
    solved = solve(x, labels)
    closest(solved.scores(new), in_numpy(x, labels, new, solved.gamma, solved.ridge))
    monkeypatch.setattr(kernel_head, "EXACT", 0)
    closest(solve(x, labels).scores(new), solved.scores(new))


def test_landmarks_in_chunks_are_exact_where_each_photo_is_one(monkeypatch):
    x, log_p, new = pile()
    exact = solve(x, log_p.exp(), ridge=1e-3)
    monkeypatch.setattr(kernel_head, "ROWS", 70)
    monkeypatch.setattr(kernel_head, "PANEL", 90)
    closest(solve(x, log_p.exp(), ridge=1e-3).coefficients, exact.coefficients)
    monkeypatch.setattr(kernel_head, "EXACT", 200)
    closest(solve(x, log_p.exp(), ridge=1e-3).scores(new), exact.scores(new))
    monkeypatch.setattr(kernel_head, "LANDMARKS", 100)
    few = solve(x, log_p.exp(), ridge=1e-3)
    assert few.centres.shape == (100, 32) and 1e-5 < (few.scores(new) - exact.scores(new)).abs().max() < 0.3


def test_left_out_scores_are_those_of_a_fit_without_the_photo():
    x, log_p, _ = pile(100, 4)
    q, gamma = log_p.exp(), 6.0
    w = np.asarray(kernel_head.photo_weights(q.double()))
    k, mean = np.asarray(kernel_head.kernel(x, x, gamma)), np.asarray(q.double().mean(0))
    y = np.asarray(q.double()) - mean

    def without_each(ridge):
        rest = [np.arange(len(x)) != i for i in range(len(x))]
        systems = [k[np.ix_(r, r)] + np.diag(ridge * len(x) / w[r]) for r in rest]
        return np.stack([k[i, rest[i]] @ np.linalg.solve(systems[i], y[rest[i]]) for i in range(len(x))])

    found = [without_each(ridge) for ridge in RIDGES]
    errors = [w * ((scores - y) ** 2).sum(1) for scores in found]
    means = [error.mean() for error in errors]
    best = int(np.argmin(means))
    largest = max(i for i in range(len(RIDGES)) if means[i] <= means[best] + errors[best].std() / np.sqrt(len(x)))
    assert 0 < largest < len(RIDGES) - 1 and largest > best  # else the case shows nothing
    ridge, rows, scores = left_out(x, q, gamma)
    assert ridge == RIDGES[largest] and len(rows) == len(x)
    closest(scores, found[largest] + mean)


@pytest.mark.parametrize("tower", ["wide", "cone"])
def test_gamma_follows_the_spread_of_the_features(tower):
    x, _, _ = pile()
    if tower == "cone":  # as of a tower with random weights: cosines of 0.99 and more
        x = F.normalize(x + 30 * x[:1], dim=-1)
    cos = np.asarray(x, dtype=np.float64) @ np.asarray(x, dtype=np.float64).T
    median = np.median(1 - cos[np.triu_indices(len(x), 1)])
    assert choose_gamma(x) == pytest.approx(3.7 / median, rel=1e-3) and (choose_gamma(x) > 1000) == (tower == "cone")


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


# -------------------------------------------------------------------------------------------------------------- the learner

IN_PROCESS = ("DATALOADER.NUM_WORKERS", 0)
ONE_PASS = (*SMALL, *IN_PROCESS, "OPTIM.MAX_EPOCH", 1)


def test_the_trainer_solves_for_all_photos_and_its_bundle_gives_the_formulas_probabilities(tmp_path):
    run = build("KernelHead", tmp_path, *ONE_PASS, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    run.train()
    items, transform = run.train_loader_x.dataset.data_source, run.test_loader.dataset.transform  # no augmentation either
    x = run.clip.frozen_image_features(run.normalize(torch.stack([transform(read_image(item.impath)) for item in items])))
    labels = torch.tensor([item.label for item in items])
    assert len(parameters(run)["centres"]) == 30 and len(run.train_loader_x) * 8 < 30, "the epoch leaves photos out"
    names, learned = run.class_names, parameters(run)
    gamma, factor = float(learned["gamma"]), float(learned["factor"])
    ridge, rows, scores = left_out(x, F.one_hot(labels, 30), gamma)
    assert factor == pytest.approx(fit_factor(scores, F.one_hot(labels, 30)[rows]), rel=1e-3)

    classifier = kdpl.load(tmp_path, "cpu")
    paths = next(iter(run.test_loader))["impath"][:8]
    new = classifier.image_features(paths)
    logits = factor * in_numpy(x, F.one_hot(labels, 30), new, gamma, ridge)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    closest(classifier(paths), expected)
    classifier.classnames = names[:1:-1]
    closest(classifier.logits(paths), logits[:, :1:-1], 1e-4)
    with pytest.raises(
        ValueError, match=r"KernelHead is class-specific: it learned scores for each of 30 names.*'yak'. are not"
    ):
        classifier.classnames = [*names, "yak"]


def test_a_pass_that_is_stopped_inside_and_resumed_ends_bit_identical(tmp_path):
    options = (*ONE_PASS, "TRAIN.CHECKPOINT_EVERY_MINUTES", 1e-9)
    whole = trained(build("KDPL_KernelHead", tmp_path / "a", *options))
    killed = build("KDPL_KernelHead", tmp_path / "b", *options)
    die_at(killed, 3)
    with pytest.raises(Killed):
        killed.train()
    resumed = build("KDPL_KernelHead", tmp_path / "b", *options)
    assert_same(trained(resumed), whole)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path):
    scores = []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        options = (*ONE_PASS, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base")
        process = run_ranks(ranks, ROOT / "train.py", *emoji_args("KDPL_KernelHead", output), *options)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        p = read_bundle(next(output.rglob("prompts.safetensors")).parent).parameters
        new = F.normalize(torch.randn(9, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
        scores.append(kernel_scores(new, *(p[n] for n in ("centres", "coefficients", "mean", "gamma"))))
    closest(scores[0], scores[1], 1e-4)
