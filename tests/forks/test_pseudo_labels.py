"""Labels know their images through whatever moves them; cross-entropy with them is the formula, all else sees plain ones."""

import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss  # as forks import them

from kdpl.distill.pseudo_labels import BatchLabels, DistilledStep, UnsupportedStepError

B, C = 6, 5


def made(**options):
    torch.manual_seed(0)
    teacher = torch.randn(B, C) * 3
    step = DistilledStep(teacher, **options)
    return teacher, step, step.labels(teacher.argmax(1)), torch.randn(B, C, requires_grad=True)


def formula(logits, teacher, kind="symmetric", temperature=1.0):
    """The loss of each row in double precision, written from the paper."""
    s, t = (x.double() / temperature for x in (logits, teacher))
    p, q = s.exp() / s.exp().sum(1, keepdim=True), t.exp() / t.exp().sum(1, keepdim=True)
    forward, reverse = (q * (q / p).log()).sum(1), (p * (p / q).log()).sum(1)
    return temperature**2 * {"symmetric": (forward + reverse) / 2, "forward": forward, "reverse": reverse}[kind]


MOVES = {
    "index": lambda x, k: x[torch.arange(len(x)).roll(k)],
    "mask": lambda x, k: x[torch.arange(len(x)) % 2 == k % 2],
    "cat": lambda x, k: torch.cat([x, x[: abs(k)]]),
    "stack_columns": lambda x, k: torch.stack([x, x.roll(k)], dim=1).reshape(-1),
    "repeat_interleave": lambda x, k: x.repeat_interleave(1 + abs(k) % 3),
    "expand": lambda x, k: x[None].expand(2, -1).reshape(-1),
    "split": lambda x, k: torch.cat([*x.split(2)][::-1]),
    "view": lambda x, k: x.view(1, -1).t().squeeze(1),
    "to": lambda x, k: x.to("cpu").to(torch.int32).long().clone().detach().contiguous(),
    "where": lambda x, k: torch.where(torch.arange(len(x)) % 3 == 0, x, x.roll(k)),
    "expand_as": lambda x, k: x.expand_as(torch.zeros(2, len(x))).permute(1, 0).flatten(),
}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(-7, 7)), max_size=6))
def test_any_sequence_of_moves_keeps_rows_right(moves):
    """Against an independent bookkeeping: the same moves on a plain tensor of image numbers."""
    teacher, step, labels, _ = made()
    images = torch.arange(B)
    for name, k in moves:
        if not len(images) or len(images) > 400:
            break
        labels, images = MOVES[name](labels, k), MOVES[name](images, k)
    assert isinstance(labels, BatchLabels) and torch.equal(labels.rows, images) and not step.uses
    assert labels.tolist() == teacher.argmax(1)[images].tolist()
    if len(images):
        logits = torch.randn(len(images), C)
        torch.testing.assert_close(
            F.cross_entropy(logits, labels).double(), formula(logits, teacher[images]).mean(), atol=1e-6, rtol=1e-6
        )


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("kind", ["symmetric", "forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_every_way_to_call_it_gives_the_formula(kind, temperature):
    teacher, step, labels, s = made(kind=kind, temperature=temperature)
    expected = formula(s, teacher, kind, temperature).mean()
    for loss in (
        cross_entropy(s, labels),
        nn.CrossEntropyLoss()(s, labels),
        nll_loss(s.log_softmax(1), labels),
        nn.NLLLoss()(s.log_softmax(1), labels),
        F.cross_entropy(target=labels, input=s),
        F.cross_entropy(s, labels, reduction="sum") / B,
        F.cross_entropy(s, labels, reduction="none").mean(),
        F.cross_entropy(s, labels, size_average=False) / B,
        F.cross_entropy(s, labels, label_smoothing=0.2),
        F.cross_entropy(torch.cat([s, s]), labels.repeat(2)),
        torch.stack([F.cross_entropy(s[i : i + 1], labels[i : i + 1]) for i in range(B)]).mean(),
    ):
        torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)
    (found,) = torch.autograd.grad(F.cross_entropy(s, labels), s)
    (exact,) = torch.autograd.grad(expected, s)
    assert (found - exact).abs().max() < 1e-6
    assert f"{9 + B} x cross-entropy, 2 x nll_loss: the divergence; 1 x label smoothing: ignored" in str(step)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.permutations(range(B)))
def test_a_mixture_of_losses_is_the_same_mixture_of_divergences(lam, order):
    teacher, _, labels, s = made()
    mixed = lam * F.cross_entropy(s, labels) + (1 - lam) * F.cross_entropy(s, labels[list(order)])
    expected = lam * formula(s, teacher).mean() + (1 - lam) * formula(s, teacher[list(order)]).mean()
    torch.testing.assert_close(mixed.double(), expected, atol=1e-6, rtol=1e-6)


def test_two_batches_of_a_step_have_rows_of_their_own():
    teacher, step, _, s = made()
    x, u = step.labels(teacher[:4].argmax(1)), step.labels(teacher[4:].argmax(1), first=4)
    torch.testing.assert_close(F.cross_entropy(s, torch.cat([x, u])).double(), formula(s, teacher).mean(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_and_autocast_give_the_same_loss_and_gradient_and_are_counted_once(reentrant):
    teacher, step, labels, s = made()
    (exact,) = torch.autograd.grad(formula(s * 2, teacher).mean(), s)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.utils.checkpoint.checkpoint(lambda a, y: F.cross_entropy(a * 2, y), s, labels, use_reentrant=reentrant)
    loss.backward()
    assert (s.grad - exact).abs().max() < 1e-6 and str(step) == "1 x cross-entropy: the divergence"


USES = {
    "one_hot": lambda y, s: F.one_hot(y, C),
    "index": lambda y, s: torch.eye(C)[y],
    "tolist": lambda y, s: y.tolist(),
    "scatter": lambda y, s: torch.zeros(B, C).scatter_(1, y[:, None], 1.0),
    "cross-entropy over other classes or images": lambda y, s: F.cross_entropy(torch.cat([s, s], 1), y),
}


@pytest.mark.parametrize("name", USES)
def test_any_other_use_sees_the_teachers_most_probable_class_and_is_counted(name):
    teacher, step, labels, s = made()
    found, expected = USES[name](labels, s), USES[name](teacher.argmax(1), s)
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    assert not isinstance(found, BatchLabels) and not step.distilled
    assert f"1 x {name}" in str(step) and str(step).endswith("the teacher's most probable class")


def test_a_function_of_ones_own_and_copies_see_plain_labels():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, y):
            ctx.save_for_backward(s, y)
            return -s.log_softmax(1)[torch.arange(len(y)), y].mean()

        @staticmethod
        def backward(ctx, gradient):
            s, y = ctx.saved_tensors
            return gradient * (s.softmax(1) - F.one_hot(y, C)) / len(y), None

    teacher, _, labels, s = made()
    Own.apply(s, labels).backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(s, teacher.argmax(1)), s)
    torch.testing.assert_close(s.grad, expected)
    assert type(pickle.loads(pickle.dumps(labels))) is torch.Tensor and labels.shape == (B,) and "BatchLabels" in repr(labels)


def test_labels_changed_in_place_or_joined_with_others_are_plain_ones():
    _, step, labels, s = made()
    changed = labels.clone()
    changed[0] = 3
    for y in (changed, torch.cat([labels[:3], torch.tensor([1, 2, 3])])):
        assert torch.equal(F.cross_entropy(s, y), F.cross_entropy(s, torch.tensor(y.tolist())))
    assert not step.distilled


@pytest.mark.parametrize(("name", "loss"), [("F.cross_entropy", nn.CrossEntropyLoss), ("F.nll_loss", nn.NLLLoss)])
def test_class_weights_are_refused(name, loss):
    _, _, labels, s = made()
    with pytest.raises(UnsupportedStepError, match=f"{name} got class weights"):
        loss(torch.ones(C))(s, labels)
